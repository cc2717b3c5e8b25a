"""units.json: what single kept units do."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from mechint.errors import UserError, one_line
from mechint.results.section import Section
from mechint.runtime.files import parse_json, read_text, write_json

FILENAME = "units.json"


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
    mean_share: part of the mean square of its key that is that of the head's mean key; bias_share: the same of the bias
    of the key projection, None where there is none to be read.
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


class UnitMeanings(Section):
    """The units of a mask that rank highest, what they do on some prompts, and what could not be told."""

    prompts: int = 0
    units: list[UnitMeaning] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)

    def write(self, directory: Path) -> Path:
        """Write units.json, atomically."""
        path = directory / FILENAME
        write_json(path, self.as_json())
        return path

    @classmethod
    def read(cls, directory: Path) -> UnitMeanings | None:
        """What a run wrote; None where it wrote nothing. Raises UserError where the file is damaged."""
        path = directory / FILENAME
        if not path.exists():
            return None
        try:
            return cls.model_validate(parse_json(read_text(path)))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path} cannot be read ({one_line(error, 160)}); run the analysis again"
            ) from error
