"""Saved states of the learning steps, and going on from them."""

import copy
import functools
import logging
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import tiny_model
from parts import LEARNERS

from mechint.data.batch import Batch
from mechint.errors import UserError
from mechint.learning import MaskTrainer
from mechint.learning.recipe import Recipe
from mechint.learning.resume import FORMAT, SavedStates, Saver
from mechint.learning.trainer import Training
from mechint.masking import MaskedModel
from mechint.methods import CubicSchedule, NormalizedSGD, TopK
from mechint.methods.method import LearnedMethod, MaskMethod
from mechint.metrics.dense_outputs import DenseOutputs
from mechint.runtime.seeds import deterministic
from mechint.runtime.signals import Interrupted, Interruption

STEPS = 9


def train(
    method: MaskMethod,
    make_optimizer: Callable[..., torch.optim.Optimizer],
    directory: Path | None = None,
    stop_after: int | None = None,
    every: int = 4,
    device: str = "cpu",
) -> tuple[list[int], Training]:
    """Learn on random tokens; the steps that this attempt took, and what it left."""
    masked = MaskedModel(tiny_model("llama").to(device))
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(3, 97, (6, 17), generator=generator)
    method.prepare(masked, 0.6, generator)
    taken: list[int] = []
    with Interruption() as interruption:

        def on_step(step: int, *_: Any) -> None:
            taken.append(step)
            if step == stop_after:
                interruption.asked = 15

        saver = Saver(SavedStates(directory, "digest"), interruption, lambda *_: None) if directory else None
        trainer = MaskTrainer(batch_size=4, log_every=2, save_every=every)
        try:
            training = trainer.train(
                masked,
                Batch.of_rows(rows),
                Recipe(
                    method=method,
                    make_optimizer=make_optimizer,
                    schedule=CubicSchedule(end=0.8),
                    steps=STEPS,
                ),
                generator,
                on_step,
                saver,
            )
        except Interrupted:
            interruption.asked = None
            training = Training()
    return taken, training


@pytest.mark.parametrize(
    ("method", "optimizer"),
    [*LEARNERS.values(), (partial(TopK, finishing_trials=4), partial(torch.optim.SGD, lr=0.1, momentum=0.9))],
    ids=[*LEARNERS, "topk_with_a_finishing_pass"],
)
@pytest.mark.parametrize(
    "stop_after", [5, *(pytest.param(step, marks=pytest.mark.slow) for step in (0, STEPS - 1))]
)
def test_every_method_goes_on_with_the_same_bits(
    method: type[MaskMethod], optimizer: Any, stop_after: int, tmp_path: Path
) -> None:
    _, whole = train(method(), optimizer)
    first, _ = train(method(), optimizer, tmp_path, stop_after)
    second, resumed = train(method(), optimizer, tmp_path)
    assert first == list(range(stop_after + 1))
    assert second == list(range(stop_after + 1, STEPS))
    assert torch.equal(resumed.scores, whole.scores)
    assert resumed.history == whole.history
    assert resumed.tokens == whole.tokens


sgd = functools.partial(NormalizedSGD, lr=0.1)
few_trials = functools.partial(TopK, finishing_trials=2)


def test_the_last_two_states_are_kept_and_a_damaged_one_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, whole = train(few_trials(), sgd)
    train(few_trials(), sgd, tmp_path)
    names = [path.name for path in sorted((tmp_path / ".resume").iterdir())]
    assert names == ["step_000000008.pt", "step_000000009.pt"]
    newest = tmp_path / ".resume" / names[1]
    newest.write_bytes(newest.read_bytes()[:1000])
    with caplog.at_level(logging.WARNING):
        taken, resumed = train(few_trials(), sgd, tmp_path)
    assert "step_000000009.pt cannot be read and is ignored" in caplog.text
    assert taken == [8]
    assert torch.equal(resumed.scores, whole.scores)


class Payload:
    """A pickle that leaves a file if it is ever executed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_a_state_never_runs_code(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    proof, state = tmp_path / "proof", tmp_path / ".resume" / "step_000000003.pt"
    state.parent.mkdir()
    torch.save({"format": FORMAT, "digest": "digest", "step": 3, "learner": Payload(proof)}, state)
    taken, _ = train(few_trials(), sgd, tmp_path)
    assert taken == list(range(STEPS))
    state.write_bytes(pickle.dumps(Payload(proof)))
    assert SavedStates(tmp_path, "digest").newest() is not None
    assert not proof.exists()
    torch.load(_payload(tmp_path, proof), weights_only=False)
    assert proof.exists()  # so the payload works where it is let in


def _payload(directory: Path, proof: Path) -> Path:
    torch.save(Payload(proof), directory / "payload.pt")
    return directory / "payload.pt"


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: state.pop("run"),
        lambda state: state.pop("learner"),
        lambda state: state["learner"].update(method=7),
        lambda state: state["learner"]["method"].update(_scores="high"),
        lambda state: state["learner"]["method"].pop("_keep"),
        lambda state: state["learner"]["method"].update(_scores=torch.zeros(7)),
        lambda state: state["learner"]["optimizer"].update(param_groups=[]),
        lambda state: state["learner"].update(batches={"size": 4}),
        lambda state: state["learner"].update(switched_on=None),
        lambda state: state["run"].update(history=7),
        lambda state: state["run"].update(tokens="many"),
        lambda state: state["generators"].update(torch=torch.zeros(3)),
        lambda state: state.update(seconds="long"),
    ],
)
def test_a_state_that_does_not_fit_is_one_line(damage: Callable[[Any], Any], tmp_path: Path) -> None:
    train(few_trials(), sgd, tmp_path, stop_after=3)
    path = tmp_path / ".resume" / "step_000000004.pt"
    content = torch.load(path, weights_only=True)
    damage(content)
    torch.save(content, path)
    with pytest.raises(
        UserError, match=r"does not fit this run .*; remove that directory, or use resume=false"
    ):
        train(few_trials(), sgd, tmp_path)


def test_states_of_another_run_and_of_another_version_are_not_used(tmp_path: Path) -> None:
    states = SavedStates(tmp_path, "one")
    states.save(3, {})
    assert states.newest() == {"format": FORMAT, "digest": "one", "step": 3}
    assert SavedStates(tmp_path, "other").newest() is None
    torch.save({"format": 0, "digest": "one"}, tmp_path / ".resume" / "step_000000004.pt")
    newest = states.newest()
    assert newest is not None
    assert newest["step"] == 3
    states.remove()
    assert not (tmp_path / ".resume").exists()


def started(
    method: LearnedMethod, optimizer: Any, seed: int
) -> tuple[torch.optim.Optimizer, torch.Generator]:
    """A method with the fresh scores of a seed, and the optimizer that updates them."""
    generator = torch.Generator().manual_seed(seed)
    method.prepare(MaskedModel(tiny_model("llama")), 0.6, generator)
    return optimizer(method.parameter_groups()), generator


def advance(method: LearnedMethod, optimizer: torch.optim.Optimizer, steps: range) -> list[torch.Tensor]:
    """Everything that a method says during these of twelve steps; channels further down the list are worth less."""
    said = []
    for number in steps:
        progress = number / 11
        gates = method.gates(progress, progress, 2)
        penalty = method.penalty(progress)
        loss = (gates * torch.linspace(1, -1, gates.shape[-1])).sum() + (0 if penalty is None else penalty)
        loss.backward()
        said += [gates.detach().clone(), loss.detach().clone(), method.switched_on(gates).clone()]
        optimizer.step()
        optimizer.zero_grad()
    soft = method.soft_gates()
    return [*said, method.scores().clone(), method.hard_mask(), *([] if soft is None else [soft])]


@pytest.mark.parametrize(("method", "optimizer"), LEARNERS.values(), ids=LEARNERS)
@pytest.mark.parametrize("stop", [0, 1, 6, 11, 12])
def test_what_a_method_names_as_changing_is_all_that_changes(method: Any, optimizer: Any, stop: int) -> None:
    whole, other = method(), method()
    updates, generator = started(whole, optimizer, seed=0)
    advance(whole, updates, range(stop))
    state, updated = whole.state_dict(), copy.deepcopy(updates.state_dict())
    drawn = generator.get_state()
    expected = advance(whole, updates, range(stop, 12))

    updates, generator = started(other, optimizer, seed=1)
    advance(other, updates, range(3))  # what was there before does not show through
    parameters = [p for group in other.parameter_groups() for p in group["params"]]
    assert tuple(state) == type(other).changing
    other.load_state_dict(state)
    updates.load_state_dict(updated)
    generator.set_state(drawn)
    got = advance(other, updates, range(stop, 12))
    assert len(got) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    now = [p for group in other.parameter_groups() for p in group["params"]]
    assert all(a is b and a.requires_grad for a, b in zip(now, parameters, strict=True))


@pytest.mark.parametrize(("method", "optimizer"), LEARNERS.values(), ids=LEARNERS)
def test_a_methods_state_is_a_copy_and_must_fit(method: Any, optimizer: Any) -> None:
    learned = method()
    updates, _ = started(learned, optimizer, seed=0)
    state = learned.state_dict()
    before = {name: value.clone() for name, value in state.items()}
    advance(learned, updates, range(4))
    assert all(torch.equal(state[name], value) for name, value in before.items())
    assert any(not torch.equal(learned.state_dict()[name], value) for name, value in before.items())
    for name in before:
        with pytest.raises(KeyError):
            learned.load_state_dict({key: value for key, value in before.items() if key != name})
        with pytest.raises(ValueError, match=f"{name}: shape "):
            learned.load_state_dict({**before, name: torch.zeros(7, 3)})


def test_dense_outputs_are_computed_with_the_same_rows_again() -> None:
    masked = MaskedModel(tiny_model("llama"))
    batch = Batch.of_rows(torch.randint(3, 97, (6, 9), generator=torch.Generator().manual_seed(0)))
    first, second = (DenseOutputs(masked, batch, 2**30) for _ in range(2))
    first(torch.tensor([4, 1]))
    first(torch.tensor([1, 5, 0]))
    second.load_state_dict(first.state_dict())
    computed: list[list[int]] = []
    compute = second._compute
    second._compute = lambda chosen: (computed.append(chosen.tolist()), compute(chosen))[1]  # type: ignore[method-assign]
    second(torch.tensor([0, 4, 3]))
    assert computed == [[4, 1], [5, 0], [3]]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("stop_after", [0, 5])
def test_on_cuda_deterministic_algorithms_go_on_with_the_same_bits(stop_after: int, tmp_path: Path) -> None:
    with deterministic(True):
        _, whole = train(few_trials(), sgd, device="cuda")
        train(few_trials(), sgd, tmp_path, stop_after, device="cuda")
        taken, resumed = train(few_trials(), sgd, tmp_path, device="cuda")
    assert taken == list(range(stop_after + 1, STEPS))
    assert torch.equal(resumed.scores, whole.scores)
    assert resumed.history == whole.history


@pytest.mark.parametrize(
    ("said", "error", "match"),
    [
        (
            "put_ does not have a deterministic implementation, but you set ...",
            UserError,
            r"needs put_, which is not deterministic .* use trainer.deterministic=false",
        ),
        ("shapes do not fit", RuntimeError, r"^shapes do not fit$"),
    ],
)
def test_what_has_no_deterministic_algorithm_is_named(said: str, error: type[Exception], match: str) -> None:
    before = torch.are_deterministic_algorithms_enabled()
    seen = []

    def work() -> None:
        with deterministic(True):
            seen.append(torch.are_deterministic_algorithms_enabled())
            raise RuntimeError(said)

    with pytest.raises(error, match=match):
        work()
    assert seen == [True]
    assert torch.are_deterministic_algorithms_enabled() == before
