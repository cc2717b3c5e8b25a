"""What a quality benchmark runs, and how a method's settings follow from its passes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from mechint.errors import UserError
from mechint.learning.recipe import Recipe
from mechint.learning.trainer import passes_before_finishing
from mechint.methods.method import MaskMethod, ScoringMethod

Kind = Literal[
    "default", "variant of the default", "published learner", "iterative scorer", "one-shot scorer"
]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Entry:
    """A model or a method of a benchmark: a checkpoint or a mask option, and overrides of conf/analyze.yaml."""

    label: str
    option: str
    overrides: tuple[str, ...] = ()

    @classmethod
    def of(cls, given: Any, what: str) -> Entry:
        """From 'OPTION [KEY=VALUE ...]', whose label it is, or {LABEL: the same}.

        Raises UserError for anything else, with `what` as the key it came from.
        """
        label, text = given, given
        if isinstance(given, Mapping) and len(given) == 1:
            ((label, text),) = given.items()
        try:
            option, *overrides = shlex.split(text) if isinstance(text, str) else []
        except ValueError:
            option = ""
        if not isinstance(text, str) or not option or any("=" not in override for override in overrides):
            raise UserError(f"{what}: {given!s} must be 'NAME', 'NAME KEY=VALUE ...' or {{LABEL: the same}}")
        return cls(str(label), option, tuple(overrides))


def entries(given: Sequence[Any], what: str) -> tuple[Entry, ...]:
    """The models or methods of a list; raises UserError where it is empty or names one twice.

    A model without a label goes by the last part of its path, a method by its whole text.
    """
    found = tuple(Entry.of(item, what) for item in given)
    if what == "models":
        found = tuple(
            replace(entry, label=Path(entry.option).name) if isinstance(item, str) else entry
            for item, entry in zip(given, found, strict=True)
        )
    if not found or len({_safe(entry.label) for entry in found}) < len(found):
        labels = [entry.label for entry in found]
        raise UserError(
            f"{what}={labels} must name something, and nothing twice; give {{LABEL: ...}} where needed"
        )
    return found


def in_bases(methods: Sequence[Entry], bases: Sequence[str]) -> tuple[Entry, ...]:
    """Every method in every basis; in other coordinates than the channels its label says so.

    A method that brings a basis of its own is taken as it is. Raises UserError where there is no basis.
    """
    if not bases:
        raise UserError("bases must name at least one option of conf/basis, e.g. [channels]")
    found: list[Entry] = []
    for basis in bases:
        for method in methods:
            if any(override.startswith("basis=") for override in method.overrides):
                found += [] if method in found else [method]
            elif basis != "channels":
                label, overrides = f"{method.label} in {basis}", (f"basis={basis}", *method.overrides)
                found.append(replace(method, label=label, overrides=overrides))
            elif method.option != "energy":  # there are no directions to put in order
                found.append(method)
    return tuple(found)


@dataclass(frozen=True)
class Cell:
    """One run of a benchmark."""

    model: Entry
    method: Entry
    sparsity: float
    seed: int

    @property
    def directory(self) -> Path:
        """Where the run lies below the benchmark's directory."""
        return Path(
            "runs", _safe(self.model.label), _safe(self.method.label), f"{self.sparsity:g}", f"{self.seed}"
        )


def _safe(label: str) -> str:
    name = re.sub(r"^bundled:", "", label)
    return re.sub(r"[^A-Za-z0-9._=-]+", "_", name).strip("._") or "unnamed"


def kind_of(method: MaskMethod, is_reference: bool, same_option: bool = False) -> Kind:
    """What a method is compared as; same_option: it is the reference's in another basis or with other settings."""
    if is_reference:
        return "default"
    if same_option:
        return "variant of the default"
    if isinstance(method, ScoringMethod):
        return "iterative scorer" if method.stages else "one-shot scorer"
    return "published learner"


def spend(recipe: Recipe, passes: int, batch_size: int, finishing_share: float) -> list[str]:
    """Overrides of conf/analyze.yaml with which a recipe takes at most `passes` batches through the model.

    What its basis needs and, with a finishing pass, `finishing_share` of them are kept back. Of the rest a learner
    takes a step per pass, an iterative scorer divides them among its stages, and a one-shot scorer sees every
    calibration sequence as often as it needs, as far as the passes reach.
    """
    left = passes_before_finishing(passes, finishing_share, recipe)
    overrides = [f"trainer.passes={passes}", f"trainer.finishing_share={finishing_share}"]
    if isinstance(recipe.method, ScoringMethod):
        if recipe.method.stages:
            each = max(1, left * batch_size // recipe.method.stages)
            overrides.append(f"mask.sequences_per_stage={each}")
        return overrides
    return [*overrides, f"steps={left}"]
