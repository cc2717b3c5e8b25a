"""Writes the tables of conf/README.md: every group, option and key, from the comments in conf/.

python -m mechint.config.reference        # or: make reference
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mechint.config.help import Conf, shown_value

CONF = Path(__file__).resolve().parents[2] / "conf"
PROGRAMS = ("analyze", "evaluate", "compare", "visualize", "benchmark", "validate", "pretrain")
BEGIN, END = "<!-- generated -->", "<!-- end -->"
# Groups that no program names in its defaults list.
LAUNCHERS = "hydra/launcher"


def rewritten(text: str, conf: Conf) -> str:
    """The text of conf/README.md with its generated part made anew."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{tables(conf)}\n{END}{after}"


def tables(conf: Conf) -> str:
    """Markdown: the keys of every program, then the options and keys of every group."""
    programs = {program: _groups(conf, program) for program in PROGRAMS}
    groups = [*dict.fromkeys(group for found in programs.values() for group in found), LAUNCHERS]
    parts = ["## Programs", *(_program(conf, program, found) for program, found in programs.items())]
    parts += ["## Groups", *(_group(conf, group) for group in groups)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _groups(conf: Conf, program: str) -> dict[str, str]:
    """The groups that a program chooses options from, each with its default option."""
    file = conf.file(program)
    assert file is not None, program
    chosen = [next(iter(entry.items())) for entry in file.defaults if isinstance(entry, dict)]
    return {group: _default(option) for group, option in chosen if not group.startswith("override ")}


def _program(conf: Conf, program: str, groups: dict[str, str]) -> str:
    """What a program is for, its own keys, and its groups."""
    file = conf.file(program)
    assert file is not None, program
    names = [f"[`{group}={option}`](#{group})" for group, option in groups.items()]
    if "sweep" in file.content.get("hydra", {}) and "sweep" in groups:
        names.append(f"[`{LAUNCHERS}=basic`](#{LAUNCHERS.replace('/', '')})")
    rows = [
        (f"`{name}`", _code(value), _cell(comment))
        for name, (value, comment) in file.keys().items()
        if not name.startswith("hydra.")
    ]
    return "\n\n".join(
        [
            f"### {program}.py",
            _cell(file.about),
            *([f"Groups: {', '.join(names)}."] if names else []),
            _table(("key", "default", "meaning"), rows),
        ]
    )


def _group(conf: Conf, group: str) -> str:
    """The options of a group, and every key that one of them has."""
    options = conf.options(group)
    parts = [f"### {group}"]
    parts.append(
        _table(
            ("option", "meaning"),
            [(f"`{group}={option}`", _cell(conf.about(f"{group}/{option}"))) for option in options],
        )
    )
    prefix = f"{group.replace('/', '.')}." + ("NAME." if group == "planted" else "")
    keys: dict[tuple[str, str], dict[str, Any]] = {}  # (name, comment) -> option -> default
    for option in options:
        for name, (value, comment) in conf.option_keys(group, option).items():
            keys.setdefault((f"{prefix}{name}", comment), {})[option] = value
        for name, (value, comment) in _root_keys(conf, group, option).items():
            if comment:  # the others are a program's own
                keys.setdefault((name, comment), {})[option] = value
    # Of planted models one option stands for all the others.
    everyone = set().union(*keys.values()) if group == "planted" else set(options)
    rows: list[tuple[str, ...]] = []
    for (name, comment), values in keys.items():
        having = "all" if set(values) == everyone else ", ".join(values)
        rows.append((f"`{name}`", _defaults(values), _cell(comment), having))
    head: tuple[str, ...] = ("key", "default", "meaning", "options")
    if all(row[-1] == "all" for row in rows):
        head, rows = head[:-1], [row[:-1] for row in rows]
    parts.append(_table(head, rows) if rows else "")
    return "\n\n".join(part for part in parts if part)


def _root_keys(conf: Conf, group: str, option: str) -> dict[str, tuple[Any, str]]:
    """The keys that an option sets at the root and not in its own group, as those of experiment and sweep do."""
    file = conf.file(f"{group}/{option}")
    assert file is not None, option
    if file.package != "_global_" or group in file.content:
        return {}
    return {name: found for name, found in file.keys().items() if not name.startswith("hydra.")}


def _defaults(values: dict[str, Any]) -> str:
    """The default of a key: the one that most options have, then those that differ."""
    different: dict[str, list[str]] = {}
    for option, value in values.items():
        different.setdefault(_code(value), []).append(option)
    usual, *others = sorted(different.items(), key=lambda found: -len(found[1]))
    if others and len(usual[1]) == 1:  # none is usual
        usual = (f"{usual[0]} ({usual[1][0]})", [])
    return "; ".join([usual[0], *(f"{value} ({', '.join(options)})" for value, options in others)])


def _default(option: Any) -> str:
    return ",".join(option) if isinstance(option, list) else "null" if option is None else str(option)


def _code(value: Any) -> str:
    return f"`{shown_value(value)}`".replace("|", r"\|")


def _cell(comment: str) -> str:
    """A comment as Markdown shows it word for word, in a table too; what stands in backticks stays code."""
    pieces = comment.split("`")
    pieces[::2] = [
        piece.replace("<", "&lt;").replace("*", r"\*").replace("_", r"\_") for piece in pieces[::2]
    ]
    return "`".join(pieces).replace("|", r"\|")


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Rewrite conf/README.md in place."""
    path = CONF / "README.md"
    path.write_text(rewritten(path.read_text(encoding="utf-8"), Conf([CONF])), encoding="utf-8")


if __name__ == "__main__":
    main()
