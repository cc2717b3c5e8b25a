"""What `--help` prints: a program's keys and groups, with the comments that stand beside them in conf/."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

# Names longer than this have their comment on the next line.
COLUMN = 42
LONGEST_VALUE = 60
HYDRA = """\
Hydra's own options: -m sweeps over values with commas (KEY=1,2,3), --config-dir DIR adds options of your own,
--cfg job prints the configuration, --hydra-help tells the rest."""

KEY = re.compile(r"^(?P<indent> *)(?P<key>[\w./]+):(?P<value>.*?)(?:\s#\s*(?P<comment>.*))?$")


@dataclass
class ConfigFile:
    """A YAML file of conf/ as its readers see it.

    about: the comment at its top. comments: the comment of each key, by its full name in the file, from the same line
    or the lines above. content: the keys and values. package: where its keys go, as its first line says.
    """

    about: str
    comments: dict[str, str]
    content: dict[Any, Any]
    package: str = ""

    @classmethod
    def read(cls, path: Path) -> ConfigFile:
        """Read a file of block mappings, as all of conf/ are."""
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        package = re.match(r"# @package (\S+)", text)
        lines = lines[1:] if package else lines
        head = 0
        while head < len(lines) and lines[head].startswith("#"):
            head += 1
        about = " ".join(line.lstrip("# ") for line in lines[:head])
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        assert isinstance(content, dict), path
        return cls(about, _comments(lines[head:]), content, package[1] if package else "")

    @property
    def defaults(self) -> list[Any]:
        """What the file is put together from: strings are files, mappings choices."""
        return self.content.get("defaults", [])

    def keys(self, below: str = "") -> dict[str, tuple[Any, str]]:
        """Value and comment of every key, or of those below one, by their names there."""
        content = {key: value for key, value in self.content.items() if key != "defaults"}
        return {
            name.removeprefix(below): (value, self.comments.get(name, ""))
            for name, value in _leaves(content)
            if name.startswith(below)
        }


def _comments(lines: list[str]) -> dict[str, str]:
    comments: dict[str, str] = {}
    above: list[str] = []
    parents: list[tuple[int, str]] = []
    for line in lines:
        if line.lstrip().startswith("#"):
            above.append(line.strip().lstrip("# "))
            continue
        if found := KEY.match(line):
            indent = len(found["indent"])
            parents = [*((depth, name) for depth, name in parents if depth < indent), (indent, found["key"])]
            comments[".".join(name for _, name in parents)] = found["comment"] or " ".join(above)
        above = []
    return comments


def _leaves(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key with a value, by its full name; keys that Hydra reads itself are left out."""
    for key, value in content.items():
        if str(key).startswith("_"):
            continue
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@dataclass
class Key:
    """A key of a group: its options share it, or some of them have it."""

    value: Any
    comment: str
    options: list[str] = field(default_factory=list)


class Conf:
    """The directories of configurations that a program reads, its own first."""

    def __init__(self, directories: list[Path]) -> None:
        self.directories = directories

    def file(self, name: str) -> ConfigFile | None:
        """The file that Hydra finds under a name such as mask/topk."""
        found = (directory / f"{name}.yaml" for directory in self.directories)
        return next((ConfigFile.read(path) for path in found if path.is_file()), None)

    def options(self, group: str) -> list[str]:
        """The names of a group's options."""
        return sorted({path.stem for place in self.directories for path in (place / group).glob("*.yaml")})

    def about(self, name: str) -> str:
        """The comment at the top of a file."""
        file = self.file(name)
        return file.about if file else ""

    def option_keys(self, group: str, option: str) -> dict[str, tuple[Any, str]]:
        """Value and comment of an option's keys, those included that it shares with others.

        The keys of planted models, of which several can be chosen at once, stand below the option's own name.
        """
        file = self.file(f"{group}/{option}")
        assert file is not None, option
        keys: dict[str, tuple[Any, str]] = {}
        for entry in file.defaults:
            if isinstance(entry, str) and entry.startswith("/shared/"):
                shared = self.file(entry.partition("@")[0].lstrip("/"))
                keys |= shared.keys() if shared else {}
            elif entry in self.options(group) and group != "planted":  # an option that changes another one
                keys |= self.option_keys(group, entry)
        below = f"{group}." if file.package == "_global_" else f"{option}." if group == "planted" else ""
        for name, (value, comment) in file.keys(below).items():
            # An option that only sets a shared key to another value need not repeat what it means.
            keys[name] = (value, comment or keys.get(name, (None, ""))[1])
        return keys

    def group_keys(self, group: str, chosen: list[str]) -> dict[tuple[str, str], Key]:
        """Every key of any option by name and comment; its value is that of the option chosen, where it has one."""
        keys: dict[tuple[str, str], Key] = {}
        options = self.options(group)
        for option in [*chosen, *(name for name in options if name not in chosen)]:
            for name, (value, comment) in self.option_keys(group, option).items():
                keys.setdefault((name, comment), Key(value, comment)).options.append(option)
        return keys


def program_help(about: str, config: DictConfig) -> str:
    """The help of a program, from what stands above its main function and from its composed configuration.

    Dollar signs are doubled, as Hydra's templates need them.
    """
    sources = config.hydra.runtime.config_sources
    conf = Conf([Path(source.path) for source in sources if source.schema == "file"])
    primary = conf.file(str(config.hydra.job.config_name))
    assert primary is not None
    composed = OmegaConf.to_container(config, resolve=False)
    assert isinstance(composed, dict)
    values = dict(_leaves(composed))
    choices = {str(group): _names(option) for group, option in config.hydra.runtime.choices.items()}
    named = [next(iter(entry)) for entry in primary.defaults if isinstance(entry, Mapping)]
    groups = [group for group in named if group in choices]
    own = {name: found for name, found in primary.keys().items() if not name.startswith("hydra.")}
    root = _lines(
        (f"{name}={shown_value(values.get(name, value))}", comment)
        for name, (value, comment) in own.items()
        if name.partition(".")[0] not in groups
    )
    if "sweep" in primary.content.get("hydra", {}):  # a program whose sweeps are worth a cluster
        groups.append("hydra/launcher")
    parts = [
        about.strip(),
        f"KEYS: set one with KEY=VALUE{root}",
        "GROUPS: choose an option with GROUP=OPTION, set its keys with GROUP.KEY=VALUE" if groups else "",
        *(_group(conf, group, choices[group], values, own) for group in groups),
        HYDRA,
    ]
    return "\n\n".join(part for part in parts if part).replace("$", "$$")


def _names(option: Any) -> list[str]:
    return [] if option is None else [option] if isinstance(option, str) else [str(name) for name in option]


def _group(
    conf: Conf, group: str, chosen: list[str], values: dict[str, Any], own: dict[str, tuple[Any, str]]
) -> str:
    """A group's options and keys; where the program's own file speaks of a key, that is what counts."""
    options = conf.options(group)
    rows = [(f"{group}={option}", conf.about(f"{group}/{option}")) for option in options]
    current = ",".join(chosen) or "null"
    chosen = [option for option in chosen if option in options]
    keys = conf.group_keys(group, chosen)
    # Of planted models one option stands for all the others.
    everyone = set().union(*(key.options for key in keys.values())) if group == "planted" else options
    for (name, comment), key in keys.items():
        path = f"{group.replace('/', '.')}.{name}"
        of_chosen = [option for option in chosen if option in key.options]
        place = path.replace(".", f".{of_chosen[0]}.", 1) if group == "planted" and of_chosen else path
        value = values.get(place, key.value) if of_chosen else key.value
        if path in own and of_chosen:
            comment = own[path][1] or comment
        some = f" [{' '.join(sorted(key.options))}]" if len(key.options) < len(everyone) else ""
        shown = path.replace(".", ".NAME.", 1) if group == "planted" else path
        rows.append((f"{shown}={shown_value(value)}", f"{comment}{some}".strip()))
    return f"{group}={current}{_lines(rows)}" if rows else ""


def shown_value(value: Any) -> str:
    """A value as on the command line, cut off where it is long."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, list):
        value = f"[{', '.join(_shown_item(item) for item in value)}]"
    text = str(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 4]} ..."


def _shown_item(item: Any) -> str:
    """An item of a list: an object by its class, what has a label by that."""
    if not isinstance(item, dict):
        return shown_value(item)
    return str(item["_target_"]).rpartition(".")[2] if "_target_" in item else ", ".join(map(str, item))


def _lines(rows: Iterable[tuple[str, str]]) -> str:
    """Names in a column and comments in another, as wide as the terminal."""
    width = max(60, min(140, shutil.get_terminal_size((120, 24)).columns))
    text = ""
    for name, comment in rows:
        head = f"  {name}".ljust(COLUMN)
        if len(head.rstrip()) > COLUMN - 2 and comment:
            text += f"\n{head.rstrip()}"
            head = " " * COLUMN
        wrapped = textwrap.wrap(comment, width - COLUMN, break_on_hyphens=False) or [""]
        text += f"\n{head}{wrapped[0]}".rstrip()
        text += "".join(f"\n{' ' * COLUMN}{line}" for line in wrapped[1:])
    return text
