"""The base of all planted models: an induction circuit among distractors."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from mechint.data.batch import Batch
from mechint.errors import UserError
from mechint.masking import MaskedModel, make_units
from mechint.masking.ablation import ZERO, Ablation
from mechint.masking.units import Unit
from mechint.validation.blueprint import Blueprint, K, Place, Stream, V, gaussian
from mechint.validation.certificate import check, knock_out
from mechint.validation.model import PlantedModel
from mechint.validation.planted import Planted, labels

# The KV heads that matter, before they are moved to random places.
CIRCUIT_HEAD, CONSTANT_HEAD = 0, 1


@dataclass(kw_only=True)
class Induction:
    """Two layers that continue a repeated row of tokens; every K and V channel it takes is known.

    In layer 0 a head writes each position's previous token; in layer 1 a head finds the position whose previous token
    is the current one and copies that position's token. Keys and values are one-hot, so each needs a channel of its
    own. Everything else is a distractor, of six kinds, each of which misleads one family of methods:

    1. loud keys that no query reads (activation norms),
    2. loud values that no output reads (activation norms),
    3. loud queries on keys that are the same at all positions, which softmax ignores (products of norms),
    4. two values that cancel, though each alone is worth more than most planted units (knock-outs, gradients),
    5. a value that is always the same: planted under zero ablation, inert under all others,
    6. heads whose queries, keys and values are all live and loud, but which write where nothing reads (products of
       norms, of weights or activations).

    Keys that only tell positions apart are inert where the ablation does so, too: `mean_per_position`, and
    `counterfactual`, under which every row is paired with the next one. The truth holds for the mean KL over all
    positions. A seed decides distractors, places and rows.

    num_tokens: how many different tokens there are. distinct: how many a row shows before it repeats them. skew: token
    t is drawn in proportion to t^-skew, so that units differ in worth. sharpness: the attention score of a match, in
    nats. logit: of the answer. loudness: size of the distractors, where planted keys and values have size 1.

    Raises UserError for sizes the circuit does not fit in.
    """

    num_heads: int = 8
    num_kv_heads: int = 8
    head_dim: int = 32
    num_tokens: int = 16
    distinct: int = 8
    skew: float = 1.5
    sharpness: float = 12.0
    logit: float = 8.0
    loudness: float = 3.0
    unit: Unit = "channel"
    calibration_rows: int = 512
    evaluation_rows: int = 64

    name: ClassVar[str] = "induction"
    # Units count as inert up to this KL, in nats.
    inert: ClassVar[float] = 1e-6
    has_truth: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.num_kv_heads < 2 or self.num_heads % self.num_kv_heads:
            raise UserError(
                f"planted.{self.name}: num_heads={self.num_heads} must be a multiple of "
                f"num_kv_heads={self.num_kv_heads}, which must be at least 2"
            )
        needed = max(self.num_tokens + 3, self.distinct + 2)
        if self.head_dim < needed or not 2 <= self.distinct <= self.num_tokens:
            raise UserError(
                f"planted.{self.name}: the circuit needs 2 <= distinct <= num_tokens and head_dim >= {needed}, not "
                f"distinct={self.distinct}, num_tokens={self.num_tokens}, head_dim={self.head_dim}"
            )

    @property
    def length(self) -> int:
        """T, the inputs of a row: the beginning and `distinct` tokens twice."""
        return 2 * self.distinct + 1

    def plant(self, seed: int, ablation: Ablation = ZERO) -> Planted:
        """Build the model and its rows, and certify the truth by knock-outs.

        Raises UserError where a planted unit turns out to be inert or an inert one to matter.
        """
        generator = torch.Generator().manual_seed(seed)
        blueprint = self.draw(generator, ablation)
        masked = MaskedModel(self.build(blueprint))
        rows, evaluation = (
            beside_the_next(Batch.of_rows(self.rows(count, generator)))
            for count in (self.calibration_rows, self.evaluation_rows)
        )
        ablation = ablation.fit(masked, rows, at_once=64)
        units = make_units(masked, self.unit)
        marked = any_of_unit(units.of_channel, blueprint.planted.flatten(), units.count)
        truth = marked if self.has_truth else torch.zeros_like(marked)
        planted = Planted(
            name=self.name,
            seed=seed,
            ablation=ablation,
            unit=self.unit,
            masked=masked,
            units=units,
            calibration=rows,
            evaluation=evaluation,
            truth=truth,
            size=int(marked.sum()),
            labels=labels(units, blueprint.purpose.ravel().tolist()),
            needed=blueprint.needed,
            inert=self.inert,
            certificate=knock_out(
                masked, units, truth, evaluation, ablation, answers=slice(self.distinct + 1, None)
            ),
        )
        if self.has_truth:
            check(planted, any_of_unit(units.of_channel, blueprint.joint.flatten(), units.count), self.inert)
        return planted

    def rows(self, count: int, generator: torch.Generator) -> Tensor:
        """Rows [count, T + 1]: the beginning (0), `distinct` different tokens, the same again, and their first."""
        frequency = torch.arange(1.0, self.num_tokens + 1) ** -self.skew
        order = torch.multinomial(frequency.expand(count, -1), self.distinct, generator=generator) + 1
        return torch.cat([torch.zeros(count, 1, dtype=torch.long), order, order, order[:, :1]], dim=1)

    def draw(self, generator: torch.Generator, ablation: Ablation) -> Blueprint:
        """The weights and what each channel is for."""
        stream = Stream(self.num_tokens, self.num_positions)
        blueprint = Blueprint(stream, 2, self.num_heads, self.num_kv_heads, self.head_dim)
        self.previous_token_keys(blueprint, generator)
        if ablation.keeps_positions:  # the same on every row
            blueprint.planted[:] = False
        self.induction_keys(blueprint)
        self.values(blueprint)
        self.cancelling_pair(blueprint, generator)
        self.constant_value(blueprint, generator, ablation)
        self.distractors(blueprint, generator)
        self.shuffle(blueprint, generator)
        return blueprint

    def build(self, blueprint: Blueprint) -> PlantedModel:
        """The model of a blueprint."""
        return blueprint.build()

    @property
    def num_positions(self) -> int:
        """How many positions have a place in the stream."""
        return self.length

    def previous_token_keys(self, blueprint: Blueprint, generator: torch.Generator) -> None:
        """Layer 0: position i looks for position i - 1, up to the first repeated token.

        What later positions find is never looked up.
        """
        stream, heads = blueprint.stream, blueprint.query_heads(CIRCUIT_HEAD)
        for i in range(1, self.distinct + 2):
            blueprint.query[0, heads, i, stream.position(i)] = self.sharpness * math.sqrt(self.head_dim)
            blueprint.key[0, CIRCUIT_HEAD, i, stream.position(i - 1)] = 1
            blueprint.mark((0, K, CIRCUIT_HEAD, i), f"previous-token key of position {i}", planted=True)

    def induction_keys(self, blueprint: Blueprint) -> None:
        """Layer 1: a token looks for the position whose previous token it is."""
        stream, heads = blueprint.stream, blueprint.query_heads(CIRCUIT_HEAD)
        for t in range(self.num_tokens):
            blueprint.query[1, heads, t, stream.token(t)] = self.sharpness * math.sqrt(self.head_dim)
            blueprint.key[1, CIRCUIT_HEAD, t, stream.previous(t)] = 1
            blueprint.mark((1, K, CIRCUIT_HEAD, t), f"induction key of token {t + 1}", planted=True)

    def values(self, blueprint: Blueprint) -> None:
        """Both circuit heads read tokens; layer 0 writes the previous token, layer 1 the answer.

        With grouped queries, the query heads of the group take turns in writing them.
        """
        stream, heads = blueprint.stream, blueprint.query_heads(CIRCUIT_HEAD)
        for t in range(self.num_tokens):
            writer = heads.start + t % blueprint.group
            for layer, column, size, text in (
                (0, stream.previous(t), 1.0, "previous-token value"),
                (1, stream.answer(t), self.logit, "induction value"),
            ):
                blueprint.value[layer, CIRCUIT_HEAD, t, stream.token(t)] = 1
                blueprint.output[layer, writer, t, column] = size
                blueprint.mark((layer, V, CIRCUIT_HEAD, t), f"{text} of token {t + 1}", planted=True)

    def cancelling_pair(self, blueprint: Blueprint, generator: torch.Generator) -> None:
        """Distractor 4, in the induction head: two equal values with opposite outputs."""
        stream, writer = blueprint.stream, blueprint.query_heads(CIRCUIT_HEAD).start
        answers = slice(stream.answer(0), stream.answer(self.num_tokens))
        direction = self.logit / 2 * torch.randn(self.num_tokens, generator=generator, dtype=torch.double)
        for channel, sign in zip(blueprint.free(1, V, CIRCUIT_HEAD)[-2:], (1, -1), strict=True):
            blueprint.value[1, CIRCUIT_HEAD, channel, : self.num_tokens] = 1
            blueprint.output[1, writer, channel, answers] = sign * direction
            blueprint.mark((1, V, CIRCUIT_HEAD, channel), "one of a cancelling pair", joint=True)

    def constant_value(self, blueprint: Blueprint, generator: torch.Generator, ablation: Ablation) -> None:
        """Distractor 5, in another head of layer 1: a value that only its bias feeds."""
        answer = blueprint.stream.answer(int(torch.randint(self.num_tokens, (), generator=generator)))
        blueprint.value[1, CONSTANT_HEAD, 0, blueprint.stream.bias] = 1
        blueprint.output[1, blueprint.query_heads(CONSTANT_HEAD).start, 0, answer] = self.logit / 4
        blueprint.mark((1, V, CONSTANT_HEAD, 0), "constant value", planted=ablation.name == "zero")

    def distractors(self, blueprint: Blueprint, generator: torch.Generator) -> None:
        """Distractors 1, 2, 3 and 6, in every channel that is still free."""
        num_layers, _, num_heads, _ = blueprint.planted.shape
        for layer in range(num_layers):
            for head in range(num_heads):
                for channel in blueprint.free(layer, K, head):
                    self.idle_key(blueprint, (layer, K, head, channel), generator)
                for channel in blueprint.free(layer, V, head):
                    self.idle_value(blueprint, (layer, V, head, channel), generator)

    def idle_key(self, blueprint: Blueprint, place: Place, generator: torch.Generator) -> None:
        """A key that is not read, or constant, or, outside the circuit's heads, of no consequence."""
        layer, _, head, channel = place
        kinds = ["key without a query"]
        kinds += ["constant key"] if self.may_be_constant(head) else []
        kinds += ["key of an idle head"] if head != CIRCUIT_HEAD else []
        kind = kinds[int(torch.randint(len(kinds), (), generator=generator))]
        query = blueprint.query[layer, blueprint.query_heads(head), channel]
        key = blueprint.key[layer, head, channel]
        if kind == "constant key":
            key[blueprint.stream.bias] = self.loudness
        else:
            blueprint.read(key, self.loudness, generator)
        if kind != "key without a query":
            blueprint.read(query, self.loudness, generator)
        blueprint.mark(place, kind)

    def idle_value(self, blueprint: Blueprint, place: Place, generator: torch.Generator) -> None:
        """A value that no output reads, or one whose output nothing reads."""
        layer, _, head, channel = place
        blueprint.read(blueprint.value[layer, head, channel], self.loudness, generator)
        kind = "value without an output"
        if torch.rand((), generator=generator) < 0.5:
            output = blueprint.output[layer, blueprint.query_heads(head), channel, blueprint.stream.waste]
            output.copy_(self.loudness * gaussian(output, generator))
            kind = "value written to waste"
        blueprint.mark(place, kind)

    def may_be_constant(self, head: int) -> bool:
        """Whether a constant key is inert in this KV head."""
        return True

    def shuffle(self, blueprint: Blueprint, generator: torch.Generator) -> None:
        """Move everything to random places."""
        blueprint.shuffle(generator, keys=True)


def beside_the_next(batch: Batch) -> Batch:
    """Every row paired with the next one, which has other tokens."""
    return replace(batch, paired=batch.tokens.roll(-1, 0))


def any_of_unit(of_channel: Tensor, channels: Tensor, num_units: int) -> Tensor:
    """Whether any channel of a unit is set, bool [U], from bool [N]."""
    return torch.zeros(num_units, dtype=torch.long).index_add_(0, of_channel, channels.long()) > 0
