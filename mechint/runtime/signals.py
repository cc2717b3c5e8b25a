"""Signals that ask a run to stop, answered where nothing is lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

# What Slurm, a shell and Ctrl-C send.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR2") if hasattr(signal, name))

# The exit code of an interrupted run: EX_TEMPFAIL of sysexits.h, "try again later".
EXIT_CODE = 75

# What is asked to stop has about ten seconds before it is killed: seconds for a learning step to end, and for loggers.
PATIENCE = 4.0
LAST_WORDS = 4.0


class Interrupted(KeyboardInterrupt):
    """A run was asked to stop, and can continue later."""


class Interruption:
    """Inside the block, the signals above raise Interrupted; in a `held` part only where `check` is called.

    A second Ctrl-C ends the process at once. What was to be done on a signal before, by a batch system's own
    handler say, is done when the block has ended. Outside the main thread there are no signals, and nothing happens.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self._held = False
        self._patience: float | None = None
        self._ending = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}
            self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._lose_patience)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._alarm(0)
        before, self._before = self._before, {}
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if self.asked is None:
            return
        handler = before[self.asked]
        if callable(handler) and handler is not signal.default_int_handler:
            handler(self.asked, None)
        if error is None:
            self.check()

    @contextmanager
    def held(self, patience: float | None = None) -> Iterator[None]:
        """Let a signal wait for the next `check` or the end of the block, but not longer than `patience` seconds."""
        self._held, self._patience = True, patience
        try:
            yield
        finally:
            self._held = False
        self.check()

    def check(self) -> None:
        """Raise Interrupted if a signal came.

        Whatever then takes longer than LAST_WORDS, such as an upload, gets a TimeoutError.
        """
        if self.asked is not None:
            self._ending = True
            self._alarm(LAST_WORDS)
            raise Interrupted(f"interrupted by {signal.Signals(self.asked).name}")

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        if self.asked is not None:  # already on the way out
            return
        self.asked = number
        if not self._held:
            self.check()
        elif self._patience is not None:
            self._alarm(self._patience)

    def _lose_patience(self, number: int, frame: FrameType | None) -> None:
        if self._ending:
            raise TimeoutError("the run was asked to stop by a signal, and did not in time")
        self.check()

    def _alarm(self, seconds: float) -> None:
        """In so many seconds call `_lose_patience`; 0 is never."""
        if self._before:
            signal.setitimer(signal.ITIMER_REAL, seconds)
