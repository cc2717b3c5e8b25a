"""The state of live objects as plain values that `torch.load(weights_only=True)` reads, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Stateful(Protocol):
    """What says itself what its state is, as torch's optimizers, schedulers and modules do."""

    def state_dict(self) -> dict[str, Any]:
        """The state, in tensors, numbers, strings and containers of them."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Take over a state."""
        ...


def take(value: Any) -> Any:
    """A copy of a value's state; of an object without a `state_dict`, that of all its attributes."""
    if isinstance(value, Stateful):
        return take(value.state_dict())
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, Mapping):
        return {key: take(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(take(item) for item in value)
    if _is_plain(value):
        return value
    return take(vars(value))


def give(value: Any, state: Any) -> Any:
    """Put a state that `take` copied back into a live value, and return the value or what takes its place.

    What is learned (tensors that require gradients) keeps its identity, so that an optimizer goes on to update it.
    Other tensors are replaced, as they may share their memory with one that is learned.
    """
    if isinstance(value, Stateful):
        value.load_state_dict(state)
    elif isinstance(value, Tensor):
        if not (value.is_leaf and value.requires_grad):
            return state.to(value.device)
        if value.shape != state.shape:
            raise ValueError(f"shape {list(state.shape)} instead of {list(value.shape)}")
        with torch.no_grad():
            value.copy_(state)
    elif isinstance(value, torch.Generator):
        value.set_state(state)
    elif isinstance(value, dict):
        known = {key: give(item, state[key]) for key, item in value.items() if key in state}
        value.clear()
        value.update({**state, **known})
    elif isinstance(value, list):
        value[:] = [give(item, there) for item, there in zip(value, state, strict=False)] + state[
            len(value) :
        ]
    elif isinstance(value, tuple):
        return tuple(give(item, there) for item, there in zip(value, state, strict=True))
    elif _is_plain(value):
        return value if value == state else state
    else:
        for name, before in dict(vars(value)).items():
            after = give(before, state[name])
            if after is not before:
                setattr(value, name, after)
    return value


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))
