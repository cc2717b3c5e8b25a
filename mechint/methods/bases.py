"""The coordinates that a mask is learned in: the model's channels, a closed form, or learned with the mask."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import cycle
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from mechint.data.batch import Batch
from mechint.errors import UserError
from mechint.masking.ablation import Fill
from mechint.masking.attention import hooks
from mechint.masking.basis import Basis, Maps, Where
from mechint.masking.masked_model import MaskedModel
from mechint.masking.rotary import has_rotary_embedding
from mechint.masking.sites import in_basis
from mechint.masking.space import KINDS, Kind
from mechint.masking.weights import attention_modules
from mechint.methods.schedules import CubicSchedule, Schedule
from mechint.metrics.chunked import chunks
from mechint.metrics.evaluation import Evaluator
from mechint.metrics.metric import NLL
from mechint.runtime import distributed

Keys = Literal["auto", "after_rope", "before_rope"]

# Moments are floored at this fraction of their largest eigenvalue, so that square roots can be inverted.
FLOOR = 1e-8


class BasisMethod(ABC):
    """Chooses the coordinates of keys and values from calibration data.

    name: as in `basis=` and result.json. passes: batches that it sends through the model, forward and backward, before
    learning. learned: whether the steps of learning go on to change it. schedule: the sparsity schedule that it is
    recommended with; None: the mask method's own. proofs, second_text: what a run has to show for it, see
    `PrincipalBasis`.
    """

    name: ClassVar[str]
    learned: ClassVar[bool] = False
    schedule: ClassVar[Schedule | None] = None
    passes: int = 0
    proofs: bool = False
    second_text: str | None = None

    @abstractmethod
    def fit(self, calibration: Evaluator, seed: int, start: Basis | None = None) -> MaskedModel:
        """The model, with gates that refer to the coordinates chosen.

        seed: of whatever is drawn at random. start: coordinates to begin with, where a run continues with the masks of
        another.
        """


@dataclass(kw_only=True)
class ChannelBasis(BasisMethod):
    """The channels as the model has them."""

    name: ClassVar[str] = "channels"

    def fit(self, calibration: Evaluator, seed: int, start: Basis | None = None) -> MaskedModel:
        """The model itself."""
        return in_basis(calibration.masked, None)


@dataclass(kw_only=True)
class PrincipalBasis(BasisMethod):
    """Directions by what removing them costs, in closed form, for every KV head's keys and values.

    With second moments C = E[x x^T] of keys or values x and F = E[g g^T] of the gradients g of log p(y) in them, y
    drawn from the model itself, removing directions costs the KL about half of the squared error
    |F^1/2 (1 - P) C^1/2|^2. The projection P of any rank that costs least keeps the first directions of
    F^1/2 C^1/2 = U S V^T: coordinates are x' = x C^-1/2 V, each worth S^2, which is comparable between heads, layers
    and kinds. Keys that are not rotated are taken about their mean, for softmax sees no constant. x is what an ablation
    takes away: keys and values themselves, or their difference from the mean or from those of the paired prompt.

    Where the model is sure of its answer, gradients hardly see what the answer rests on. So g is also taken on the way
    to the empty model, where a part of x is left; x is always the dense model's.

    scales: how much of x is left, in turn from pass to pass; 1 is the dense model.
    keys: where the directions of keys are; `auto`: before the rotation where there is one. passes: batches of
    calibration sequences for the moments. proofs: whether a run also learns on models with permuted weights, as many as
    `controls.permutations` says. second_text: text that the mask is measured on as well, `python_docs` or a path; None:
    no other than the run's own.

    Close to the data-aware low-rank caches of Palu (Chang et al. 2024) and EigenAttention (Saxena et al. 2024), whose
    metric is the layer's own output and not the loss.
    """

    name: ClassVar[str] = "principal"

    keys: Keys = "auto"
    passes: int = 4
    scales: Sequence[float] = (1.0, 1.0, 1.0, 0.5)
    proofs: bool = False
    second_text: str | None = None

    def __post_init__(self) -> None:
        if self.keys not in get_args(Keys):
            raise UserError(f"basis.keys={self.keys} is not known; use one of {', '.join(get_args(Keys))}")
        self.scales = tuple(self.scales)
        if not self.scales or self.scales[0] != 1 or not all(0 < scale <= 1 for scale in self.scales):
            raise UserError(
                f"basis.scales={list(self.scales)} must be numbers above 0 and up to 1, the first of them 1"
            )
        if self.passes < 1:
            raise UserError(f"basis.passes={self.passes} must be at least 1")

    def fit(self, calibration: Evaluator, seed: int, start: Basis | None = None) -> MaskedModel:
        """Measure moments and solve for the maps, head by head."""
        masked = calibration.masked
        if start is not None:
            return in_basis(masked, start)
        rotary = has_rotary_embedding(masked)
        keys: Where = ("before_rope" if rotary else "after_rope") if self.keys == "auto" else self.keys
        generator = torch.Generator().manual_seed(seed)
        moments = fisher_moments(calibration, keys, self.passes, generator, self.scales)
        centred = not rotary
        solved = [_solve(moment, centred and number % 2 == 0) for number, moment in enumerate(moments)]
        energy = torch.cat([worth.flatten() for _, worth in solved]).float()
        basis = Basis.fixed((self.name, self.name), keys, [maps for maps, _ in solved], energy)
        return in_basis(masked, basis)


@dataclass(kw_only=True)
class LearnedBasis(PrincipalBasis):
    """Directions that start as `principal` and are learned together with the mask, by descent on the objective.

    read = read_0 (1 + A), write its inverse, so a mask stays a projection at every step: nothing is rescaled. A starts
    at 0 and is updated by Adam at a rate that rises over a few steps and falls along half a cosine. Scores are learned
    over the first `score_share` of the steps; then the mask is fixed and only directions are learned. Every step is
    split into at most `updates` updates, each on its part of the batch, two sequences or more.
    """

    name: ClassVar[str] = "learned"
    learned: ClassVar[bool] = True
    schedule: ClassVar[Schedule | None] = CubicSchedule(end=2 / 3)

    learning_rate: float = 1e-2
    last_rate: float = 1e-2
    score_share: float = 0.3
    updates: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.updates < 1:
            raise UserError(f"basis.updates={self.updates} must be at least 1")
        if not self.learning_rate > 0 or not 0 <= self.last_rate <= 1 or not 0 < self.score_share <= 1:
            raise UserError(
                "basis.learning_rate must be positive, basis.last_rate in [0, 1] and basis.score_share in (0, 1]"
            )

    def fit(self, calibration: Evaluator, seed: int, start: Basis | None = None) -> MaskedModel:
        """Start from the closed form, or where another run's directions ended."""
        view = super().fit(calibration, seed, start)
        assert view.basis is not None
        self._start = [one.read for one in view.basis.maps]
        self._change = [torch.zeros_like(read).requires_grad_() for read in self._start]
        self._cache: list[Maps] | None = None
        basis = Basis((self.name, self.name), view.basis.keys, self._maps, view.basis.energy)
        return in_basis(calibration.masked, basis)

    def __getstate__(self) -> dict[str, Any]:
        """The settings alone: a copy is for another run, and directions hold gradients that cannot be copied."""
        return {setting.name: getattr(self, setting.name) for setting in fields(self)}

    def score_steps(self, steps: int) -> int:
        """How many of the steps the scores are learned in, too."""
        return max(1, round(steps * self.score_share))

    def optimizer(self) -> torch.optim.Optimizer:
        """Updates the directions."""
        return torch.optim.Adam(self._change, lr=self.learning_rate, betas=(0.9, 0.99), eps=1e-12)

    def step(self, optimizer: torch.optim.Optimizer, number: float, steps: int) -> None:
        """Update the directions after the backward pass of the update of this number."""
        cosine = 0.5 * (1 + math.cos(math.pi * number / max(steps, 1)))
        rate = (
            self.learning_rate * (self.last_rate + (1 - self.last_rate) * cosine) * min(1, (number + 1) / 5)
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        distributed.average(change.grad for change in self._change if change.grad is not None)
        optimizer.step()
        optimizer.zero_grad()
        self._cache = None

    def state_dict(self) -> dict[str, Any]:
        """The directions learned so far."""
        return {"change": [change.detach().cpu().clone() for change in self._change]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state."""
        with torch.no_grad():
            for change, state in zip(self._change, state_dict["change"], strict=True):
                change.copy_(state)
        self._cache = None

    def _maps(self) -> Sequence[Maps]:
        if torch.is_grad_enabled():
            return self._made(torch.linalg.inv)
        if self._cache is None:
            self._cache = self._made(lambda read: torch.linalg.inv(read.double()).float())
        return self._cache

    def _made(self, invert: Callable[[Tensor], Tensor]) -> list[Maps]:
        reads = [start + start @ change for start, change in zip(self._start, self._change, strict=True)]
        return [Maps(read, invert(read)) for read in reads]


@dataclass
class Moments:
    """Second moments [G, C, C] and means [G, C] of one layer's keys or values, and moments of gradients in them."""

    states: Tensor
    gradients: Tensor
    mean: Tensor


class _Leaves:
    """Takes a layer's keys and values a part of the way to their ablation and adds zero, so that a backward pass leaves
    the gradients in them.

    fills: of keys and of values; None: zero. scale: how much is left of what the ablation takes away.
    """

    def __init__(self, before: bool, scale: float, fills: tuple[Fill | None, Fill | None]) -> None:
        self._before, self._scale = before, scale
        self._fills = dict(zip(KINDS, fills, strict=True))
        self.states: dict[Kind, Tensor] = {}
        self.leaves: dict[Kind, Tensor] = {}

    def before_rotation(self, states: str, values: Tensor) -> Tensor:
        """Keys before the rotation."""
        return self._add("k", values) if self._before and states == "key" else values

    def __call__(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        return (key if self._before else self._add("k", key)), self._add("v", value)

    def _add(self, kind: Kind, values: Tensor) -> Tensor:
        fill = self._fills[kind]
        if fill is not None:
            fill = (fill if fill.dim() == 4 else fill[:, None]).to(values.dtype)
        self.states[kind] = (values if fill is None else values - fill).detach()
        self.leaves[kind] = torch.zeros_like(values, requires_grad=True)
        if self._scale == 1:
            return values + self.leaves[kind]
        left = self._scale * values
        return (left if fill is None else left + (1 - self._scale) * fill) + self.leaves[kind]


def fisher_moments(
    calibration: Evaluator,
    keys: Where,
    passes: int,
    generator: torch.Generator,
    scales: Sequence[float] = (1.0,),
) -> list[Moments]:
    """Moments of what the ablation takes from every layer's keys and values, and of the gradients of log p(y) in them,
    y drawn from the model.

    In the order of `ChannelSpace.slices`, from the first passes * at_once calibration sequences. scales: how much is
    left of what the ablation takes away, in turn from pass to pass; states are those of the passes with all of it.
    """
    masked = calibration.masked
    modules = attention_modules(masked)
    view = _where_keys_are(masked, keys)
    ablation = calibration.ablation.fit(view, calibration.batch, calibration.at_once)
    totals: list[Moments] | None = None
    states_seen = gradients_seen = 0
    parts = torch.arange(len(calibration.batch)).split(calibration.at_once)[:passes]
    for part, scale in zip(parts, cycle(scales), strict=False):
        batch = calibration.batch[part].to(masked.device)
        fills: Sequence[Fill | None] = ablation.fills(view, batch) or [None] * (2 * len(modules))
        leaves = [
            _Leaves(keys == "before_rope", scale, (fills[2 * layer], fills[2 * layer + 1]))
            for layer in range(len(modules))
        ]
        with hooks(list(zip(modules, leaves, strict=True))), torch.enable_grad():
            hidden = masked.hidden(Batch(batch.tokens, attention_mask=batch.attention_mask))
            answers = _draw(masked, hidden.detach(), generator)
            asked = Batch(batch.tokens, answers=answers, counted=_asked_positions(batch))
            NLL.per_position(hidden, asked, None, masked.head).sum().backward()
        there = batch.attention_mask
        found = [
            _moments(leaf.states[kind], leaf.leaves[kind].grad, there) for leaf in leaves for kind in KINDS
        ]
        seen = batch.tokens.numel() if there is None else int(there.sum())
        gradients_seen += seen
        states_seen += seen if scale == 1 else 0
        if totals is None:
            totals = found
            continue
        for total, more in zip(totals, found, strict=True):
            total.gradients += more.gradients
            if scale == 1:
                total.states += more.states
                total.mean += more.mean
    assert totals is not None
    return [
        Moments(m.states / states_seen, m.gradients / gradients_seen, m.mean / states_seen) for m in totals
    ]


def _where_keys_are(masked: MaskedModel, keys: Where) -> MaskedModel:
    """The model in its own coordinates, with keys seen before or after their rotation."""
    if keys == "after_rope":
        return in_basis(masked, None)
    units = [
        torch.eye(layer.width(kind)).expand(layer.num_kv_heads, -1, -1).to(masked.device)
        for layer in masked.space.layers
        for kind in KINDS
    ]
    return in_basis(masked, Basis.fixed(("channels", "channels"), keys, [Maps(one, one) for one in units]))


def _asked_positions(batch: Batch) -> Tensor | None:
    """Of prompts only the answers matter; of running text every position does."""
    return batch.counted if batch.foils is not None else batch.attention_mask


def _moments(states: Tensor, gradient: Tensor | None, there: Tensor | None) -> Moments:
    """there: bool [B, T], the positions that are not padding; None: all."""
    assert gradient is not None
    x, g = (t.double().transpose(0, 1).flatten(1, 2) for t in (states, gradient))  # [G, B * T, C]
    if there is not None:
        x, g = x[:, there.flatten()], g[:, there.flatten()]
    return Moments(x.mT @ x, g.mT @ g, x.sum(1))


@torch.no_grad()
def _draw(masked: MaskedModel, hidden: Tensor, generator: torch.Generator) -> Tensor:
    """Next tokens [B, T] drawn from the model, from its final hidden states [B, T, D]."""
    flat = hidden.flatten(0, 1)
    uniform = torch.rand(len(flat), 1, generator=generator).to(flat.device)
    drawn = torch.empty(len(flat), dtype=torch.long, device=flat.device)
    for chunk in chunks(len(flat), masked.head.vocab_size(hidden)):
        cumulative = masked.head(flat[chunk]).float().softmax(-1).cumsum(-1)
        found = torch.searchsorted(cumulative, uniform[chunk] * cumulative[:, -1:])
        drawn[chunk] = found.squeeze(1).clamp_max(cumulative.shape[1] - 1)
    return drawn.view(hidden.shape[:2])


def _solve(moments: Moments, centred: bool) -> tuple[Maps, Tensor]:
    """Maps of the directions that cost most to remove, first, and what each costs, [G, C]."""
    states = moments.states
    if centred:
        states = states - moments.mean[:, :, None] * moments.mean[:, None, :]
    root, inverse = _root(states, 0.5), _root(states, -0.5)
    _, values, right = torch.linalg.svd(_root(moments.gradients, 0.5) @ root)
    # Half of each direction's worth goes into either map: they are then nearly orthogonal, and learning is even.
    scale = torch.maximum(values, FLOOR * values[:, :1]).clamp_min(1e-30).sqrt()[:, None, :]
    read, write = inverse @ right.mT * scale, right @ root / scale.mT
    return Maps(read.float(), write.float()), values.square()


def _root(matrix: Tensor, power: float) -> Tensor:
    """A power of symmetric positive matrices [G, C, C], whose smallest eigenvalues are floored."""
    values, vectors = torch.linalg.eigh(matrix)
    floor = (FLOOR * values.amax(-1, keepdim=True)).clamp_min(1e-30)
    return vectors @ (torch.maximum(values, floor).pow(power)[..., None] * vectors.mT)
