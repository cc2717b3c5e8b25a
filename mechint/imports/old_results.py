"""Result directories of the tool that this package replaces, read as runs.

It left `final_masks.pt`, {module path: {logits, mask, importance float [H, C], sparsity float}} with one mask
for K and V, and numbers in a Markdown report only. Its "loss degradation" is measured against the model with
every channel masked, which it calls initial and unpruned; nothing in its files says what the dense model
does.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from mechint.errors import UserError
from mechint.imports.imported import run_of_masks
from mechint.masking.masks import LayerMask, MaskSet
from mechint.results import RunFiles
from mechint.results.result import RESULT, OldToolLosses, Result
from mechint.runtime.pickles import PickleRefusedError, load_plain

MASKS, REPORT = "final_masks.pt", "circuit_analysis_report.md"

WARNING = (
    "The tool measured this against the empty model, the one with every channel masked, which it calls "
    "initial and unpruned. It says nothing about the dense model and must not be set beside a loss "
    "degradation of mechint."
)
NOTES = [
    "These masks come from the tool that mechint replaces: one mask for K and V, learned without enforcing "
    "any target sparsity. Nothing was measured here.",
    "The checkpoint, the data and the seed are not recorded in its files.",
]


def is_old_run(directory: Path) -> bool:
    """Whether a directory looks like one the replaced tool wrote: masks, and no result.json."""
    return (directory / MASKS).is_file() and not (directory / RESULT).exists()


def read_old_run(directory: str | Path) -> RunFiles:
    """A run of the replaced tool: its masks, for K and for V, and no metrics.

    `result.old_tool` quotes the losses of its report where they are found there, in nats per token of unrecorded
    data. Raises UserError where the masks are missing, damaged or of another
    kind.
    """
    directory = Path(directory)
    run = run_of_masks(directory, _read_masks(directory / MASKS), "replaced tool", tie_kv=True, notes=NOTES)
    run.result.old_tool = OldToolLosses(**_reported_losses(directory / REPORT))
    run.result.add_notes(*quotations(run.result))
    return run


def quotations(result: Result) -> list[str]:
    """What the replaced tool reported about a run, with its warning; nothing for runs of mechint."""
    losses = result.old_tool
    if losses is None or not losses.initial_loss or losses.final_loss is None:
        return []
    initial, final = losses.initial_loss, losses.final_loss
    change = 100 * (final - initial) / initial
    return [
        f'As the old tool reported: loss from {initial:.4f} ("initial") to {final:.4f} ("final"), '
        f"which it calls a loss degradation of {change:+.2f} %. {WARNING}"
    ]


def _read_masks(path: Path) -> MaskSet:
    try:
        content = load_plain(path)
    except FileNotFoundError as error:
        raise UserError(
            f"no {MASKS} in {path.parent}; give a result directory of the replaced tool"
        ) from error
    except PickleRefusedError as error:
        raise UserError(f"{path} cannot be read as a mask file ({error}); copy it again") from error
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path} is not a mask file of the replaced tool, which holds a dictionary of layers")
    return {str(name): _layer_mask(name, tensors, path) for name, tensors in content.items()}


def _layer_mask(name: object, tensors: object, path: Path) -> LayerMask:
    found = [tensors.get(key) for key in ("mask", "importance")] if isinstance(tensors, dict) else []
    match found:
        case [Tensor() as mask, Tensor() as importance] if mask.ndim == 2 and mask.shape == importance.shape:
            keep, scores = mask > 0.5, importance.float().clamp(0, 1)
            return LayerMask(keep, keep.clone(), scores, scores.clone())
    raise UserError(
        f"{path}: layer {name!r} lacks mask and importance of shape [heads, channels]; "
        "give a result directory of the replaced tool, or of mechint with its result.json"
    )


def _reported_losses(path: Path) -> dict[str, float]:
    """The first loss below the headings Initial and Final of its report; left out where not there."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    losses: dict[str, float] = {}
    heading = ""
    for line in lines:
        if line.startswith("#"):
            heading = line.lstrip("# ").lower()
        elif line.lstrip("- ").lower().startswith("loss:"):
            for word in ("initial", "final"):
                value = _number(line.split(":", 1)[1])
                if heading.startswith(word) and value is not None:
                    losses.setdefault(f"{word}_loss", value)
    return losses


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
