"""The current Hydra job, and how a program ends on a user's error."""

from __future__ import annotations

import errno
import re
import sys
from pathlib import Path
from typing import NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf.errors import OmegaConfBaseException

from mechint.errors import UserError, one_line

# What is the user's to mend: the message is enough.
USER_ERRORS = (UserError, HydraException, OmegaConfBaseException)

LONGEST_NAME = 200

# Launchers whose jobs are processes of their own, and those of them on a cluster.
ON_SLURM = ("submitit_slurm", "slurm_gpu")
OWN_PROCESS = (*ON_SLURM, "submitit_local")

# Launchers whose jobs share the devices of this machine.
SIDE_BY_SIDE = ("joblib", "submitit_local")

# The extra that brings each launcher.
LAUNCHER_EXTRAS = {"joblib": "parallel", "submitit_local": "slurm", "submitit_slurm": "slurm"}


# What the system refuses because of a path or a disk that the user chose.
SYSTEM_REFUSALS = {
    number: remedy
    for numbers, remedy in (
        (("ENAMETOOLONG", "ENOTDIR", "EISDIR", "EEXIST", "ELOOP", "ENOENT", "EINVAL"), "give another path"),
        (("EACCES", "EPERM", "EROFS"), "give a path that can be used, or change its rights"),
        (("ENOSPC", "EDQUOT"), "make room, and repeat the command"),
    )
    for number in (getattr(errno, name) for name in numbers)
}


def in_user_words(error: BaseException) -> BaseException:
    """The error itself, or a UserError where it only says what the system or Hydra has against what the user gave."""
    if isinstance(error, OSError) and error.errno in SYSTEM_REFUSALS and error.filename:
        name = str(error.filename)
        name = name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}..."
        return UserError(f"{name}: {error.strerror}; {SYSTEM_REFUSALS[error.errno]}")
    if isinstance(error, ValueError) and "embedded null byte" in str(error):
        return UserError("a path holds a NUL character; give another path")
    if isinstance(error, ValueError) and "Config group override" in str(error):
        return UserError(f"{error}; name one of its options, conf/ has them")
    return error


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
    print(f"error: {error_line(error)}", file=sys.stderr)
    raise SystemExit(2)


def error_line(error: BaseException) -> str:
    """An error's message in one line, without what Hydra puts around a message of ours."""
    text = one_line(str(error))
    if ours := re.search(r"UserError raised while resolving interpolation: (.*?)( full_key:.*)?$", text):
        return ours.group(1)
    launcher = re.search(r"Could not find 'hydra/launcher/(\w+)'", text)
    if launcher and (extra := LAUNCHER_EXTRAS.get(launcher.group(1))):
        return f"hydra/launcher={launcher.group(1)} needs a package: pip install -e '.[{extra}]'"
    if "'mask.ablation'" in text or "mask.ablation" in text:
        return "mask.ablation is a group of its own now: use ablation=zero or ablation=mean"
    if isinstance(error.__cause__, OmegaConfBaseException):
        # Hydra's message says only what it could not do.
        return f"{text}: {str(error.__cause__).splitlines()[0]}"
    return text
