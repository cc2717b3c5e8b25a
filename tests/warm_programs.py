"""Experiments in processes of their own that have imported everything already: many can be started and killed."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

from conftest import ROOT

# A fork server has no threads, so its children begin as cleanly as a fresh interpreter.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "torch",
        "transformers.models.llama.modeling_llama",
        "hydra.main",
        "mechint.config",
        "mechint.api",
    ]
)


def _program(directory: Path, arguments: list[str], output: Path, environment: dict[str, str]) -> None:
    os.chdir(directory)
    os.environ.update(environment)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = ["analyze.py", *arguments]
    runpy.run_path(str(ROOT / "experiments" / "analyze.py"), run_name="__main__")


def start(directory: Path, *arguments: str, **environment: str) -> BaseProcess:
    """Start `python experiments/analyze.py ...` in a directory; what it prints is added to output.txt there."""
    output = directory / "output.txt"
    process = CONTEXT.Process(target=_program, args=(directory, list(arguments), output, environment))
    process.start()
    return process


def ended(process: BaseProcess, timeout: float = 120) -> int:
    """The exit code of a process, once it has ended; negative is the signal that killed it."""
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError("the program did not end")
    return process.exitcode


def wait_for(path: Path, process: BaseProcess, timeout: float = 300) -> None:
    """Wait until a file exists."""
    end = time.monotonic() + timeout
    while not path.exists():
        assert process.is_alive(), f"the program ended before it wrote {path.name}"
        assert time.monotonic() < end, f"no {path.name}"
        time.sleep(0.002)
