"""Compiled and recomputed layers learn the mask that plain ones learn."""

from functools import partial

import pytest
import torch
from architectures import tiny_model
from tiny_training import ROWS, learn

from mechint.errors import UserError
from mechint.learning import MaskTrainer
from mechint.learning.engine import engine
from mechint.learning.trainer import Training
from mechint.masking import MaskedModel
from mechint.methods import TopK

# torch's compiler tries out many things of which torch itself warns; as errors they would end the attempt.
pytestmark = pytest.mark.filterwarnings("ignore")


def train(**settings: bool) -> Training:
    """Six steps of four sequences each."""
    trainer = MaskTrainer(batch_size=4, log_every=1, **settings)
    return learn(MaskedModel(tiny_model("llama")), TopK(finishing_trials=2), trainer, steps=6)


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["compile", "activation_checkpointing"])
def test_the_mask_is_that_of_plain_layers(setting: str) -> None:
    plain, other = train(), train(**{setting: True})
    losses = [[line["loss"] for line in run.history] for run in (plain, other)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4, abs=1e-6)
    torch.testing.assert_close(other.scores, plain.scores, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_compiled_passes_are_used_for_learning_alone() -> None:
    masked = MaskedModel(tiny_model("llama"))
    graphs = []
    gates = torch.ones(masked.space.num_channels, requires_grad=True)
    with engine(masked, recompute=False, compile_=True):
        masked._compiled = torch.compile(
            masked.model.base_model, backend=lambda graph, _: (graphs.append(graph), graph.forward)[1]
        )
        masked.hidden(ROWS[:, :-1])
        with torch.no_grad():
            masked.hidden(ROWS[:, :-1], gates)
        assert not graphs
        for _ in range(3):
            masked.hidden(ROWS[:, :-1], gates)
        assert len(graphs) == 1  # nothing breaks the graph, and nothing compiles it again
    assert masked._compiled is None


@pytest.mark.slow
def test_a_compiler_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    masked = MaskedModel(tiny_model("llama"))

    def compiler(*_: object) -> None:
        raise OSError("no C++ compiler here")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=compiler))
    gates = torch.ones(masked.space.num_channels, requires_grad=True)
    with (
        pytest.raises(UserError, match=r"cannot be compiled here .*no C\+\+ compiler.*trainer.compile=false"),
        engine(masked, recompute=False, compile_=True),
    ):
        masked.hidden(ROWS[:, :-1], gates)
