"""Whether a value of a configuration is of the kind that a class annotates."""

from __future__ import annotations

import types
from collections.abc import Sequence
from dataclasses import is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, ListConfig

KINDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    type(None): "null",
}


def parameter_kinds(target: Any) -> dict[str, Any]:
    """The annotations of a class's or function's parameters; none where they cannot be resolved."""
    own = isinstance(target, type) and not is_dataclass(target)
    try:
        return get_type_hints(target.__init__ if own else target)
    except Exception:  # names that are imported for type checkers only
        return {}


def misfit(value: Any, annotation: Any) -> str | None:
    """What a value should be instead, in words; None where it fits, or where the annotation says too little."""
    words: list[str] = []
    for kind in _alternatives(annotation):
        known = KINDS.get(kind)
        if known is None and not _is_list(kind):
            return None  # a class, Any, Literal: what is built says what it takes
        if _fits(value, kind):
            return None
        words.append(known or "a list")
    return " or ".join(dict.fromkeys(words)) if words else None


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _is_list(kind: Any) -> bool:
    return (get_origin(kind) or kind) in (list, tuple, Sequence)


def _fits(value: Any, kind: Any) -> bool:
    if _is_list(kind):
        inside = [item for item in get_args(kind) if item is not Ellipsis]
        if not isinstance(value, (list, tuple, ListConfig)):
            return False
        return not inside or all(misfit(item, inside[0]) is None for item in value)
    if isinstance(value, (DictConfig, ListConfig, list, dict)):
        return False
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)
