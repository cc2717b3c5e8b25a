"""Saved states of the learning steps, and going on from them."""

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
from test_learning import METHODS

from mechint.errors import UserError
from mechint.learning import MaskTrainer, NormalizedSGD
from mechint.learning.resume import SavedStates, Saver
from mechint.learning.trainer import Training
from mechint.masking import MaskedModel
from mechint.methods import CubicSchedule, TopK
from mechint.methods.method import MaskMethod
from mechint.methods.state import give, take
from mechint.metrics import KlObjective
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
                rows,
                method,
                KlObjective(),
                make_optimizer,
                CubicSchedule(end=0.8),
                STEPS,
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
    [*METHODS, (partial(TopK, finishing_trials=4), partial(torch.optim.SGD, lr=0.1, momentum=0.9))],
)
@pytest.mark.parametrize("stop_after", [0, 5, 8])
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


def test_the_last_two_states_are_kept_and_a_damaged_one_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, whole = train(TopK(), sgd)
    train(TopK(), sgd, tmp_path)
    names = [path.name for path in sorted((tmp_path / ".resume").iterdir())]
    assert names == ["step_000000008.pt", "step_000000009.pt"]
    newest = tmp_path / ".resume" / names[1]
    newest.write_bytes(newest.read_bytes()[:1000])
    with caplog.at_level(logging.WARNING):
        taken, resumed = train(TopK(), sgd, tmp_path)
    assert "step_000000009.pt cannot be read and is passed over" in caplog.text
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
    torch.save({"format": 2, "digest": "digest", "step": 3, "parts": Payload(proof)}, state)
    taken, _ = train(TopK(), sgd, tmp_path)
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
        lambda state: state.pop("parts"),
        lambda state: state["parts"].pop("learner"),
        lambda state: state["parts"]["learner"].update(method=7),
        lambda state: state["parts"]["learner"]["method"].update(_scores="high"),
        lambda state: state["parts"]["learner"]["optimizer"].update(param_groups=[]),
        lambda state: state["generators"].update(torch=torch.zeros(3)),
        lambda state: state.update(seconds="long"),
    ],
)
def test_a_state_that_does_not_fit_is_one_line(damage: Callable[[Any], Any], tmp_path: Path) -> None:
    train(TopK(), sgd, tmp_path, stop_after=3)
    path = tmp_path / ".resume" / "step_000000004.pt"
    content = torch.load(path, weights_only=True)
    damage(content)
    torch.save(content, path)
    with pytest.raises(
        UserError, match=r"does not fit this run .*; remove that directory, or use resume=false"
    ):
        train(TopK(), sgd, tmp_path)


def test_states_of_another_run_and_of_another_version_are_not_used(tmp_path: Path) -> None:
    states = SavedStates(tmp_path, "one")
    states.save(3, {})
    assert states.newest() == {"format": 2, "digest": "one", "step": 3}
    assert SavedStates(tmp_path, "other").newest() is None
    torch.save({"format": 0, "digest": "one"}, tmp_path / ".resume" / "step_000000004.pt")
    newest = states.newest()
    assert newest is not None
    assert newest["step"] == 3
    states.remove()
    assert not (tmp_path / ".resume").exists()


def test_tensors_keep_their_identity_and_other_values_their_kind() -> None:
    class Inner:
        def __init__(self) -> None:
            self.weight = torch.zeros(2, requires_grad=True)
            self.count, self.name, self.pair, self.seen = 0, "a", (1, torch.zeros(1)), [1]
            self.generator = torch.Generator().manual_seed(0)
            self.by_key: dict[Any, Any] = {}

    first, second = Inner(), Inner()
    weight = second.weight
    with torch.no_grad():
        first.weight += 1
    first.count, first.name, first.seen = 3, "b", [1, 2]
    first.by_key = {5: torch.ones(1)}
    torch.rand(3, generator=first.generator)
    give(second, take(first))
    assert second.weight is weight
    assert weight.tolist() == [1, 1]
    assert weight.requires_grad
    assert (second.count, second.name, second.seen, second.pair[0]) == (3, "b", [1, 2], 1)
    assert second.by_key[5].item() == 1
    assert torch.equal(torch.rand(2, generator=first.generator), torch.rand(2, generator=second.generator))


def test_dense_outputs_are_computed_with_the_same_rows_again() -> None:
    masked = MaskedModel(tiny_model("llama"))
    rows = torch.randint(3, 97, (6, 9), generator=torch.Generator().manual_seed(0))
    first, second = (DenseOutputs(masked, rows, 2**30) for _ in range(2))
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
        _, whole = train(TopK(), sgd, device="cuda")
        train(TopK(), sgd, tmp_path, stop_after, device="cuda")
        taken, resumed = train(TopK(), sgd, tmp_path, device="cuda")
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
