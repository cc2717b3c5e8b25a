"""NaN and infinity: found at once, and named."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mechint.errors import UserError
from mechint.masking.masked_model import MaskedModel


def require_finite_outputs(masked: MaskedModel, tokens: Tensor, logits: Tensor) -> None:
    """Raise UserError that names the first module at fault where the dense model's logits [B, T, V] are not finite."""
    if bool(logits.isfinite().all()):
        return
    where = first_not_finite(masked.model, tokens)
    raise UserError(
        f"the dense model's outputs are not finite, first in {where}; {_remedy(masked.model.dtype)}"
    )


def require_finite_step(step: int, loss: float, sound: bool, masked: MaskedModel) -> None:
    """Raise UserError where a step's loss is not finite, or its gradients are not `sound`."""
    if math.isfinite(loss) and sound:
        return
    what = "gradients are not finite" if math.isfinite(loss) else f"loss is {loss}"
    remedy = _remedy(masked.model.dtype)
    raise UserError(
        f"step {step}: the {what}, so the run stops before this update; {remedy}, or lower optimizer.lr"
    )


def gradients_finite(groups: Iterable[dict[str, Any]]) -> Tensor:
    """Whether all gradients of an optimizer's parameter groups are finite, bool []."""
    found = [p.grad.isfinite().all() for group in groups for p in group["params"] if p.grad is not None]
    return torch.stack(found).all() if found else torch.tensor(True)


def require_finite_scores(scores: Tensor, method: str) -> None:
    """Raise UserError where a method's scores [U] are not finite."""
    if bad := int((~scores.isfinite()).sum()):
        raise UserError(f"{bad} of {len(scores)} scores of {method} are not finite; set dtype=float32")


@torch.no_grad()
def first_not_finite(model: nn.Module, tokens: Tensor) -> str:
    """The name of the first module, in the order of computation, whose output for tokens [B, T] is not finite."""
    found: list[str] = []

    def hook_for(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            tensors = output if isinstance(output, tuple) else (output,)
            numbers = [t for t in tensors if isinstance(t, Tensor) and t.is_floating_point()]
            if not found and any(not bool(number.isfinite().all()) for number in numbers):
                found.append(name)

        return hook

    handles = [module.register_forward_hook(hook_for(name)) for name, module in model.named_modules() if name]
    try:
        model(input_ids=tokens, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else "the logits"


def _remedy(dtype: torch.dtype) -> str:
    if dtype == torch.float32:
        return "check the checkpoint"
    return f"{str(dtype).removeprefix('torch.')} is too coarse or overflows here: set dtype=float32"
