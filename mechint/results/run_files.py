"""What a finished run left in its directory: all that figures, reports and tables are made from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mechint.errors import UserError, one_line
from mechint.masking.masks import LayerMask, MaskSet
from mechint.masking.space import KINDS, Kind
from mechint.results.diagram import CircuitDrawing
from mechint.results.evidence import Evidence, load_evidence
from mechint.results.mask_files import load_energy, load_masks
from mechint.results.result import RESULT, LayerInfo, ModelName, Result, UnreadableResult
from mechint.results.units import UnitMeanings
from mechint.runtime.files import parse_json, read_text, write_atomically

if TYPE_CHECKING:
    import pandas as pd
    from typing_extensions import Self

CHANNELS = "channels.csv"
NECESSITY = "necessity.csv"

# Units that follow from the shape of the masks; which channels others switch is the model's to tell.
COUNTABLE = ("channel", "head")


@dataclass(frozen=True, repr=False)
class RunFiles:
    """A run as its files tell it.

    result: the content of result.json. masks: module path -> LayerMask, ordered by layer index.
    history: the lines of metrics.jsonl, one dict per logged step; empty where the method takes no steps.
    evidence: what several seeds say of every channel; None for a run of one seed. units: the unit of every channel,
    LongTensor [N] in the order of `channels_frame`, where the model is at hand. energy: what each direction is worth to
    the basis that chose it, float [N] in that order; None for channels. drawing, meanings: what pictures of a circuit
    are drawn from, and what its units do; None for runs without a task.
    """

    directory: Path
    result: Result
    masks: MaskSet
    history: list[dict[str, Any]]
    evidence: Evidence | None = None
    units: Tensor | None = None
    energy: Tensor | None = None
    drawing: CircuitDrawing | None = None
    meanings: UnitMeanings | None = None

    @classmethod
    def read(cls, directory: str | Path) -> Self:
        """Read a finished run.

        Raises UserError where a file is missing or damaged, where the run did not finish, and where the files
        belong to different runs.
        """
        directory = Path(directory)
        result = _finished_result(directory)
        masks = read_masks(directory)
        names = [layer.name for layer in sorted(result.layers, key=lambda layer: layer.index)]
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
            load_evidence(directory) if result.stability else None,
            _read_units(directory) if result.mask.unit not in COUNTABLE else None,
            energy=load_energy(directory),
            drawing=CircuitDrawing.read(directory),
            meanings=UnitMeanings.read(directory),
        )

    def __repr__(self) -> str:
        """Where it is, what was masked and how well that does; no tensors."""
        channels, masked = self.result.channels, self.result.metrics.masked
        told = [
            repr(str(self.directory)),
            f"model={self.model_name!r}",
            f"kept={channels.kept} of {channels.total} channels",
        ]
        numbers = {"kl": masked.kl, "faithfulness": self.result.faithfulness}
        told += [f"{name}={value:.4g}" for name, value in numbers.items() if value is not None]
        return f"{type(self).__name__}({', '.join(told)})"

    @property
    def model_name(self) -> str:
        """The model's short name, for titles."""
        return self.result.checkpoint.label

    @property
    def layers(self) -> list[LayerInfo]:
        """The per-layer entries of result.json, ordered by layer index; counts are units."""
        return sorted(self.result.layers, key=lambda layer: layer.index)

    @property
    def layer_masks(self) -> list[LayerMask]:
        """The masks, ordered by layer index."""
        return [self.masks[layer.name] for layer in self.layers]

    @property
    def measured(self) -> bool:
        """Whether there is any number of what the model does; masks of other programs come without."""
        return self.result.measured

    def loss(self, model: ModelName) -> float | None:
        """Mean next-token loss on evaluation data in nats per token; None where it is not known."""
        return self.result.metrics[model].loss

    def kept(self, layer: str) -> int:
        """How many channels, K and V together, the layer of this module path keeps."""
        mask = self.masks[layer]
        return int(mask.k_mask.sum()) + int(mask.v_mask.sum())

    def kept_channels(self, layer: int, head: int) -> dict[Kind, list[int]]:
        """The numbers of the K and of the V channels, or directions, that a layer's KV head keeps.

        layer: its index in the model. Raises UserError where there is no such layer or head.
        """
        masks = {info.index: self.masks[info.name] for info in self.layers}
        if layer not in masks:
            raise UserError(
                f"there is no attention layer {layer}; this model has {', '.join(map(str, masks))}"
            )
        keep = {kind: getattr(masks[layer], f"{kind}_mask") for kind in KINDS}
        if not 0 <= head < min(map(len, keep.values())):
            raise UserError(f"layer {layer} has no KV head {head}; its heads are 0 to {len(keep['k']) - 1}")
        return {kind: mask[head].nonzero().flatten().tolist() for kind, mask in keep.items()}

    def channels_frame(self) -> pd.DataFrame:
        """The table of channels, one row each: layer by layer, K before V, head by head.

        run: the run's directory. seed: of the run, <NA> where it is not recorded. layer: its index in the model.
        layer_name: its module path. kind: "k" or "v". head: KV head. channel: its number in the head. unit: number of
        the unit that switches it, which several channels may share; <NA> where the files do not tell. kept: bool.
        importance: float in [0, 1].
        """
        import pandas as pd  # here: it takes a second, and most programs need no table

        parts = []
        for layer in self.layers:
            for kind in KINDS:
                mask = self.masks[layer.name]
                keep, importance = getattr(mask, f"{kind}_mask"), getattr(mask, f"{kind}_importance")
                heads, width = keep.shape
                columns = {
                    "layer": layer.index,
                    "layer_name": layer.name,
                    "kind": kind,
                    "head": torch.arange(heads).repeat_interleave(width).numpy(),
                    "channel": torch.arange(width).repeat(heads).numpy(),
                    "kept": keep.flatten().cpu().numpy(),
                    "importance": importance.flatten().float().cpu().numpy(),
                }
                parts.append(pd.DataFrame(columns))
        frame = pd.concat(parts, ignore_index=True)
        frame.insert(0, "run", str(self.directory))
        frame.insert(1, "seed", pd.array([self.result.seed] * len(frame), dtype="Int64"))
        frame.insert(frame.columns.get_loc("kept"), "unit", self._units(frame).astype("Int64"))
        return frame

    def necessity_frame(self) -> pd.DataFrame | None:
        """The table of units that were removed alone, one row each; None where none was.

        unit: its number. layer, layer_name, kind, head: where it is; a unit of kind "kv" switches both. channels: how
        many it switches. rise: of the KL without it, in nats per token. error: its standard error. low, high: its 95 %
        interval, by Student's t. p: of the rise being 0. q: false discovery rate at which it is told from 0. verdict:
        needed, unclear or harmful.
        """
        tested = None if self.result.stability is None else self.result.stability.necessity
        if self.evidence is None or tested is None:
            return None
        import pandas as pd

        index = {layer.name: layer.index for layer in self.layers}
        parts = []
        for (layer, kind), part in self.evidence.items():
            columns: dict[str, Any] = {
                "unit": part.unit.flatten().numpy(),
                "layer": index[layer],
                "layer_name": layer,
                "kind": kind,
                "head": torch.arange(len(part.unit)).repeat_interleave(part.unit.shape[1]).numpy(),
                "rise": part.necessity.flatten().double().numpy(),
                "error": part.necessity_error.flatten().double().numpy(),
                "p": part.necessity_p.flatten().double().numpy(),
                "q": part.necessity_q.flatten().double().numpy(),
            }
            parts.append(pd.DataFrame(columns))
        units = pd.concat(parts, ignore_index=True).groupby("unit", sort=True)
        found = units.first()
        found["kind"] = units["kind"].agg(lambda kinds: "".join(dict.fromkeys(kinds)))
        found.insert(found.columns.get_loc("rise"), "channels", units.size())
        found = found[found["rise"].notna()].reset_index()
        half = (tested.t_quantile or float("nan")) * found["error"]
        found.insert(found.columns.get_loc("p"), "low", found["rise"] - half)
        found.insert(found.columns.get_loc("p"), "high", found["rise"] + half)
        discovered = found["q"] <= (tested.rate or 0.0)
        found["verdict"] = "unclear"
        found.loc[discovered & (found["rise"] > 0), "verdict"] = "needed"
        found.loc[discovered & (found["rise"] < 0), "verdict"] = "harmful"
        return found

    def export_channels(self) -> Path:
        """Write channels.csv, the table of channels, into the run's directory."""
        return self._export(CHANNELS, self.channels_frame())

    def export_necessity(self) -> Path | None:
        """Write necessity.csv, the table of units that were removed alone, likewise; None where none was."""
        table = self.necessity_frame()
        return None if table is None else self._export(NECESSITY, table)

    def _export(self, name: str, table: pd.DataFrame) -> Path:
        path = self.directory / name
        with write_atomically(path) as temporary:
            table.to_csv(temporary, index=False)
        return path

    def _units(self, channels: pd.DataFrame) -> pd.Series:
        """The unit of every row of the table of channels, numbered as in `mechint.masking.Units`."""
        import pandas as pd

        units = self.units
        if units is not None and len(units) != len(channels):  # the table of another run
            units = None
        if units is None and self.evidence is not None:
            units = torch.cat([part.unit.flatten() for part in self.evidence.values()])
        if units is not None:
            return pd.Series(units.cpu().numpy())
        mask = self.result.mask
        if mask.unit not in COUNTABLE:  # which channels are rotated together is the model's to tell
            return pd.Series([pd.NA] * len(channels))
        keys = [
            "layer",
            *([] if mask.tie_kv else ["kind"]),
            "head",
            *(["channel"] * (mask.unit == "channel")),
        ]
        return channels.groupby(keys, sort=True).ngroup()


def _finished_result(directory: Path) -> Result:
    """The result of a run that has numbers. Raises UserError."""
    path = directory / RESULT
    try:
        result = Result.read(directory)
    except FileNotFoundError as error:
        raise UserError(
            f"no result.json in {path.parent}; give the output directory of a finished run"
        ) from error
    except UnreadableResult as error:
        raise UserError(
            f"{path} cannot be read ({error}); give the output directory of a finished run"
        ) from error
    if not result.measured or not result.layers:
        detail = f": {one_line(result.error, 200)}" if result.error else ""
        raise UserError(
            f"the run in {directory} has no numbers (status {result.true_status}{detail}); let it finish or repeat it"
        )
    if result.lacking:
        raise UserError(f"{path} is damaged: it lacks {', '.join(result.lacking)}; run the analysis again")
    return result


def read_masks(directory: Path) -> MaskSet:
    """The masks of a run, from either mask file; they hold the same tensors."""
    path = directory / "final_masks.safetensors"
    return load_masks(path if path.exists() else directory / "final_masks.pt")


def _read_units(directory: Path) -> Tensor | None:
    """The unit of every channel [N] as the run has written it; None where there is no such table, or a damaged one."""
    import pandas as pd

    try:
        units = pd.read_csv(directory / CHANNELS, usecols=["unit"])["unit"].astype("int64")
    except (OSError, ValueError):  # of which pandas' own errors are
        return None
    return torch.from_numpy(units.to_numpy(copy=True))


def _read_history(path: Path) -> list[dict[str, Any]]:
    """Read the logged steps; a last line cut short by a killed process is left out."""
    try:
        lines = read_text(path).splitlines()
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({one_line(error, 200)}); remove it to draw without curves"
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
