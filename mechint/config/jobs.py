"""The current Hydra job, and the jobs of a sweep that is about to start."""

from __future__ import annotations

import itertools
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import filter_overrides
from hydra.types import RunMode
from omegaconf import DictConfig

from mechint.errors import UserError

# Launchers whose jobs are processes of their own, and those of them on a cluster.
ON_SLURM = ("submitit_slurm", "slurm_gpu")
OWN_PROCESS = (*ON_SLURM, "submitit_local")

# Launchers whose jobs share the devices of this machine.
SIDE_BY_SIDE = ("joblib", "submitit_local")


def output_directory() -> Path:
    """The directory of the current Hydra job."""
    return Path(HydraConfig.get().runtime.output_dir)


def choice(group: str) -> str:
    """Which option of a configuration group the current Hydra job uses."""
    return str(HydraConfig.get().runtime.choices.get(group))


def sweep_name() -> str | None:
    """What the runs of one multirun have in common, None in a single run."""
    return Path(HydraConfig.get().sweep.dir).absolute().name if is_sweep() else None


def is_sweep() -> bool:
    """Whether the current Hydra job is one of a multirun."""
    return HydraConfig.get().mode == RunMode.MULTIRUN


def swept(hydra: DictConfig) -> list[list[str]] | None:
    """The values that each key takes in a sweep, as overrides; a job has one of each.

    None where not Hydra's own sweeper but another one chooses them, perhaps while the sweep goes on. Raises UserError
    for a key without any value, of which Hydra would make a sweep without jobs and call it a success.
    """
    if not str(hydra.sweeper.get("_target_")).endswith(".BasicSweeper"):
        return None
    lines = [f"{key}={value}" for key, value in (hydra.sweeper.params or {}).items()]
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    values: dict[str, list[str]] = {}
    for override in parser.parse_overrides(lines + list(hydra.overrides.task)):
        key = override.get_key_element()
        if not override.is_sweep_override():
            values[key] = [f"{key}={override.get_value_element_as_str()}"]
        elif override.is_discrete_sweep():
            values[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            raise UserError(f"{override.input_line}: only listed values can be swept, as in {key}=1,2,3")
        if not values[key]:
            raise UserError(_no_value(override))
    return list(values.values())


def _no_value(override: Override) -> str:
    line = override.input_line or override.key_or_group
    pattern = line.partition("=")[2].removeprefix("glob(").removesuffix(")")
    remedy = f"; to analyse several: -m sweep=checkpoints 'checkpoint_glob={pattern}'"
    return f"{line} matches nothing" + (remedy if line.startswith("checkpoint=") else "")


def job_names(values: list[list[str]]) -> list[str]:
    """What is peculiar to each job of a sweep."""
    jobs = [list(job) for job in itertools.product(*values)]
    common: set[str] = set.intersection(*map(set, jobs)) if len(jobs) > 1 else set()
    return [" ".join(word for word in filter_overrides(job) if word not in common) for job in jobs]


def one_at_a_time(values: list[list[str]]) -> list[list[str]]:
    """Jobs in which every value of every key occurs, as few as may be: all keys but one have their first value."""
    first = [key[0] for key in values]
    others = [
        [*first[:index], value, *first[index + 1 :]] for index, key in enumerate(values) for value in key[1:]
    ]
    return [first, *others]
