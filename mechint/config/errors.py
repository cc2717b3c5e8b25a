"""What Hydra, OmegaConf and the system say about a user's input, in words that name the way out."""

from __future__ import annotations

import difflib
import errno
import re
import shlex
import sys
from collections.abc import Iterable
from typing import NoReturn

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from mechint.errors import UserError, one_line

# Errors that the user can fix: the message is enough.
USER_ERRORS = (UserError, HydraException, OmegaConfBaseException)

LONGEST_NAME = 200

# The extra that brings each launcher.
LAUNCHER_EXTRAS = {"joblib": "parallel", "submitit_local": "slurm", "submitit_slurm": "slurm"}

# Groups of which several options can be chosen at once.
SEVERAL_OPTIONS = ("logger", "planted")

# Keys that have become something else.
FORMER_KEYS = {"mask.ablation": "ablation=zero or ablation=mean"}

# What the system refuses because of a path or a disk that the user chose.
SYSTEM_REFUSALS = {
    number: remedy
    for numbers, remedy in (
        (("ENAMETOOLONG", "ENOTDIR", "EISDIR", "EEXIST", "ELOOP", "ENOENT", "EINVAL"), "give another path"),
        (("EACCES", "EPERM", "EROFS"), "give a path that can be used, or change its permissions"),
        (("ENOSPC", "EDQUOT"), "free some space, and repeat the command"),
    )
    for number in (getattr(errno, name) for name in numbers)
}


def fail(error: BaseException) -> NoReturn:
    """Print an error as one line and leave with exit code 2."""
    print(f"error: {error_line(error)}", file=sys.stderr)
    raise SystemExit(2)


def in_user_words(error: BaseException) -> BaseException:
    """The error itself, or a UserError where it only says what the system or Hydra has against the user's input."""
    text = str(error)
    if isinstance(error, OSError) and error.errno in SYSTEM_REFUSALS and error.filename:
        name = str(error.filename)
        name = name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}..."
        return UserError(f"{name}: {error.strerror}; {SYSTEM_REFUSALS[error.errno]}")
    if isinstance(error, ValueError) and "embedded null byte" in text:
        return UserError("a path contains a NUL character; give another path")
    if isinstance(error, ValueError) and "Config group override" in text:
        return UserError(f"{error}; name one of its options, --help lists them")
    if isinstance(error, OverrideParseException):
        return UserError(_unreadable(str(error.override), text))
    if several := re.match(r"Ambiguous value for argument '(.*?)'\n", text):
        return UserError(
            f"{several[1]} contains a comma: add -m for one run each, or quote it if it is one text: "
            f"{_quoted(several[1])}"
        )
    cause = error.__cause__ or error.__context__
    unknown = re.match(r"Could not override '[^']+'|In '([^']+)': Config(Key|Attribute)Error raised", text)
    if unknown and isinstance(cause, (ConfigAttributeError, ConfigKeyError)) and cause.full_key:
        refused = _unknown_override(cause.full_key, cause.parent_node)
        return UserError(f"{unknown[1]}.yaml: {refused}") if unknown[1] else refused
    listed = re.search(r"Could not load '([\w/]+)/([^/']+)'", text) or re.search(
        r"()(\S+) appears more than once in the final defaults list", text
    )
    if listed and listed[1] in SEVERAL_OPTIONS:
        return UserError(
            f"{listed[1]}=[...]: {listed[1]} has no option {listed[2]}; --help lists its options"
        )
    if listed and listed[1]:
        return one_option(listed[1])
    return error


def one_option(group: str) -> UserError:
    """The error of a list of options where one is to be chosen."""
    return UserError(f"{group}=[...]: {group} takes one option, not a list; for one run each: -m {group}=A,B")


def error_line(error: BaseException) -> str:
    """An error's message in one line, without what Hydra puts around a message of ours."""
    text = one_line(str(error))
    if ours := re.search(r"UserError raised while resolving interpolation: (.*?)( full_key:.*)?$", text):
        return ours.group(1)
    launcher = re.search(r"Could not find 'hydra/launcher/(\w+)'", text)
    if launcher and (extra := LAUNCHER_EXTRAS.get(launcher.group(1))):
        return f"hydra/launcher={launcher.group(1)} needs a package: pip install -e '.[{extra}]'"
    text = text.partition(" Config search path:")[0]
    if isinstance(error.__cause__, OmegaConfBaseException):
        # Hydra's message says only what it could not do.
        return f"{text}: {str(error.__cause__).splitlines()[0]}"
    return text


def unknown_key(path: str, known: Iterable[str], places: Iterable[str] = ()) -> UserError:
    """The error of a key that does not exist.

    path: the key with the groups around it. known: the keys that stand in the same place. places: full names of keys
    elsewhere, of which one may be meant.
    """
    if path in FORMER_KEYS:
        return UserError(f"{path} does not exist any more: use {FORMER_KEYS[path]}")
    parent, _, key = path.rpartition(".")
    known = [str(name) for name in known]
    near = [place for place in places if place.rpartition(".")[2] == key]
    near += [f"{parent}.{name}".lstrip(".") for name in difflib.get_close_matches(key, known, 3 - bool(near))]
    where = f"{parent} has no key {key}" if parent else f"there is no key {key}"
    meant = f"do you mean {' or '.join(near)}? " if near else ""
    return UserError(f"{where}; {meant}{'its keys' if parent else 'keys'}: {', '.join(sorted(known))}")


def key_paths(config: DictConfig) -> list[str]:
    """The full names of the keys directly below each group of a configuration."""
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    groups = [(group, node) for group, node in plain.items() if isinstance(node, dict) and group != "hydra"]
    return [f"{group!s}.{key}" for group, node in groups for key in node if not str(key).startswith("_")]


def _unknown_override(path: str, parent: DictConfig) -> UserError:
    """The error of `path=value` where the configuration `parent` lacks the last key."""
    known = [str(key) for key in parent or () if key != "hydra" and not str(key).startswith("_")]
    if not known:
        group = path.partition(".")[0]
        return UserError(f"{path} needs an option of {group}: give {group}=NAME as well, --help lists them")
    return unknown_key(path, known, [] if "." in path else key_paths(parent))


def _unreadable(override: str, text: str) -> str:
    """What to say of an argument that Hydra's grammar does not allow."""
    reason = text.strip().splitlines()[0]
    _, equals, value = override.partition("=")
    remedy = "arguments have the form KEY=VALUE"
    if value[:1] in ("[", "{"):
        remedy = "close every bracket, and put quotes around texts that hold = # ( ) or a comma"
    elif equals and _is_readable(shlex.split(_quoted(override))[0]):
        remedy = f"values that hold = # ( ) or the like need quotes inside quotes: {_quoted(override)}"
    return f"{override} cannot be read ({reason}); {remedy}"


def _quoted(override: str) -> str:
    """An argument as it is typed in a shell so that Hydra takes its value for one text."""
    key, _, value = override.partition("=")
    return shlex.quote(f"{key}={QuotedString(value, Quote.double).with_quotes()}")


def _is_readable(override: str) -> bool:
    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        return False
    return True
