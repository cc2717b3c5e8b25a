"""What a masked step keeps, computes and launches beside the plain model; times are in experiments/benchmark.py."""

from collections.abc import Callable

import pytest
import torch
from architectures import tiny_model
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel

from mechint.checkpoints import CheckpointLoader
from mechint.masking import MaskedModel
from mechint.masking.gating import gated


@pytest.mark.parametrize("per_sequence", [False, True])
@pytest.mark.parametrize("filled", [False, True])
def test_gate_and_its_gradient_are_those_of_the_formula(per_sequence: bool, filled: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(3, 2, 5, 4, generator=generator, dtype=torch.double, requires_grad=True)
    shape = (3, 2, 4) if per_sequence else (2, 4)
    gate = torch.rand(shape, generator=generator, dtype=torch.double, requires_grad=True)
    fill = torch.randn(2, 4, generator=generator, dtype=torch.double) if filled else None
    assert torch.autograd.gradcheck(lambda s, g: gated(s, g, fill), (states, gate))
    expected = states * gate.unsqueeze(-2)
    if fill is not None:
        expected = expected + fill.unsqueeze(-2) * (1 - gate.unsqueeze(-2))
    torch.testing.assert_close(gated(states, gate, fill), expected)


def test_scores_stay_float32_where_the_model_is_bfloat16() -> None:
    states = torch.randn(2, 2, 64, 4).bfloat16()
    gate = torch.ones(2, 4, requires_grad=True)
    out = gated(states, gate, None)
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    assert gate.grad is not None
    torch.testing.assert_close(gate.grad, 2 * states.float().square().sum((0, 2)), rtol=1e-2, atol=0)


def _kept_bytes(step: Callable[[], Tensor], model: PreTrainedModel) -> int:
    """Bytes of the activations that a forward pass keeps for its backward pass."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    return sum(t.untyped_storage().nbytes() for pointer, t in kept.items() if pointer not in weights)


@pytest.mark.parametrize("name", ["baseline", "llama"])
def test_a_masked_pass_keeps_at_most_a_tenth_more_than_a_plain_one(name: str) -> None:
    model = CheckpointLoader().load(f"bundled:{name}", torch.device("cpu"), "float32").model
    masked, tokens = MaskedModel(model), torch.randint(3, 97, (2, 64))
    gates = torch.ones(masked.space.num_channels, requires_grad=True)
    start = model.get_input_embeddings()(tokens).requires_grad_()
    plain = _kept_bytes(lambda: model(inputs_embeds=start, use_cache=False).logits, model)
    assert plain < _kept_bytes(lambda: masked.logits(tokens, gates), model) <= 1.10 * plain


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt", "gemma2"])
def test_recomputed_layers_keep_little_and_give_the_same_gradients(name: str, tokens: Tensor) -> None:
    model = tiny_model(name, **{"n_layer" if name == "gpt2" else "num_hidden_layers": 6})
    masked = MaskedModel(model)
    keep = torch.rand(masked.space.num_channels, generator=torch.Generator().manual_seed(0)) > 0.5
    gates = [keep.float().requires_grad_() for _ in range(2)]
    masked.hidden(tokens, gates[0]).square().sum().backward()
    plain = _kept_bytes(lambda: masked.hidden(tokens, gates[0]), model)
    with masked.recomputing():
        masked.hidden(tokens, gates[1]).square().sum().backward()
        assert _kept_bytes(lambda: masked.hidden(tokens, gates[1]), model) < 0.25 * plain
    assert torch.equal(gates[0].grad, gates[1].grad)
    assert _kept_bytes(lambda: masked.hidden(tokens, gates[0]), model) == plain


KERNELS = ("flash_attention", "efficient_attention", "cudnn_attention")


def _attention_kernels(masked: MaskedModel, tokens: Tensor) -> list[str]:
    """The attention operators of a masked forward and backward pass."""
    gates = torch.ones(masked.space.num_channels, device=masked.device, requires_grad=True)
    with profile(activities=[ProfilerActivity.CPU]) as events:
        masked.logits(tokens, gates).sum().backward()
    names = {event.key for event in events.key_averages() if event.key.startswith("aten::_")}
    return sorted(name for name in names if "attention" in name)


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3"])
def test_masking_keeps_the_fast_attention_kernel(name: str, tokens: Tensor) -> None:
    kernels = _attention_kernels(MaskedModel(tiny_model(name)), tokens)
    assert [name for name in kernels if name.endswith("backward")]
    assert all(any(kernel in name for kernel in KERNELS) for name in kernels), kernels


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_masking_keeps_the_fast_attention_kernel_on_cuda(name: str, tokens: Tensor) -> None:
    kernels = _attention_kernels(MaskedModel(tiny_model(name).bfloat16().cuda()), tokens.cuda())
    assert [name for name in kernels if name.endswith("backward")]
    assert all(any(kernel in name for kernel in KERNELS) for name in kernels), kernels
