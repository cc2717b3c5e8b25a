"""Whether a configuration fits: its keys the program, its classes what may be built, its values their annotations."""

from __future__ import annotations

import importlib
import inspect
import types
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, ListConfig, OmegaConf

from mechint.config.errors import SEVERAL_OPTIONS, key_paths, unknown_key
from mechint.errors import UserError

# Nothing outside these modules is ever built from a configuration.
ALLOWED_TARGETS = ("mechint.", "torch.optim.")

# What stands beside the loggers in conf/logger.
LOGGER_KEYS = ("project", "group", "sinks")

KINDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    type(None): "null",
}


def check_keys(config: DictConfig) -> None:
    """Raise UserError for a root key that the program does not have, and for a part without a class."""
    schema = OmegaConf.get_type(config)
    if not is_dataclass(schema):  # a primary configuration of the user's own
        return
    known = [field.name for field in fields(schema)]
    for key in config:
        if key not in known and key != "hydra":
            raise unknown_key(str(key), known, key_paths(config))
    logger = config.get("logger")
    for key in logger if isinstance(logger, DictConfig) else ():
        if key not in LOGGER_KEYS:
            raise unknown_key(f"logger.{key!s}", LOGGER_KEYS)
    for name in parts(config):
        node: Any = None if OmegaConf.is_missing(config, name) else config[name]
        several = name in SEVERAL_OPTIONS and isinstance(node, DictConfig)
        for path, part in [(f"{name}.{key!s}", node[key]) for key in node] if several else [(name, node)]:
            if not isinstance(part, DictConfig) or part.get("_target_") is None:
                raise nothing_to_build(path, part)


def parts(config: DictConfig) -> list[str]:
    """The root keys that hold what objects are built from."""
    schema = OmegaConf.get_type(config)
    return (
        [field.name for field in fields(schema) if "part" in field.metadata] if is_dataclass(schema) else []
    )


def check(node: Any, path: str = "") -> None:
    """Check every `_target_` below a node: allowed, existing, and with no unknown keyword argument."""
    if isinstance(node, ListConfig):
        for number, item in enumerate(node):
            check(item, f"{path}[{number}]")
    if not isinstance(node, DictConfig) or node._is_missing() or node._is_none():
        return
    for key in node:
        if not OmegaConf.is_missing(node, key):
            check(node[key], f"{path}.{key!s}" if path else str(key))
    target = node.get("_target_")
    if target is None:
        return
    if not str(target).startswith(ALLOWED_TARGETS):
        raise UserError(
            f"{path or 'config'}: _target_ {target} is not allowed; use a class of mechint or torch.optim"
        )
    try:
        made = _class(str(target))
        parameters = inspect.signature(made).parameters.values()
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{path or 'config'}: there is no class {target}; see conf/ for those there are"
        ) from error
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        known = [parameter.name for parameter in parameters if parameter.name != "params"]
        for key in _keywords(node):
            if key not in known:
                raise unknown_key(f"{path or target}.{key}", known)
    if str(target).startswith("mechint."):
        _check_kinds(node, parameter_kinds(made), path)


def nothing_to_build(path: str, node: Any) -> UserError:
    """The error of a configuration that should describe an object and names no class."""
    found = "is null" if node is None else "names no class to build"
    return UserError(f"{path or 'the configuration'} {found}; choose one of its options, --help lists them")


def _class(path: str) -> Any:
    """What a class path names; unlike Hydra's own function it does not log what it cannot find."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except AttributeError as error:
        raise ImportError(path) from error


def _keywords(node: DictConfig) -> list[str]:
    """The keys of a node that are keyword arguments."""
    return [str(key) for key in node if not str(key).startswith("_")]


def _check_kinds(node: DictConfig, kinds: dict[str, Any], path: str) -> None:
    """Raise UserError for a value that is not what the class annotates."""
    for key in _keywords(node):
        if key not in kinds or OmegaConf.is_missing(node, key):
            continue
        if expected := misfit(node[key], kinds[key]):
            value = "null" if node[key] is None else node[key]
            raise UserError(f"{path}.{key}={value} must be {expected}".lstrip("."))


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
