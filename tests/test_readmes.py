"""What the README files say: commands whose keys exist, and links that lead somewhere."""

import functools
import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT
from hydra.core.override_parser.overrides_parser import OverridesParser

from mechint.config.help import Conf

READMES = sorted(
    path
    for path in ROOT.glob("**/README.md")
    if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)  # tools' own folders
)
PROGRAMS = sorted((ROOT / "experiments").glob("*.py"))
CONF = Conf([ROOT / "conf"])
# Flags that take a value of their own.
TAKE_A_VALUE = ("--cfg", "--config-dir")


def commands(text: str) -> list[str]:
    """The lines that start a program."""
    return re.findall(r"^(?:python|torchrun .*?) (experiments/.*)$", text, re.MULTILINE)


@functools.cache
def keys_of(group: str) -> set[str]:
    """The keys of all options of a group."""
    return {key for option in CONF.options(group) for key in CONF.option_keys(group, option)}


@functools.cache
def of_program(name: str) -> tuple[list[str], set[str]]:
    """The groups of a program, and the keys in its own file."""
    primary = CONF.file(name)
    assert primary is not None, name
    return [next(iter(entry)) for entry in primary.defaults if isinstance(entry, dict)], {*primary.keys()}


def unknown(command: str) -> list[str]:
    """The arguments of a command that name no key, group or option."""
    program, *words = shlex.split(command, comments=True)
    if "--config-dir" in words:  # whose options are the user's own
        return []
    arguments = [
        word
        for word, before in zip(words, ["", *words], strict=False)
        if not word.startswith("-") and before not in TAKE_A_VALUE
    ]
    groups, own = of_program(Path(program).stem)
    wrong = []
    for override in OverridesParser.create().parse_overrides(arguments):
        key = override.key_or_group
        group, _, name = key.partition(".")
        if key in groups:
            named = str(override.input_line).partition("=")[2].strip("[]").split(",")
            known = set(named) <= {*CONF.options(key), "null"}
        elif group in groups:
            known = name in keys_of(group) or key in own
        else:
            known = key in own or key == "checkpoint_glob" or key.startswith("hydra")
        if not known:
            wrong.append(override.input_line)
    return [str(line) for line in wrong]


@pytest.mark.parametrize("path", [*READMES, *PROGRAMS], ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_name_keys_and_options_that_exist(path: Path) -> None:
    found = commands(path.read_text(encoding="utf-8"))
    assert found or path.parent.name in ("mechint", "checkpoints")
    wrong = {command: unknown(command) for command in found}
    assert not {command: names for command, names in wrong.items() if names}


def test_an_unknown_key_or_option_is_found() -> None:
    assert unknown("experiments/analyze.py mask=fisher -m seed=0,1 # comment") == []
    assert unknown("experiments/analyze.py --cfg job mask=topk,fishy sparsity=0.9 mask.unti=head") == [
        "mask=topk,fishy",
        "sparsity=0.9",
        "mask.unti=head",
    ]


@pytest.mark.parametrize("path", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        file, _, anchor = target.partition("#")
        there = path.parent / file if file else path
        assert there.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, target


def test_the_first_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
