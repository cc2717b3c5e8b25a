"""Planted models that each add one property of real models to the base."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from mechint.errors import UserError
from mechint.learning.method import Ablation
from mechint.masking.units import Unit
from mechint.planted.blueprint import Blueprint, K, V
from mechint.planted.certificate import knock_out
from mechint.planted.induction import CIRCUIT_HEAD, Induction
from mechint.planted.model import PlantedModel
from mechint.planted.planted import Planted


@dataclass(kw_only=True)
class Grouped(Induction):
    """Grouped queries: every KV head serves several query heads, which take turns in writing the circuit's values.

    One more distractor: a value of the induction head that two query heads read with opposite signs. Each reader's share is
    large, the KV head's is nothing.
    """

    num_kv_heads: int = 4
    name: ClassVar[str] = "grouped"

    def values(self, blueprint: Blueprint) -> None:
        """The circuit's values and the one whose readers cancel."""
        super().values(blueprint)
        if blueprint.group < 2:
            raise UserError(f"planted.grouped: num_kv_heads={self.num_kv_heads} must be below num_heads={self.num_heads}")
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
    """Heads of weak Gaussian noise besides the circuit: no unit of theirs is quite inert, and their worth spreads over decades.

    The truth is graded: `certificate.effect`. The planted units are those worth most, by a wide margin.
    noise_heads: KV heads per layer. weakness: size of the strongest channel's output weights; the others fall
    geometrically to a hundredth of it.
    """

    noise_heads: int = 2
    weakness: float = 0.001
    name: ClassVar[str] = "graded"
    inert: ClassVar[float] = 1e-3

    def distractors(self, blueprint: Blueprint, generator: torch.Generator) -> None:
        """The noise heads, and the base's distractors in the others."""
        num_layers, _, num_heads, _ = blueprint.planted.shape
        if self.noise_heads > num_heads - 2:
            raise UserError(f"planted.graded: noise_heads={self.noise_heads} must be at most {num_heads - 2}")
        fall = self.weakness * torch.logspace(0, -2, self.head_dim, dtype=torch.double)[:, None]
        for layer in range(num_layers):
            for head in range(num_heads - self.noise_heads, num_heads):
                heads = blueprint.query_heads(head)
                for weights, index in ((blueprint.query, heads), (blueprint.key, head), (blueprint.value, head)):
                    weights[layer, index] = torch.randn(
                        weights[layer, index].shape, generator=generator, dtype=torch.double
                    )
                shape = blueprint.output[layer, heads].shape
                blueprint.output[layer, heads] = fall * torch.randn(shape, generator=generator, dtype=torch.double)
                for kind in (K, V):
                    for channel in range(self.head_dim):
                        blueprint.mark((layer, kind, head, channel), "weak noise")
        super().distractors(blueprint, generator)


@dataclass(kw_only=True)
class Rotated(Induction):
    """The values of both circuit heads in a random orthogonal basis: the same function, but no value channel is to spare.

    What a mask can remove depends on the basis. Here each of the two heads needs all its value channels.
    """

    name: ClassVar[str] = "rotated"

    def distractors(self, blueprint: Blueprint, generator: torch.Generator) -> None:
        """The base's distractors; then the rotation, which mixes them with the circuit."""
        super().distractors(blueprint, generator)
        rotate_values(blueprint, generator)


def rotate_values(blueprint: Blueprint, generator: torch.Generator) -> None:
    """V -> R V and O -> O R^T in the circuit's heads, with a random orthogonal R [C, C] each; marks all their value channels."""
    num_layers, _, _, width = blueprint.planted.shape
    heads = blueprint.query_heads(CIRCUIT_HEAD)
    for layer in range(num_layers):
        gaussian = torch.randn(width, width, generator=generator, dtype=torch.double)
        rotation = torch.linalg.qr(gaussian).Q  # [C, C]
        blueprint.value[layer, CIRCUIT_HEAD] = rotation @ blueprint.value[layer, CIRCUIT_HEAD]
        blueprint.output[layer, heads] = rotation @ blueprint.output[layer, heads]
        for channel in range(width):
            blueprint.mark((layer, V, CIRCUIT_HEAD, channel), "value in a rotated basis", planted=True)


@dataclass(kw_only=True)
class Null(Induction):
    """The base with its attention weights permuted at random: there is no truth, and no small mask should explain the model.

    Methods keep as many units as the base has planted ones.
    """

    name: ClassVar[str] = "null"

    def draw(self, generator: torch.Generator, ablation: Ablation) -> Blueprint:
        """The base, with the entries of every weight tensor permuted."""
        blueprint = super().draw(generator, ablation)
        for weights in (blueprint.query, blueprint.key, blueprint.value, blueprint.output):
            for layer in weights.unbind():
                order = torch.randperm(layer.numel(), generator=generator)
                layer.copy_(layer.flatten()[order].view_as(layer))
        return blueprint

    def certify(self, planted: Planted, joint: Tensor) -> Planted:  # noqa: ARG002
        """Nothing is true; the certificate holds what every unit is worth."""
        size = int(planted.truth.sum())
        labels = tuple(label.split(":")[0] + ": permuted" for label in planted.labels)
        empty = replace(planted, truth=torch.zeros_like(planted.truth), budget=size, labels=labels)
        return replace(empty, certificate=knock_out(empty, answers=slice(self.distinct + 1, None)))
