"""Every configuration option composes, resolves and fits the class it names."""

import copy
import functools
import inspect
import itertools
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf, open_dict
from tiers import rest_slow

from mechint import config as configuration
from mechint.config.checking import misfit
from mechint.config.errors import error_line
from mechint.config.help import Conf
from mechint.config.jobs import ON_SLURM
from mechint.config.reference import rewritten
from mechint.errors import UserError
from mechint.learning.recipe import Recipe

CONF = ROOT / "conf"
ANALYZE_GROUPS = [
    "model",
    "dataset",
    "optimizer",
    "sparsity_schedule",
    "mask",
    "objective",
    "ablation",
    "basis",
    "logger",
    "visualizer",
    "trainer",
    "stability",
    "controls",
    "experiment",
    "sweep",
]
# Options whose mandatory keys a user gives on the command line.
NEEDED = {
    ("dataset", "text"): ["dataset.path=book.txt"],
    ("dataset", "tokens"): ["dataset.path=tokens"],
    ("dataset", "hf"): ["dataset.name=some/text"],
}


def options(group: str) -> list[str]:
    """The option names of a configuration group."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@functools.cache
def _composed(name: str, overrides: tuple[str, ...]) -> DictConfig:
    configuration.register()
    with initialize_config_dir(config_dir=str(CONF), version_base=configuration.VERSION_BASE):
        return compose(name, list(overrides), return_hydra_config=True)


def composed(name: str, overrides: list[str]) -> DictConfig:
    """A configuration as a run would see it."""
    config = copy.deepcopy(_composed(name, tuple(overrides)))
    HydraConfig.instance().set_config(config)
    with open_dict(config):
        hydra = config.pop("hydra")
    config._metadata.object_type = None
    OmegaConf.set_struct(config, False)
    config["hydra"] = hydra
    return config


def together() -> list[list[str]]:
    """Choices in which every option of `analyze` stands at least once; to compose takes most of a test."""
    alone = ("experiment", "sweep")  # which choose other options themselves
    groups = {group: options(group) for group in ANALYZE_GROUPS if group not in alone}
    rows = [
        [f"{group}={names[row % len(names)]}" for group, names in groups.items()]
        for row in range(max(len(names) for names in groups.values()))
    ]
    return rows + [[f"{group}={option}"] for group in alone for option in options(group)]


def described_by(chosen: list[str]) -> list[str]:
    """The same choices with the keys that a user has to give for them."""
    needed = (NEEDED.get((group, option), []) for group, _, option in (one.partition("=") for one in chosen))
    return [*chosen, *itertools.chain(*needed)]


def name(chosen: str | list[str]) -> str:
    """The name of a test: a program, or all chosen options, so that `-k` finds each."""
    return chosen if isinstance(chosen, str) else ",".join(chosen)


@pytest.mark.parametrize("chosen", together(), ids=name)
def test_every_option_fits_its_class(
    chosen: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "a.pt").touch()
    config = composed("analyze", described_by(chosen))
    run_dir = OmegaConf.to_container(config.hydra.run, resolve=True)
    assert run_dir["dir"].startswith("outputs/runs/")  # type: ignore[index, call-overload]
    sweep_dir = OmegaConf.to_container(config.hydra.sweep.copy(), resolve=False)
    assert "${hydra.job.num}" in sweep_dir["subdir"]  # type: ignore[index, call-overload, operator]
    del config["hydra"]
    configuration.check(config)
    plain = configuration.plain_config(config)
    assert plain["checkpoint"] == "bundled:baseline"
    for key in (
        "model",
        "mask",
        "objective",
        "ablation",
        "basis",
        "sparsity_schedule",
        "trainer",
        "visualizer",
        "dataset",
        "stability",
    ):
        assert configuration.build(config[key]) is not None


# Values in conf/ that are not their class's default, and why.
OTHER_DEFAULTS = {
    "architecture.kv_tied": "kv_tied is the option whose only point it is",
    "dataset.name": "fineweb_edu is hf with a name",
    "dataset.config_name": "as above",
    "logger.sinks.wandb.project": "from logger.project",
    "logger.sinks.wandb.group": "from logger.group",
    "optimizer.weight_decay": "the optimizer alone has none; the default method was tuned with it",
    "sparsity_schedule.end": "a schedule alone lasts the whole run; methods say when they reach the target",
    "trainer.learning_rate_decay": "the trainer alone keeps the rate; the default method was tuned with it",
    "what.finishing_trials": "methods are compared with the same finishing pass",
}


@pytest.mark.parametrize(
    ("program", "chosen"),
    [
        *(("analyze", chosen) for chosen in together() if len(chosen) > 1),
        *(
            (program, [f"{group}={option}"])
            for program, group in (
                ("benchmark", "what"),
                ("pretrain", "architecture"),
                ("validate", "planted"),
            )
            for option in options(group)
        ),
    ],
    ids=name,
)
def test_values_in_conf_are_the_defaults_of_their_classes(program: str, chosen: list[str]) -> None:
    config = composed(program, chosen)
    for group in (one.partition("=")[0] for one in chosen):
        plain = OmegaConf.to_container(config[group], resolve=False)
        for path, node in described(plain, group):
            made = get_object(node["_target_"])
            parameters = inspect.signature(made).parameters
            factories = {f.name: f.default_factory for f in fields(made)} if is_dataclass(made) else {}
            for key, value in node.items():
                default = parameters[key].default if key in parameters else inspect.Parameter.empty
                if (
                    default is inspect.Parameter.empty
                    or f"{path}.{key}" in OTHER_DEFAULTS
                    or group == "planted"
                ):
                    continue
                if factories.get(key, MISSING) is not MISSING:
                    default = factories[key]()  # type: ignore[operator]
                assert value == (list(default) if isinstance(default, tuple) else default), f"{path}.{key}"


def described(node: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every description of an object of ours below a node."""
    if isinstance(node, dict):
        if str(node.get("_target_")).startswith("mechint."):
            yield path, node
        for key, value in node.items():
            yield from described(value, f"{path}.{key}")


def test_run_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    named = composed("analyze", ["checkpoint=ckpts/step_100/model.pt", "dataset=tokens"])
    assert named.hydra.run.dir.startswith("outputs/runs/tokens_step_100")
    assert named.hydra.sweep.dir.startswith("outputs/sweeps/2")
    chosen = composed("analyze", ["output_dir=results"])
    assert chosen.hydra.run.dir == chosen.hydra.sweep.dir == "results"
    Path("outputs/runs/x").mkdir(parents=True)
    assert configuration.job_directory(None, "outputs/runs/x") == "outputs/runs/x-2"


QUICK = ("topk", "hard_concrete", "fisher")  # methods of each kind


@pytest.mark.parametrize("option", rest_slow(options("mask"), QUICK))
def test_a_methods_file_and_the_python_interface_agree(option: str) -> None:
    config = composed("analyze", [f"mask={option}"])
    method = configuration.build(config.mask)
    assert method == type(method)()
    ours, theirs = Recipe(method=method), configuration.build_recipe(config)
    optimizers = []
    for recipe in (ours, theirs):
        assert recipe.make_optimizer is not None
        optimizers.append(recipe.make_optimizer([{"params": [torch.zeros(1, requires_grad=True)]}]))
    assert type(optimizers[0]) is type(optimizers[1])
    assert optimizers[0].defaults == optimizers[1].defaults
    assert ours.schedule == theirs.schedule == type(method).schedule
    assert (ours.objective.name, ours.steps) == (theirs.objective.name, theirs.steps)


@pytest.mark.parametrize("architecture", options("architecture"))
def test_pretraining_options(architecture: str) -> None:
    config = composed("pretrain", [f"architecture={architecture}"])
    assert config.name == architecture
    del config["hydra"]
    configuration.check(config)
    assert configuration.build(config.architecture).num_layers == 4


def test_a_command_line_choice_wins_over_a_methods_own_optimizer() -> None:
    assert composed("analyze", ["mask=hard_concrete"]).optimizer._target_ == "torch.optim.AdamW"
    assert (
        composed("analyze", ["mask=hard_concrete", "optimizer=sgd"]).optimizer._target_ == "torch.optim.SGD"
    )


def test_slurm_gpu_jobs_have_one_gpu_each_and_go_on_after_their_limit() -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    launcher = composed("analyze", ["hydra/launcher=slurm_gpu", "hydra.launcher.partition=p"]).hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher")
    assert (launcher.gpus_per_node, launcher.tasks_per_node, launcher.partition) == (1, 1, "p")
    assert launcher.max_num_timeout > 0
    assert launcher.signal_delay_s < 60 * launcher.timeout_min
    assert "slurm_gpu" in ON_SLURM


@pytest.mark.parametrize("what", options("what"))
def test_benchmark_options(what: str) -> None:
    config = composed("benchmark", [f"what={what}"])
    assert config.hydra.run.dir.startswith(f"outputs/benchmarks/{what}/")
    del config["hydra"]
    configuration.check(config)
    assert configuration.build(config.what) is not None


def test_loggers_combine() -> None:
    config = composed("analyze", ["logger=[wandb,tensorboard]", "logger.project=mine"])
    assert set(config.logger.sinks) == {"wandb", "tensorboard"}
    assert config.logger.sinks.wandb.project == "mine"


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"_target_": "os.system", "command": "true"}, "not allowed"),
        ({"_target_": "mechint.methods.TopK", "temprature": 1}, "temprature"),
        ({"figures": [{"_target_": "subprocess.run"}]}, "not allowed"),
    ],
)
def test_only_known_classes_and_keys_are_built(node: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        configuration.build(OmegaConf.create(node))


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (True, bool, None),
        ("yes", bool, "true or false"),
        (1, bool, "true or false"),
        (3, int, None),
        (True, int, "a whole number"),
        (2.5, int, "a whole number"),
        (3, float, None),
        ("3", float, "a number"),
        (None, float | None, None),
        ("x", float | None, "a number or null"),
        ("auto", int | str, None),
        (2.5, int | str, "a whole number or text"),
        ([1, 2], list[int], None),
        (["a"], list[int], "a list"),
        ((0.5,), Sequence[float], None),
        (0.5, Sequence[float], "a list"),
        ("anything", Any, None),
        ("anything", Path, None),
        ({"a": 1}, str, "text"),
    ],
)
def test_values_are_held_against_annotations(value: Any, annotation: Any, expected: str | None) -> None:
    assert misfit(value, annotation) == expected


def test_messages_do_nothing_to_a_terminal() -> None:
    assert error_line(UserError("a\x1b[31mred\x1b[0m\nb\x07c\x9b")) == "a red b c"


def test_the_reference_in_conf_is_up_to_date() -> None:
    text = (CONF / "README.md").read_text(encoding="utf-8")
    assert rewritten(text, Conf([CONF])) == text, "the comments in conf/ have changed: run make reference"


@pytest.mark.slow
def test_the_reference_follows_the_comments(tmp_path: Path) -> None:
    conf = tmp_path / "conf"
    shutil.copytree(CONF, conf)
    path = conf / "optimizer" / "adam.yaml"
    path.write_text(
        path.read_text(encoding="utf-8") + "fused: false  # in | one <kernel>\n", encoding="utf-8"
    )
    text = rewritten((CONF / "README.md").read_text(encoding="utf-8"), Conf([conf]))
    assert "| `optimizer.fused` | `false` | in \\| one &lt;kernel> | adam |" in text
    assert text.startswith("# Configuration\n")
    for option in options("mask"):
        assert f"| `mask={option}` |" in text
