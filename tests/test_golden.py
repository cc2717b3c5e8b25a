"""The bundled models' losses, pinned: whatever changes them is seen."""

import pytest
import torch
from conftest import ROOT

from mechint.checkpoints import CheckpointLoader
from mechint.data.batch import Batch
from mechint.masking import MaskedModel
from mechint.metrics.evaluation import Evaluator, measure

# English that never changes, in bytes: the licence from its second paragraph on. Every third channel is removed.
TEXT = (ROOT / "LICENSE").read_bytes().partition(b"Permission")[2]
LENGTH, ROWS = 128, 7

# In nats per byte, measured on CPU in float32 (torch 2.13).
LOSSES = {
    "baseline": {"dense": 2.533313, "empty": 4.180957, "masked": 2.678802},
    "kv_tied": {"dense": 2.567827, "empty": 4.288023, "masked": 3.243044},
    "llama": {"dense": 3.120903, "empty": 5.789689, "masked": 3.362476},
}

# Sums in another order on other machines and devices change a float32 loss by about 1e-6 of itself; a wrong mask, scale
# or position changes the second digit.
TOLERANCE = 1e-4


def losses(name: str, device: str) -> dict[str, float]:
    """Losses of the dense, empty and masked model."""
    masked = MaskedModel(CheckpointLoader().load(f"bundled:{name}", torch.device(device), "float32").model)
    count = masked.space.num_channels
    variants = {"dense": None, "empty": torch.zeros(count), "masked": torch.arange(count) % 3 > 0}
    tokens = torch.tensor(list(TEXT))[: ROWS * (LENGTH + 1)].view(ROWS, LENGTH + 1)
    measured = measure(Evaluator(masked, Batch.of_rows(tokens)), variants, None)
    return {key: value["loss"] for key, value in measured.metrics.items()}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_what_they_were(name: str) -> None:
    assert losses(name, "cpu") == pytest.approx(LOSSES[name], rel=TOLERANCE)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", LOSSES)
def test_a_cuda_device_agrees_with_the_cpu(name: str) -> None:
    assert losses(name, "cuda") == pytest.approx(LOSSES[name], rel=TOLERANCE)
