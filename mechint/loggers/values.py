"""Metrics as plain Python numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def plain(value: Any) -> Any:
    """The value with numpy and torch scalars turned into Python numbers.

    Some loggers drop a float32 NaN without a word or refuse a tensor; none of them mishandles a Python float.
    """
    return value.item() if hasattr(value, "item") else value


def flatten(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested metrics under joined names, without the empty: `{"a": {"b": 1, "c": None}}` -> `{"a/b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in metrics.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}/"))
        elif value is not None:
            flat[f"{prefix}{key}"] = plain(value)
    return flat
