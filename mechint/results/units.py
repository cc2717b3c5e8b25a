"""units.json: what single kept units do."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from mechint.results.section import Section, SideFile


class TokenWeight(Section):
    """A token and by how much its logit moves, in nats per standard deviation of the unit's value."""

    token: str
    weight: float


class Context(Section):
    """Where a unit's activation is large: the text before, the token itself, the activation there."""

    before: str
    token: str
    value: float


class Match(Section):
    """A token that attends to another one: the unit's term in the head's score, in nats, and its share of attention."""

    query: str
    key: str
    term: float
    attention: float


class UnitMeaning(Section):
    """One kept K or V unit of one channel or direction.

    layer: its index. query_head: the one of its group that reads or writes it most. mean, sd: of its activation over
    the prompts. V: promotes, suppresses: tokens, through the final norm, taken as linear, and the unembedding. K: keys,
    queries: contexts with the largest activations of either sign; matches: pairs at the answer with the largest terms;
    mean_share: part of the mean square of its key that is that of the head's mean key. bias_share: b^2 / (b^2 + mean of
    (k - b)^2), b the bias of the key projection and k its output, before any rotation: of the two parts that a key is
    the sum of, the bias's share of their squares, in [0, 1] even where they cancel; None where it cannot be read.
    """

    layer: int
    kind: Literal["k", "v"]
    head: int
    channel: int
    query_head: int | None = None
    mean: float | None = None
    sd: float | None = None
    mean_share: float | None = None
    bias_share: float | None = None
    promotes: list[TokenWeight] = Field(default_factory=list)
    suppresses: list[TokenWeight] = Field(default_factory=list)
    keys: list[Context] = Field(default_factory=list)
    queries: list[Context] = Field(default_factory=list)
    values: list[Context] = Field(default_factory=list)
    matches: list[Match] = Field(default_factory=list)


class UnitMeanings(SideFile):
    """The units of a mask that rank highest, what they do on some prompts, and what could not be told."""

    filename: ClassVar[str] = "units.json"

    prompts: int = 0
    units: list[UnitMeaning] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
