"""What a finished run left in its directory: all that figures and reports are made from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechint.errors import UserError
from mechint.masking.masks import MaskSet
from mechint.results.directories import true_status
from mechint.results.evidence import Evidence, load_evidence
from mechint.results.identity import SCHEMA_VERSION
from mechint.results.mask_files import load_masks
from mechint.runtime.files import parse_json, read_text


@dataclass(frozen=True)
class RunFiles:
    """A run as its files tell it.

    result: the content of result.json. masks: module path -> LayerMask, ordered by layer index.
    history: the lines of metrics.jsonl, one dict per logged step; empty where the method takes no steps.
    evidence: what several seeds say of every channel; None for a run of one seed.
    """

    directory: Path
    result: dict[str, Any]
    masks: MaskSet
    history: list[dict[str, Any]]
    evidence: Evidence | None = None

    @classmethod
    def read(cls, directory: str | Path) -> RunFiles:
        """Read a finished run.

        Raises UserError where a file is missing or damaged, where the run did not finish, and where the files
        belong to different runs.
        """
        directory = Path(directory)
        result = _read_result(directory / "result.json")
        masks = read_masks(directory)
        try:
            layers = sorted(result["layers"], key=lambda layer: layer["index"])
            names = [str(layer["name"]) for layer in layers]
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{directory / 'result.json'} is damaged: its layers lack {_one_line(error)}; run the analysis again"
            ) from error
        if set(names) != set(masks):
            raise UserError(
                f"{directory}: masks and result.json name different layers, so they are of different runs; "
                "give a directory that one run wrote"
            )
        return cls(
            directory,
            result,
            {name: masks[name] for name in names},
            _read_history(directory / "metrics.jsonl"),
            load_evidence(directory) if result.get("stability") else None,
        )

    @property
    def model_name(self) -> str:
        """The model's short name, for titles."""
        checkpoint = self.result["checkpoint"]
        return str(checkpoint.get("name") or re.split(r"[/\\]", str(checkpoint["source"]).rstrip("/\\"))[-1])

    @property
    def layers(self) -> list[dict[str, Any]]:
        """The per-layer entries of result.json, ordered by layer index; counts are units."""
        return sorted(self.result["layers"], key=lambda layer: layer["index"])

    @property
    def measured(self) -> bool:
        """Whether there is any number of what the model does; masks of other programs come without."""
        return any(
            any(value is not None for value in model.values()) for model in self.result["metrics"].values()
        )

    def metric(self, model: str, name: str) -> float | None:
        """A number of the "dense", "empty", "masked" or "complement" model; None if absent or not finite."""
        return (self.result["metrics"].get(model) or {}).get(name)

    def loss(self, model: str) -> float | None:
        """Mean next-token loss on evaluation data in nats per token."""
        return self.metric(model, "loss")

    def kept(self, layer: str) -> int:
        """How many channels, K and V together, the layer of this module path keeps."""
        mask = self.masks[layer]
        return int(mask.k_mask.sum()) + int(mask.v_mask.sum())


def _read_result(path: Path) -> dict[str, Any]:
    try:
        result = parse_json(read_text(path))
    except FileNotFoundError as error:
        raise UserError(
            f"no result.json in {path.parent}; give the output directory of a finished run"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({_one_line(error)}); run the analysis again") from error
    if not isinstance(result, dict) or "checkpoint" not in result:
        raise UserError(f"{path} was not written by an analysis; give the output directory of a finished run")
    version = result.get("schema_version", SCHEMA_VERSION)
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema version {version!r}, and this program knows versions up to {SCHEMA_VERSION}; "
            "use a newer mechint"
        )
    if not result.get("metrics") or not result.get("layers"):
        status, reason = true_status(result) or "unknown", result.get("error")
        detail = f": {_one_line(reason)}" if reason else ""
        raise UserError(
            f"the run in {path.parent} has no numbers (status {status}{detail}); let it finish or repeat it"
        )
    return result


def read_masks(directory: Path) -> MaskSet:
    """The masks of a run, from either mask file; they hold the same tensors."""
    path = directory / "final_masks.safetensors"
    return load_masks(path if path.exists() else directory / "final_masks.pt")


def _read_history(path: Path) -> list[dict[str, Any]]:
    """Read the logged steps; a last line cut short by a killed process is left out."""
    try:
        lines = read_text(path).splitlines()
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({_one_line(error)}); remove it to draw without curves"
        ) from error
    history = []
    for number, line in enumerate(lines, start=1):
        try:
            entry = parse_json(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise UserError(
                f"{path}: line {number} is not JSON; remove the file to draw without curves"
            ) from error
        if isinstance(entry, dict) and "step" in entry:
            history.append(entry)
    return history


def _one_line(text: object) -> str:
    return " ".join(str(text).split())[:200]
