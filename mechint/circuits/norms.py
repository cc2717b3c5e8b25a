"""What norms do to directions of the residual stream, taken as linear: the scale, which depends on the text, is left
out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mechint.masking import MaskedModel
from mechint.masking.layers import some_tokens

# What a decoder's last norm is called in transformers.
NORMS = ("norm", "ln_f", "final_layernorm", "final_layer_norm", "norm_f")


@dataclass(frozen=True)
class LinearPart:
    """weight: float32 [D]. centred: whether the mean is taken out before, as LayerNorm does."""

    weight: Tensor
    centred: bool

    def after(self, direction: Tensor) -> Tensor:
        """A direction [..., D] of the stream after the norm."""
        return self.weight * (_centred(direction) if self.centred else direction)

    def read_before(self, rows: Tensor) -> Tensor:
        """What rows [..., D] that read the norm's output read of the stream before it."""
        rows = rows * self.weight.to(rows.device)
        return _centred(rows) if self.centred else rows


@torch.no_grad()
def linear_part(norm: nn.Module, width: int, device: torch.device) -> LinearPart:
    """The linear part of a norm over D = width, measured: some norms multiply by 1 + weight, some have no weight."""
    own = next(norm.parameters(), None)
    signs = torch.ones(width, device=device, dtype=torch.float32 if own is None else own.dtype)
    signs[1::2] = -1  # of mean 0 and mean square 1, so that no norm scales it
    up, down, shifted = norm(torch.stack([signs, -signs, signs + 1])[None])[0].float()
    return LinearPart((up - down) / 2 * signs.float(), torch.allclose(up, shifted, rtol=1e-2, atol=1e-3))


def final_norm(model: nn.Module) -> nn.Module | None:
    """The norm after a decoder's last layer; None where it has no known name."""
    base: Any = getattr(model, "base_model", model)
    for place in (base, getattr(base, "decoder", None)):
        for name in NORMS:
            found = getattr(place, name, None)
            if isinstance(found, nn.Module) and isinstance(getattr(found, "weight", None), Tensor):
                return found
    return None


@torch.no_grad()
def norms_before(masked: MaskedModel, linears: Sequence[nn.Module]) -> dict[nn.Module, LinearPart]:
    """The norms whose outputs these linear layers read; layers that read something else are left out."""
    outputs: list[tuple[nn.Module, Tensor]] = []
    found: dict[nn.Module, nn.Module] = {}
    widths: dict[nn.Module, int] = {}

    def norm_ran(module: nn.Module, arguments: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            outputs.append((module, output))

    def reads(linear: nn.Module) -> Callable[..., None]:
        def before(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            read = arguments[0]
            for norm, output in reversed(outputs):
                if output.data_ptr() == read.data_ptr() and output.shape == read.shape:
                    found[linear], widths[linear] = norm, read.shape[-1]
                    return

        return before

    with ExitStack() as stack:
        for module in masked.model.modules():
            if "norm" in type(module).__name__.lower():
                stack.enter_context(module.register_forward_hook(norm_ran))
        for linear in linears:
            stack.enter_context(linear.register_forward_pre_hook(reads(linear)))
        masked.model.base_model(input_ids=some_tokens(masked.model, 1, 2), use_cache=False)
    return {linear: linear_part(norm, widths[linear], masked.device) for linear, norm in found.items()}


def _centred(directions: Tensor) -> Tensor:
    return directions - directions.mean(-1, keepdim=True)
