"""What a run is, apart from its seed and sparsity: the options by which runs are grouped and told apart."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mechint.results import Result
from mechint.results.identity import PRESENTATION_KEYS, STABILITY_KEYS
from mechint.results.result import BasisInfo

# Root keys of the configuration that make no other curve: what is swept, where things are, where it ran, and how it
# is judged.
# dtype is told by the checkpoint's entry, which knows what "auto" became.
NOT_OPTIONS = (
    PRESENTATION_KEYS | STABILITY_KEYS | {"checkpoint", "target_sparsity", "seed", "device", "dtype", "gates"}
)

# Options that change no number, or its last digits at most.
WITHOUT_EFFECT = frozenset(
    f"trainer.{name}"
    for name in ("log_every", "dense_cache_gib", "activation_checkpointing", "compile", "deterministic")
)

# What the runs of several nested targets have each of their own.
OF_A_RUNG = frozenset({"nested_in", "steps", "mask.finishing_trials"})

Options = dict[str, Any]


def options(result: Result) -> Options:
    """The options of a run under dotted names, the most telling first.

    The names of result.json come before the configuration's, which also holds every detail that has no name
    there.
    """
    data = result.dataset
    names = ("method", "unit", "scope", "ablation", "tie_kv", "objective", "schedule")
    found: Options = {name: getattr(result.mask, name) for name in names[:2]}
    found["basis"] = basis_in_words(result.basis)
    found |= {name: getattr(result.mask, name) for name in names[2:]}
    found["data"] = data.name
    found["evaluation_data"] = data.evaluation_digest
    found["sequence_length"] = data.sequence_length
    found["calibration_tokens"] = data.calibration_tokens
    found["steps"] = result.cost.steps
    found["dtype"] = result.checkpoint.dtype
    config = result.config
    rest = _flat({key: value for key, value in config.items() if key not in NOT_OPTIONS})
    # The masks of one ladder are one curve, though each has its own part of the steps.
    if "nested_in" in config:
        found["steps"] = "nested"
        rest = {key: value for key, value in rest.items() if key not in OF_A_RUNG}
    told = WITHOUT_EFFECT | {"basis._target_"}
    return found | {key: value for key, value in rest.items() if key not in found and key not in told}


def basis_in_words(basis: BasisInfo | None) -> str:
    """'channels', 'learned, keys before the rotation', 'keys channels, values principal'."""
    if basis is None:
        return "channels"
    same = basis.keys == basis.values
    name = basis.keys if same else f"keys {basis.keys}, values {basis.values}"
    return f"{name}, keys before the rotation" if basis.where == "before_rope" else name


def key_of(checkpoint_sha256: str, options_: Options) -> str:
    """A string that two runs share exactly if they differ in nothing but seed and sparsity."""
    return json.dumps([checkpoint_sha256, options_], sort_keys=True, default=str)


def telling(all_options: Sequence[Options], start: Sequence[object]) -> list[str]:
    """The fewest names of options, from the first on, that tell the entries apart as far as they can be.

    start: what tells them apart already, one value per entry. An option that only goes along with an earlier
    one, as a method's own settings go along with the method, is left out.
    """
    parts = [json.dumps(value, default=str) for value in start]
    chosen = []
    for name in dict.fromkeys(name for entry in all_options for name in entry):
        finer = [
            f"{part} {json.dumps(entry.get(name), default=str)}"
            for part, entry in zip(parts, all_options, strict=True)
        ]
        if len(set(finer)) > len(set(parts)):
            chosen.append(name)
            parts = finer
    return chosen


def shown(name: str, value: Any) -> str:
    """An option in a label or a sentence: 'TopK' for the method, 'unit=head' for others."""
    if name == "method":
        return str(value)
    if name == "evaluation_data":
        return f"evaluation data {str(value)[:8]}"
    return f"{name}={value}"


def _flat(node: Mapping[str, Any], prefix: str = "") -> Options:
    """Nested dictionaries as one with dotted names; a class path loses its modules."""
    flat: Options = {}
    for key, value in node.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{name}.")
        else:
            flat[name] = str(value).rsplit(".", 1)[-1] if key == "_target_" else value
    return flat
