"""Planted models that each add one property of real models to the base."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from mechint.errors import UserError
from mechint.masking.ablation import Ablation
from mechint.masking.units import Unit
from mechint.validation.blueprint import Blueprint, K, V, gaussian
from mechint.validation.induction import CIRCUIT_HEAD, Induction
from mechint.validation.model import PlantedModel


@dataclass(kw_only=True)
class Grouped(Induction):
    """Grouped queries: every KV head serves several query heads, which take turns in writing the circuit's values.

    One more distractor: a value of the induction head that two query heads read with opposite signs. Each reader's
    share is large, the KV head's is nothing.
    """

    num_kv_heads: int = 4
    name: ClassVar[str] = "grouped"

    def values(self, blueprint: Blueprint) -> None:
        """The circuit's values and the one whose readers cancel."""
        super().values(blueprint)
        if blueprint.group < 2:
            raise UserError(
                f"planted.grouped: num_kv_heads={self.num_kv_heads} must be below num_heads={self.num_heads}"
            )
        channel = blueprint.free(1, V, CIRCUIT_HEAD)[0]
        blueprint.value[1, CIRCUIT_HEAD, channel, : self.num_tokens] = 1
        for reader, sign in zip(range(blueprint.group), (1, -1), strict=False):
            blueprint.output[1, reader, channel, blueprint.stream.answer(0)] = sign * self.logit
        blueprint.mark((1, V, CIRCUIT_HEAD, channel), "value whose readers cancel")


@dataclass(kw_only=True)
class Rope(Induction):
    """RoPE instead of learned positions, with rotated pairs as units.

    Keys and queries of the previous-token head are constant; on the two fastest pairs their phase makes scores peak one
    position back, on each by `position_sharpness` nats above the neighbours, so that neither pair is enough alone.
    Induction keys lie on the slowest pairs, two tokens on each. A constant key is not inert once it is
    rotated, so the circuit's heads have no distractors of kind 3.
    """

    rope_theta: float = 500_000.0
    position_sharpness: float = 2.0
    unit: Unit = "rope_pair"
    name: ClassVar[str] = "rope"

    @property
    def num_positions(self) -> int:
        """No position has a place in the stream."""
        return 0

    def build(self, blueprint: Blueprint) -> PlantedModel:
        """The model of a blueprint."""
        return blueprint.build(rotary=True, rope_theta=self.rope_theta)

    def previous_token_keys(self, blueprint: Blueprint, generator: torch.Generator) -> None:
        """Layer 0: score sum_p size_p cos(frequency_p (i - j - 1)) over the two fastest pairs p."""
        bias, heads, half = blueprint.stream.bias, blueprint.query_heads(CIRCUIT_HEAD), self.head_dim // 2
        for pair in range(2):
            frequency = self.rope_theta ** (-pair / half)
            phase = 2 * math.pi * torch.rand((), generator=generator).item()
            size = self.position_sharpness / (1 - math.cos(frequency)) * math.sqrt(self.head_dim)
            for channel, wave, name in ((pair, math.cos, "cosine"), (pair + half, math.sin, "sine")):
                blueprint.query[0, heads, channel, bias] = size * wave(phase - frequency)
                blueprint.key[0, CIRCUIT_HEAD, channel, bias] = wave(phase)
                text = f"previous-token key, {name} of pair {pair}"
                blueprint.mark((0, K, CIRCUIT_HEAD, channel), text, planted=True)

    def induction_keys(self, blueprint: Blueprint) -> None:
        """Layer 1: as in the base, on pairs that hardly turn within a row."""
        stream, heads, half = blueprint.stream, blueprint.query_heads(CIRCUIT_HEAD), self.head_dim // 2
        for t in range(self.num_tokens):
            channel = half - 1 - t // 2 + (t % 2) * half
            blueprint.query[1, heads, channel, stream.token(t)] = self.sharpness * math.sqrt(self.head_dim)
            blueprint.key[1, CIRCUIT_HEAD, channel, stream.previous(t)] = 1
            blueprint.mark((1, K, CIRCUIT_HEAD, channel), f"induction key of token {t + 1}", planted=True)

    def may_be_constant(self, head: int) -> bool:
        """Not where attention matters."""
        return head != CIRCUIT_HEAD

    def shuffle(self, blueprint: Blueprint, generator: torch.Generator) -> None:
        """Key channels stay with their frequency."""
        blueprint.shuffle(generator, keys=False)


@dataclass(kw_only=True)
class Graded(Induction):
    """Heads of weak Gaussian noise besides the circuit: none of their units is quite inert.

    Their worth spreads over decades, so the truth is graded (`certificate.effect`); the planted units are those worth
    most, by a wide margin. noise_heads: KV heads per layer. weakness: size of the strongest channel's output weights;
    those of the others fall geometrically to a hundredth of it.
    """

    noise_heads: int = 2
    weakness: float = 0.0005
    name: ClassVar[str] = "graded"
    inert: ClassVar[float] = 1e-3

    def distractors(self, blueprint: Blueprint, generator: torch.Generator) -> None:
        """The noise heads, and the base's distractors in the others."""
        num_layers, _, num_heads, _ = blueprint.planted.shape
        if not 0 < self.noise_heads <= num_heads - 2:
            raise UserError(
                f"planted.graded: noise_heads={self.noise_heads} must be from 1 to {num_heads - 2}"
            )
        fall = self.weakness * torch.logspace(0, -2, self.head_dim, dtype=torch.double)[:, None]
        for layer in range(num_layers):
            for head in range(num_heads - self.noise_heads, num_heads):
                heads = blueprint.query_heads(head)
                output = blueprint.output[layer, heads]
                output.copy_(fall * gaussian(output, generator))
                blueprint.read(blueprint.query[layer, heads], 1.0, generator)
                for kind, weights in ((K, blueprint.key), (V, blueprint.value)):
                    blueprint.read(weights[layer, head], 1.0, generator)
                    for channel in range(self.head_dim):
                        blueprint.mark((layer, kind, head, channel), "weak noise")
        super().distractors(blueprint, generator)


@dataclass(kw_only=True)
class Rotated(Induction):
    """The values of both circuit heads in a random orthogonal basis: the same function, but no value to spare.

    What a mask can remove depends on the basis. Here each of the two heads needs all its value channels.
    """

    name: ClassVar[str] = "rotated"

    def distractors(self, blueprint: Blueprint, generator: torch.Generator) -> None:
        """The base's distractors; then the rotation, which mixes them with the circuit."""
        super().distractors(blueprint, generator)
        rotate_values(blueprint, generator)


def rotate_values(blueprint: Blueprint, generator: torch.Generator) -> None:
    """V -> R V and O -> O R^T in the circuit's heads, with a random orthogonal R [C, C] each.

    Marks all their value channels as planted.
    """
    num_layers, _, _, width = blueprint.planted.shape
    heads = blueprint.query_heads(CIRCUIT_HEAD)
    for layer in range(num_layers):
        rotation = torch.linalg.qr(gaussian(torch.empty(width, width).double(), generator)).Q  # [C, C]
        blueprint.value[layer, CIRCUIT_HEAD] = rotation @ blueprint.value[layer, CIRCUIT_HEAD]
        blueprint.output[layer, heads] = rotation @ blueprint.output[layer, heads]
        blueprint.dimensions[layer, V, CIRCUIT_HEAD] = blueprint.planted[layer, V, CIRCUIT_HEAD].sum()
        for channel in range(width):
            blueprint.mark((layer, V, CIRCUIT_HEAD, channel), "value in a rotated basis", planted=True)


@dataclass(kw_only=True)
class Permuted(Induction):
    """The base with its attention weights permuted at random: nothing is planted, so nothing can be recovered.

    A control for claims: how much of a model without a circuit a mask of the base's size explains. It is not little, as
    few of the weights are large. All are smaller than in the base, for outputs of ordinary size.
    """

    logit: float = 4.0
    loudness: float = 0.3
    name: ClassVar[str] = "permuted"
    has_truth: ClassVar[bool] = False

    def draw(self, generator: torch.Generator, ablation: Ablation) -> Blueprint:
        """The base, with the entries of every weight tensor permuted."""
        blueprint = super().draw(generator, ablation)
        for weights in (blueprint.query, blueprint.key, blueprint.value, blueprint.output):
            for layer in weights.unbind():
                order = torch.randperm(layer.numel(), generator=generator)
                layer.copy_(layer.flatten()[order].view_as(layer))
        blueprint.purpose[:] = "permuted"
        return blueprint
