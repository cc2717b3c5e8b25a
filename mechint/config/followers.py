"""What the processes of torchrun other than the first leave behind: nothing."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from mechint.errors import UserError


@contextmanager
def followers_aside(several: bool) -> Iterator[None]:
    """Let every process of torchrun but the first work in a directory of its own that is then thrown away.

    several: whether the program can be run by several processes. Raises UserError where it cannot.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "LOCAL_RANK" not in os.environ:
        yield
        return
    if not several or {"-m", "--multirun"} & set(sys.argv):
        raise UserError("torchrun is for a single run of experiments/analyze.py; start this with python")
    if os.environ["RANK"] == "0":
        yield
        return
    with tempfile.TemporaryDirectory(prefix="mechint-follower-") as directory:
        sys.argv += [f"output_dir={directory}", "hydra.output_subdir=null", "hydra/job_logging=disabled"]
        yield
