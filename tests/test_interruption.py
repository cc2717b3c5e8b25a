"""Signals during a run, and what another process finds afterwards or meanwhile."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import pytest
from test_kills import SETTINGS, result
from warm_programs import ended, start, wait_for

from mechint.comparison.study import read_study
from mechint.errors import UserError
from mechint.results.directories import Occupant, only_process, refuse_other_run
from mechint.runtime.processes import has_died, this_process
from mechint.runtime.signals import EXIT_CODE, Interrupted, Interruption


def tell(number: int) -> None:
    """Send a signal to this very process, and give Python the chance to see it."""
    os.kill(os.getpid(), number)
    time.sleep(0.01)


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """The signals that a handler of the surroundings, as submitit's, has seen."""
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, _: seen.append(number))
    yield seen
    signal.signal(signal.SIGUSR2, before)


def signalled(*numbers: int, held: float | None = None, work: Callable[[Interruption], None]) -> None:
    """Get signals in a block, held for so many seconds, or not held, and go on with work."""
    with Interruption() as interruption:
        if held is None:
            tell(numbers[0])
        with interruption.held(held):
            for number in numbers:
                tell(number)
            work(interruption)


def test_outside_a_held_part_a_signal_interrupts_at_once(heard: list[int]) -> None:
    with pytest.raises(Interrupted, match="SIGUSR2"):
        signalled(signal.SIGUSR2, work=lambda _: pytest.fail("the signal came too late"))
    assert heard == [signal.SIGUSR2]  # the handler of the surroundings comes after what had to be saved


def test_in_a_held_part_it_waits_for_the_next_check(heard: list[int]) -> None:
    during: list[list[int]] = []

    def work(interruption: Interruption) -> None:
        during.append(list(heard))
        interruption.check()
        pytest.fail("the check did not interrupt")

    with pytest.raises(Interrupted, match="SIGUSR2"):
        signalled(signal.SIGUSR2, signal.SIGTERM, held=60, work=work)  # the second one changes nothing
    assert during == [[]]
    assert heard == [signal.SIGUSR2]


def test_patience_ends(heard: list[int]) -> None:
    with pytest.raises(Interrupted):
        signalled(signal.SIGUSR2, held=0.01, work=lambda _: time.sleep(60))


def test_what_is_slow_after_the_interruption_gets_an_error(
    heard: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mechint.runtime.signals.LAST_WORDS", 0.01)

    def work(interruption: Interruption) -> None:
        try:
            interruption.check()
        finally:
            with pytest.raises(TimeoutError, match="did not in time"):
                time.sleep(60)

    with pytest.raises(Interrupted):
        signalled(signal.SIGUSR2, held=60, work=work)


def test_everything_is_as_before_afterwards() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGALRM)
    before = [signal.getsignal(number) for number in numbers]
    with Interruption():
        assert signal.getsignal(signal.SIGINT) != signal.default_int_handler
    assert [signal.getsignal(number) for number in numbers] == before
    with pytest.raises(Interrupted, match="SIGINT"):
        signalled(signal.SIGINT, work=lambda _: None)
    assert [signal.getsignal(number) for number in numbers] == before


@pytest.fixture(scope="module")
def arguments(byte_model_directory: Path) -> list[str]:
    return [f"checkpoint={byte_model_directory}", *SETTINGS]


def started_learning(directory: Path, arguments: list[str]) -> BaseProcess:
    """A run that has begun to learn."""
    process = start(directory, *arguments)
    wait_for(directory / "out" / ".resume" / "step_000000005.pt", process)
    return process


@pytest.mark.slow
def test_an_interrupted_run_says_so_and_goes_on(arguments: list[str], tmp_path: Path) -> None:
    process = started_learning(tmp_path, [*arguments, "steps=40000"])
    assert process.pid is not None
    os.kill(process.pid, signal.SIGTERM)
    assert ended(process) == EXIT_CODE
    record = result(tmp_path / "out")
    assert record["status"] == "interrupted"
    assert record["error"] == "Interrupted: interrupted by SIGTERM"
    assert "traceback" not in record
    said = (tmp_path / "output.txt").read_text()
    assert "Traceback" not in said
    assert said.endswith(
        f"interrupted by SIGTERM; {tmp_path / 'out'} holds what is done, and the same command continues\n"
    )
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    saved = max((tmp_path / "out" / ".resume").iterdir()).name
    assert saved == f"step_{len(lines):09d}.pt"  # nothing that was logged will be done again


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once(arguments: list[str], tmp_path: Path) -> None:
    process = started_learning(tmp_path, [*arguments, "steps=40000"])
    assert process.pid is not None
    with suppress(ProcessLookupError):
        while process.is_alive():
            os.kill(process.pid, signal.SIGINT)
    assert ended(process) in (-signal.SIGINT, EXIT_CODE)  # the latter where it was faster than the second one
    assert Occupant.of(tmp_path / "out").status in ("died", "interrupted")


@pytest.mark.slow
def test_a_run_whose_process_is_gone_has_died(arguments: list[str], tmp_path: Path) -> None:
    arguments = [*arguments, "steps=40000"]
    process = started_learning(tmp_path, arguments)
    assert Occupant.of(tmp_path / "out").status == "running"
    with pytest.raises(UserError, match=rf"process {process.pid} on .* is working in .*out; wait for it"):  # noqa: SIM117
        with only_process(tmp_path / "out"):
            pass
    again = start(tmp_path, *arguments)
    assert ended(again) == 2
    assert (
        "is working in out; wait for it, or give another output_dir" in (tmp_path / "output.txt").read_text()
    )
    process.kill()
    ended(process)
    occupant = Occupant.of(tmp_path / "out")
    assert (occupant.status, occupant.result.status) == ("died", "running")
    with pytest.raises(
        UserError, match=r"holds another run, which died before its end \(seed=0 there, 1 here\)"
    ):
        refuse_other_run(tmp_path / "out", {**occupant.result.config, "seed": 1}, "another")
    with pytest.raises(UserError, match=r"no finished run below .* \(1 not finished or unreadable\)"):
        read_study(tmp_path)


def test_processes_are_told_apart() -> None:
    me = this_process()
    assert not has_died(me)
    assert not has_died({**me, "started": me["started"] + 1})  # the clock was set right
    assert has_died({**me, "started": me["started"] - 3600})
    assert not has_died({**me, "started": None})
    assert has_died({**me, "pid": 2**30})
    assert not has_died({**me, "host": "elsewhere", "pid": 2**30})
    for strange in (None, 7, {}, {**me, "pid": "one"}, {**me, "pid": -1}):
        assert not has_died(strange)


def test_a_process_that_has_ended_but_was_not_asked_for_is_dead() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        child = {**this_process(), "pid": process.pid, "started": psutil.Process(process.pid).create_time()}
        assert not has_died(child)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert has_died(child)


def test_the_lock_leaves_nothing_and_lets_the_next_one_in(tmp_path: Path) -> None:
    for _ in range(2):
        with only_process(tmp_path / "new" / "run"):
            assert (tmp_path / "new" / "run").is_dir()
    assert not list((tmp_path / "new" / "run").iterdir())


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write into .*file \(File exists\); give another output_dir"):  # noqa: SIM117
        with only_process(tmp_path / "file"):
            pass
