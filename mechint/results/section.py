"""What all parts of result.json have in common."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from mechint.runtime.files import plain


class Section(BaseModel):
    """A part of result.json."""

    model_config = ConfigDict(extra="allow", validate_assignment=True, protected_namespaces=())

    def as_json(self) -> dict[str, Any]:
        """What the file holds: the fields that were set, with null for NaN and infinity."""
        content: dict[str, Any] = plain(self.model_dump(exclude_unset=True))
        return content
