"""Saving the state of a run while it learns, and continuing from it."""

from __future__ import annotations

import io
import logging
import random
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from mechint.errors import UserError
from mechint.runtime import distributed
from mechint.runtime.files import unfinished_name, write_atomically
from mechint.runtime.pickles import PickleRefusedError, load_plain
from mechint.runtime.signals import Interruption

log = logging.getLogger(__name__)

DIRECTORY = ".resume"
FORMAT = 3
KEPT = 2  # states; the older one serves where the newer one is damaged


class Stateful(Protocol):
    """What says itself what its state is, as torch's optimizers, schedulers and modules do."""

    def state_dict(self) -> dict[str, Any]:
        """The state, in tensors, numbers, strings and containers of them."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state."""
        ...


class SavedStates:
    """The last states of one run, below its directory; each is a file that is written whole or not at all."""

    def __init__(self, output_dir: Path, digest: str) -> None:
        self.directory, self._digest = output_dir / DIRECTORY, digest

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Save the state after `step` steps, and let go of all but the last two."""
        content = {"format": FORMAT, "digest": self._digest, "step": step, **state}
        buffer = io.BytesIO()  # torch.save itself does not say that a disk is full
        torch.save(content, buffer)
        with write_atomically(self.directory / f"step_{step:09d}.pt") as temporary:
            temporary.write_bytes(buffer.getbuffer())
        for path in self._paths()[KEPT:]:
            path.unlink(missing_ok=True)

    def newest(self) -> dict[str, Any] | None:
        """The newest state that can be read; nothing in it is ever executed. Damaged ones are named and passed over."""
        for path in self._paths():
            try:
                content = load_plain(path)
            except (PickleRefusedError, FileNotFoundError) as error:
                log.warning("the saved state %s cannot be read and is ignored (%s)", path, error)
                continue
            if isinstance(content, dict) and content.get("format") == FORMAT:
                if content.get("digest") == self._digest:
                    return content
            else:
                log.warning("%s is not a saved state of this version and is ignored", path)
        return None

    def remove(self) -> None:
        """Let go of all states, and of what a killed process left half written."""
        for path in [*self._paths(), *filter(unfinished_name, self.directory.glob(".step_*.pt"))]:
            path.unlink(missing_ok=True)
        if self.directory.is_dir() and not any(self.directory.iterdir()):
            self.directory.rmdir()

    def _paths(self) -> list[Path]:
        """The states, newest first."""
        found = self.directory.glob("step_*.pt")
        return sorted((path for path in found if re.fullmatch(r"step_\d{9}\.pt", path.name)), reverse=True)


class Saver:
    """Saves a learner and what it has left every few steps and when the run is asked to stop.

    on_resume: called with the number of steps already done and the history so far.
    """

    def __init__(
        self,
        states: SavedStates,
        interruption: Interruption,
        on_resume: Callable[[int, list[dict[str, Any]]], None],
    ) -> None:
        self.seconds = 0.0  # spent in earlier attempts
        self._states, self._interruption, self._on_resume = states, interruption, on_resume
        self._warned = False
        self._started = time.perf_counter()

    def steps(self, learner: Stateful, run: Stateful, total: int, every: int) -> Iterator[int]:
        """Yield the numbers of the steps that are still to be done, and save in between.

        Raises Interrupted after a step once the run was asked to stop, UserError where a saved state does not fit.
        """
        first = self._restore(learner, run, total)
        for step in range(first, total):
            yield step
            done = step + 1
            if done % every == 0 or done == total or self._interruption.asked:
                seconds = self.seconds + time.perf_counter() - self._started
                parts = {"learner": learner.state_dict(), "run": run.state_dict()}
                state = {**parts, "generators": _generators(), "seconds": seconds}
                self._save(done, state)
            self._interruption.check()

    def _save(self, step: int, state: dict[str, Any]) -> None:
        try:
            self._states.save(step, state)
        except OSError as error:
            if not self._warned:
                log.warning("the run continues, but its state cannot be saved: %s", error.strerror or error)
            self._warned = True

    def _restore(self, learner: Stateful, run: Stateful, total: int) -> int:
        """Put the newest saved state into learner and run; the number of steps that are done."""
        state = distributed.from_first(self._states.newest())
        if state is None:
            return 0
        try:
            history = state["run"]["history"]
            learner.load_state_dict(state["learner"])
            run.load_state_dict(state["run"])
            _set_generators(state["generators"])
            step, self.seconds = int(state["step"]), float(state["seconds"])
            if not 0 < step <= total or not all("step" in line for line in history):
                raise ValueError(f"step {step} of {total}")
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            raise UserError(
                f"the saved state in {self._states.directory} does not fit this run "
                f"({type(error).__name__}: {' '.join(str(error).split())[:120]}); remove that directory, or use "
                "resume=false"
            ) from error
        self._on_resume(step, history)
        return step


def _generators() -> dict[str, Any]:
    """The global generators that libraries may draw from."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def _set_generators(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
