"""What a user types: --help, keys that do not exist, lists of options, texts that need quotes."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT
from hydra_application import Ended, experiment

from mechint.config.help import Conf, ConfigFile

CONF = ROOT / "conf"
PROGRAMS = sorted(path.stem for path in (ROOT / "experiments").glob("*.py"))
Program = Callable[..., Ended]


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """Runs `python experiments/NAME.py ARGUMENTS` below tmp_path, in a shell's words."""

    def run(name: str, arguments: str) -> Ended:
        with experiment(tmp_path, f"{name}.py") as start:
            return start(*shlex.split(arguments), small=False)

    return run


def refused(program: Program, name: str, arguments: str, directory: Path) -> str:
    """The one line that says what is wrong; nothing is written."""
    ended = program(name, arguments)
    assert ended.code == 2, ended.out
    assert ended.err.count("\n") == 1, ended.err
    assert not list(directory.iterdir())
    return ended.err


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_help_has_the_programs_keys_and_groups_with_their_comments(name: str, program: Program) -> None:
    ended = program(name, "--help")
    assert ended.code == 0, ended.err
    text = " ".join(ended.out.split())
    primary = ConfigFile.read(CONF / f"{name}.yaml")
    groups = [next(iter(entry)) for entry in primary.defaults if isinstance(entry, dict)]
    for key, (_, comment) in primary.keys().items():
        if not key.startswith(("hydra.", *(f"{group}." for group in groups))):
            assert f" {key}=" in text
            assert comment in text
    shown = set(re.findall(r"^([a-z_/]+)=", ended.out, re.MULTILINE)) - {"hydra/launcher"}
    assert shown == {group for group in groups if not group.startswith("override")}
    for group in shown:
        for path in (CONF / group).glob("*.yaml"):
            assert f"{group}={path.stem} " in text
            option = ConfigFile.read(path)
            assert option.about in text
            below = f"{group}." if option.package == "_global_" else ""
            for key, (_, comment) in option.keys(below).items():
                assert key.rpartition(".")[2] + "=" in text
                assert comment in text or f"{group}.{key}" in primary.comments  # what is said there counts


@pytest.mark.slow
def test_help_speaks_of_what_is_chosen(program: Program) -> None:
    text = program("analyze", "mask=hard_concrete trainer.batch_size=3 --help").out
    assert "mask=hard_concrete\n" in text
    assert "mask.unit=channel " in text
    assert "trainer.batch_size=3 " in text
    assert "optimizer=adamw\n" in text
    assert "planted" not in text


def test_every_key_has_a_comment_and_every_option_a_description() -> None:
    conf = Conf([CONF])
    files = [path.relative_to(CONF).with_suffix("") for path in CONF.rglob("*.yaml")]
    for file in files:
        assert conf.about(str(file)), file
        group = str(file.parent)
        alone = ConfigFile.read(CONF / f"{file}.yaml").keys()
        keys = alone if group == "." else conf.option_keys(group, file.name)
        bare = {key for key, (_, comment) in keys.items() if not comment and not key.startswith("hydra.")}
        assert group in ("experiment", "shared") or not bare, (file, bare)


# What is typed, and words of the one line that refuses it; REFUSED_SLOWLY is more of the same kinds.
REFUSED = [
    ("analyze", "sparsity=0.9", "there is no key sparsity; do you mean target_sparsity"),
    ("analyze", "-m +foo=1,2", "there is no key foo"),
    ("analyze", "lr=0.1", "do you mean optimizer.lr?"),
    ("analyze", "+trainer.colour=1", "trainer has no key colour; its keys: "),
    ("analyze", "mask=options", "Available options in 'mask'"),
    ("analyze", "mask=[a,b]", "mask takes one option, not a list"),
    ("analyze", "-m target_sparsity=half,0.5", "target_sparsity=half is neither a number nor"),
    ("compare", "+foo=1 tree=x", "there is no key foo; keys: baseline, "),
    ("visualize", "+foo=1 run=x", "there is no key foo"),
    ("validate", "+planted.mine=1", "planted.mine names no class"),
    ("pretrain", "pretrainer.warmpu=1", "do you mean pretrainer.warmup?"),
    ("benchmark", "+foo=1", "there is no key foo; keys: output_dir, what"),
    ("evaluate", "run=x dataset.path=book.txt", "give dataset=NAME as well"),
]
REFUSED_SLOWLY = [
    ("analyze", "+sparsity=0.9", "there is no key sparsity; do you mean target_sparsity"),
    ("analyze", "+foo=1", "there is no key foo; keys: ablation, "),
    ("analyze", "foo.bar=1", "there is no key foo"),
    ("analyze", "trainer.colour=1", "trainer has no key colour; its keys: activation_checkpointing, "),
    ("analyze", "trainer.batchsize=1", "do you mean trainer.batch_size?"),
    ("analyze", "+logger.sink=1", "logger has no key sink; do you mean logger.sinks?"),
    ("analyze", "mask=../shared/mask", "mask names no class to build"),
    ("analyze", "~mask", "mask is null"),
    ("analyze", "mask=[topk,fisher]", "mask takes one option, not a list"),
    ("analyze", "-m seed=0,1 mask=topk,[topk,fisher]", "mask takes one option, not a list"),
    ("analyze", "logger=[none,nosuch]", "logger has no option nosuch"),
    ("analyze", "-m seed=0,1 target_sparsity=0.5,0.9,half", "target_sparsity=half is neither"),
    (
        "analyze",
        "-m seed=0,1 mask=topk,hard_concrete mask.finishing_trials=1,x",
        "mask.finishing_trials=x",
    ),
    ("analyze", "hydra.job.chdir=true", "hydra.job.chdir=true is not supported"),
    ("visualize", "hydra.job.chdir=true run=x", "hydra.job.chdir=true is not supported"),
    ("validate", "+foo=1", "there is no key foo"),
    ("validate", "planted=options", "Available options in 'planted'"),
    ("pretrain", "+foo=1", "there is no key foo"),
    ("evaluate", "+foo=1 run=x", "there is no key foo"),
    ("evaluate", "", "give run=DIR"),
    ("evaluate", "run=nosuch", "nosuch"),
]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [*REFUSED, *(pytest.param(*case, marks=pytest.mark.slow) for case in REFUSED_SLOWLY)],
)
def test_what_does_not_exist_is_refused_before_anything_is_written(
    name: str, arguments: str, message: str, program: Program, tmp_path: Path
) -> None:
    assert message in refused(program, name, arguments, tmp_path)


def test_an_experiment_file_with_an_unknown_key_is_named(program: Program, tmp_path: Path) -> None:
    file = tmp_path / "experiment" / "mine.yaml"
    file.parent.mkdir()
    file.write_text("# @package _global_\nsparsity: 0.9\n")
    ended = program("analyze", f"--config-dir {tmp_path} experiment=mine")
    assert ended.code == 2
    assert "experiment/mine.yaml: there is no key sparsity; do you mean target_sparsity" in ended.err


@pytest.mark.parametrize(
    "path",
    [
        "run 1 (old)/a,b.pt",
        *(pytest.param(path, marks=pytest.mark.slow) for path in ("a=b.pt", "a(b.pt", "a#b.pt")),
        *(pytest.param(path, marks=pytest.mark.slow) for path in ("it's=1.pt", "a@b=c.pt")),
    ],
)
def test_paths_that_need_quotes_are_refused_with_what_to_type(
    path: str, program: Program, tmp_path: Path
) -> None:
    message = refused(program, "analyze", shlex.quote(f"checkpoint={path}"), tmp_path)
    typed = message.strip().partition(": ")[2].rpartition(": ")[2]
    assert shlex.split(typed) == [f'checkpoint="{path}"']
    read = program("analyze", typed)  # now it is only the file that is missing
    assert read.code == 2
    assert f"checkpoint {path}: there is no such file" in read.err


def test_other_words_that_cannot_be_read(program: Program, tmp_path: Path) -> None:
    assert "close every bracket" in refused(program, "analyze", "'target_sparsity=[0.5'", tmp_path)
    assert "KEY=VALUE" in refused(program, "analyze", "checkpoint", tmp_path)
