"""The current Hydra job, and how a program ends on a user's error."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf.errors import OmegaConfBaseException

from mechint.errors import UserError

# What is the user's to mend: the message is enough.
USER_ERRORS = (UserError, HydraException, OmegaConfBaseException)

# Launchers whose jobs are processes of their own, and those of them on a cluster.
ON_SLURM = ("submitit_slurm", "slurm_gpu")
OWN_PROCESS = (*ON_SLURM, "submitit_local")

# The extra that brings each launcher.
LAUNCHER_EXTRAS = {"joblib": "parallel", "submitit_local": "slurm", "submitit_slurm": "slurm"}


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


def fail(error: BaseException) -> NoReturn:
    """Print an error as one line and leave with exit code 2."""
    print(f"error: {one_line(error)}", file=sys.stderr)
    raise SystemExit(2)


def one_line(error: BaseException) -> str:
    """An error's message in one line, without what Hydra puts around a message of ours."""
    text = " ".join(str(error).split())
    if ours := re.search(r"UserError raised while resolving interpolation: (.*?)( full_key:.*)?$", text):
        return ours.group(1)
    launcher = re.search(r"Could not find 'hydra/launcher/(\w+)'", text)
    if launcher and (extra := LAUNCHER_EXTRAS.get(launcher.group(1))):
        return f"hydra/launcher={launcher.group(1)} needs a package: pip install -e '.[{extra}]'"
    if isinstance(error.__cause__, OmegaConfBaseException):
        # Hydra's message says only what it could not do.
        return f"{text}: {str(error.__cause__).splitlines()[0]}"
    return text
