"""circuit.json: what the pictures of a circuit are drawn from."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from mechint.results.section import Section, SideFile


class HeadNode(Section):
    """A KV head with kept units; layer: its index. k_kept, v_kept: kept channels or directions."""

    layer: int
    head: int
    k_kept: int = 0
    v_kept: int = 0


class ReadEdge(Section):
    """What kept values of one head write is read by kept keys, by queries for them, or by kept values of a later one.

    score: |R W| / (|R| |W|) with Frobenius norms, R the rows of the reading weights times the weights of the norm
    before them (centred where it takes out the mean), W the columns of the writing ones (composition score, Elhage et
    al. 2021).
    """

    source: tuple[int, int]
    target: tuple[int, int]
    kind: Literal["k", "q", "v"]
    score: float


class Pattern(Section):
    """The model's own attention of one query head on one prompt, [T][T], dense and masked. With sinks rows add up to
    less than 1.
    """

    layer: int
    query_head: int
    dense: list[list[float]]
    masked: list[list[float]]


class Example(Section):
    """One prompt, and how the circuit's first heads attend on it. left_out: tokens before those that are shown."""

    tokens: list[str]
    patterns: list[Pattern]
    left_out: int = 0


class CircuitDrawing(SideFile):
    """Nodes and the strongest edges of a circuit, and attention patterns on some prompts.

    chance: the median score of all edges there could be between these heads.
    """

    filename: ClassVar[str] = "circuit.json"

    nodes: list[HeadNode] = Field(default_factory=list)
    edges: list[ReadEdge] = Field(default_factory=list)
    chance: float | None = None
    examples: list[Example] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
