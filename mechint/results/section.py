"""What all parts of result.json, and files beside it, have in common."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

from mechint.errors import UserError, one_line
from mechint.runtime.files import parse_json, plain, read_text, write_json

if TYPE_CHECKING:
    from typing_extensions import Self


class Section(BaseModel):
    """A part of result.json."""

    model_config = ConfigDict(extra="allow", validate_assignment=True, protected_namespaces=())

    def as_json(self) -> dict[str, Any]:
        """What the file holds: the fields that were set, with null for NaN and infinity."""
        content: dict[str, Any] = plain(self.model_dump(exclude_unset=True))
        return content


class SideFile(Section):
    """A JSON file beside result.json, for what only a page or a picture reads. filename: its name."""

    filename: ClassVar[str]

    def write(self, directory: Path) -> Path:
        """Write it into a run's directory, atomically."""
        path = directory / self.filename
        write_json(path, self.as_json())
        return path

    @classmethod
    def read(cls, directory: Path) -> Self | None:
        """What a run wrote; None where it wrote nothing. Raises UserError where the file is damaged."""
        path = directory / cls.filename
        if not path.exists():
            return None
        try:
            return cls.model_validate(parse_json(read_text(path)))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path} cannot be read ({one_line(error, 160)}); run the analysis again"
            ) from error
