"""Figures and report from synthetic run files: no model, no data."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import hydra.utils
import matplotlib
import numpy as np
import pytest
import torch
import yaml
from matplotlib.figure import Figure
from matplotlib.image import imread

from mechint.errors import UserError
from mechint.masking.masks import LayerMask
from mechint.reporting import (
    ImportanceOverview,
    LayerImportance,
    NestedFigure,
    SparsityCurves,
    StabilityFigure,
    Visualizer,
    write_report,
)
from mechint.reporting.finding import cautions, finding, thirds
from mechint.reporting.layer_importance import layer_files
from mechint.reporting.style import KEPT, KINDS, REMOVED, Kind, channel_colours, index_ticks, printable
from mechint.reporting.wording import code, counted, enumeration, number, text
from mechint.results import Result, RunFiles
from mechint.results.mask_files import save_masks
from mechint.results.result import Cost, ModelMetrics

FIGURES = [ImportanceOverview(), LayerImportance(), SparsityCurves(), StabilityFigure(), NestedFigure()]
VISUALIZER_CONFIGS = Path(__file__).resolve().parents[1] / "conf" / "visualizer"
DPI = 40  # coarse pictures are quick to write


@dataclass(frozen=True)
class Shape:
    """A made-up model: layers, KV heads, K channels, V channels, and how its layers are called."""

    layers: int
    heads: int
    k: int
    v: int
    names: str = "transformer.h.{}.attn"


FOUR = Shape(4, 4, 32, 32)
THIRTY = Shape(30, 3, 64, 64, "model.layers.{}.self_attn")
SHAPES = {
    "4 layers": FOUR,
    "many heads": Shape(1, 12, 64, 64),
    "grouped queries, wider keys": Shape(2, 2, 192, 128),
    "one of everything": Shape(1, 1, 1, 1),
}


def make_masks(shape: Shape, sparsity: float, seed: int = 0) -> dict[str, LayerMask]:
    """Global top-k of made-up scores in which some layers and heads matter more."""
    generator = torch.Generator().manual_seed(seed)

    def scores(width: int, bias: float) -> torch.Tensor:
        depth = torch.linspace(0, 1, shape.layers)[:, None, None]
        heads = 1.4 * torch.randn(shape.layers, shape.heads, 1, generator=generator)
        return (
            torch.randn(shape.layers, shape.heads, width, generator=generator) + heads + bias - 1.2 * depth
        )  # [L, G, C]

    k, v = scores(shape.k, 0.0), scores(shape.v, 0.4)
    flat = torch.cat([k.flatten(), v.flatten()])
    keep = torch.zeros(len(flat), dtype=torch.bool)
    keep[flat.argsort(descending=True)[: round((1 - sparsity) * len(flat))]] = True
    importance = torch.sigmoid(flat - 1)
    split = k.numel()

    def cut(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return values[:split].view_as(k), values[split:].view_as(v)

    (k_keep, v_keep), (k_importance, v_importance) = cut(keep), cut(importance)
    return {
        shape.names.format(i): LayerMask(k_keep[i], v_keep[i], k_importance[i], v_importance[i])
        for i in range(shape.layers)
    }


def totals(masks: dict[str, LayerMask]) -> dict[str, Any]:
    """The `channels` entry of result.json."""
    k = {
        "total": sum(m.k_mask.numel() for m in masks.values()),
        "kept": sum(int(m.k_mask.sum()) for m in masks.values()),
    }
    v = {
        "total": sum(m.v_mask.numel() for m in masks.values()),
        "kept": sum(int(m.v_mask.sum()) for m in masks.values()),
    }
    return {"total": k["total"] + v["total"], "kept": k["kept"] + v["kept"], "k": k, "v": v}


def numbers(loss: float, kl: float, agreement: float) -> dict[str, float]:
    """What is measured of one model."""
    bits = loss / math.log(2)
    return {
        "loss": loss,
        "perplexity": math.exp(loss),
        "bits_per_byte": bits,
        "kl": kl,
        "top1_agreement": agreement,
    }


def layer_entry(index: int, name: str, mask: LayerMask) -> dict[str, Any]:
    """One of `layers` in result.json, with units = channels."""
    scores = torch.cat([mask.k_importance.flatten(), mask.v_importance.flatten()])
    return {
        "name": name,
        "index": index,
        "k_kept": int(mask.k_mask.sum()),
        "k_total": mask.k_mask.numel(),
        "v_kept": int(mask.v_mask.sum()),
        "v_total": mask.v_mask.numel(),
        "sparsity": mask.sparsity,
        "mean_importance": float(scores.mean()),
    }


def make_result(masks: dict[str, LayerMask], target: float) -> Result:
    """A finished run's result.json with units = channels."""
    channels = totals(masks)
    content = {
        "schema_version": 1,
        "status": "done",
        "error": None,
        "config": {"seed": 7},
        "checkpoint": {
            "source": "bundled:baseline",
            "name": "baseline",
            "sha256": "0123456789abcdef" * 4,
            "format": "bundled",
            "architecture": "gpt2",
            "num_parameters": 842_496,
        },
        "dataset": {
            "name": "python_docs",
            "tokenizer": "bytes",
            "calibration_tokens": 131_072,
            "evaluation_tokens": 32_768,
        },
        "mask": {
            "method": "TopK",
            "unit": "channel",
            "scope": "global",
            "ablation": "zero",
            "tie_kv": False,
            "objective": "kl",
            "schedule": "cubic",
        },
        "sparsity": {"target": target, "achieved": 1 - channels["kept"] / channels["total"], **channels},
        "channels": channels,
        "metrics": {
            "dense": numbers(1.4683, 0.0, 1.0),
            "empty": numbers(5.1274, 3.9, 0.08),
            "masked": numbers(2.8102, 1.3, 0.51),
            "complement": numbers(4.31, 2.9, 0.17),
        },
        "loss_degradation_percent": 91.39,
        "faithfulness": 0.6333,
        "layers": [layer_entry(i, name, mask) for i, (name, mask) in enumerate(masks.items())],
        "notes": [],
        "cost": {
            "steps": 300,
            "tokens": 614_400,
            "seconds": 63.2,
            "step_seconds": 0.21,
            "peak_memory_bytes": None,
        },
    }
    return Result.parse(content)


def make_history(steps: int, target: float, temperature: bool) -> list[dict[str, Any]]:
    """A cubic schedule with a noisy objective."""
    noise = np.random.default_rng(0)
    history = []
    for step in range(steps):
        progress = step / max(1, steps - 1)
        sparsity = target * (1 - (1 - progress) ** 3)
        history.append(
            {
                "step": step,
                "loss": 1.3 * sparsity**6 * float(noise.uniform(0.8, 1.2)),
                "scheduled_sparsity": sparsity,
                "sparsity": round(sparsity * 1024) / 1024,
                "temperature": 2.0 * 0.02**progress if temperature else None,
                "learning_rate": 0.1,
                "changed_units": int(20 * noise.uniform() + 40 * (1 - progress)),
            }
        )
    return history


def make_run(
    directory: Path, shape: Shape = FOUR, target: float = 0.9, steps: int = 20, temperature: bool = True
) -> RunFiles:
    """A synthetic run that has written nothing yet."""
    masks = make_masks(shape, target)
    return RunFiles(directory, make_result(masks, target), masks, make_history(steps, target, temperature))


def write_run(run: RunFiles) -> Path:
    """Write what an analysis leaves, figures and report apart."""
    save_masks(run.masks, run.directory, {})
    run.result.write(run.directory)
    (run.directory / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in run.history))
    return run.directory


def with_losses(run: RunFiles, **losses: float | None) -> RunFiles:
    """The same run with other losses and the faithfulness that follows from them."""
    result = run.result.model_copy(deep=True)
    for name, loss in losses.items():
        setattr(result.metrics, name, ModelMetrics(loss=loss))
    dense, empty, masked = (result.metrics[name].loss for name in ("dense", "empty", "masked"))
    known = None not in (dense, empty, masked) and dense != empty
    result.faithfulness = (empty - masked) / (empty - dense) if known else None
    return replace(run, result=result)


def with_layer_names(run: RunFiles, names: list[str]) -> RunFiles:
    """The same run with other module paths."""
    masks = dict(zip(names, run.masks.values(), strict=True))
    result = run.result.model_copy(deep=True)
    for layer, name in zip(result.layers, names, strict=True):
        layer.name = name
    return replace(run, masks=masks, result=result)


# --- figures


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_visualizer_writes_exactly_the_files_of_a_run(tmp_path: Path, shape: Shape) -> None:
    run = make_run(tmp_path, shape, target=0.5)
    drawn = Visualizer(FIGURES, dpi=DPI).draw(run)
    layers = [f"transformer.h.{i}.attn_importance.png" for i in range(shape.layers)]
    expected = ["kv_channel_importance.png", *layers, "sparsity_curves.png", "report.html", "circuit_analysis_report.md"]
    assert [path.name for path in drawn] == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(expected), "no temporary files are left"
    for path in drawn[:-2]:
        pixels = imread(path)
        assert min(pixels.shape[:2]) > 2 * DPI
        assert pixels[..., :3].std() > 0.02, f"{path.name} is blank"


@pytest.mark.parametrize("shape", [Shape(6, 12, 64, 64), THIRTY, Shape(32, 32, 32, 32)], ids=str)
def test_overview_grows_with_the_model_and_keeps_rows_apart(tmp_path: Path, shape: Shape) -> None:
    [path] = ImportanceOverview().draw(make_run(tmp_path, shape), dpi=150)
    height = imread(path).shape[0]
    rows = shape.layers * shape.heads
    assert height > 3 * rows, "a row has at least three dots"
    assert height < 4000


def kept_hues(path: Path) -> dict[str, int]:
    """Number of strongly blue and strongly orange dots in a picture."""
    red, _, blue = (255 * imread(path)[..., channel] for channel in range(3))
    return {"K": int((blue - red > 90).sum()), "V": int((red - blue > 90).sum())}


@pytest.mark.parametrize("kind", KINDS)
def test_removed_channels_are_grey_and_kept_ones_coloured(kind: Kind) -> None:
    importance = torch.linspace(0, 1, 20).reshape(2, 10)
    keep = (torch.arange(20) % 2 == 0).reshape(2, 10)
    mask = LayerMask(keep, keep, importance, importance)
    colours = channel_colours(mask, kind)[..., :3]
    saturation = colours.max(-1) - colours.min(-1)
    assert saturation[keep.numpy()].min() > 0.3
    assert saturation[~keep.numpy()].max() < 0.05


def test_the_palest_kept_colour_is_darker_than_the_darkest_removed_one() -> None:
    def luminance(colour: tuple[float, ...]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for kind in KINDS:
        shades = [luminance(KEPT[kind](x)) for x in np.linspace(0, 1, 50)]
        assert max(shades) < luminance(REMOVED(1.0)) - 0.05
        assert shades == sorted(shades, reverse=True), "more important is darker"


def test_overview_shows_what_is_kept(tmp_path: Path) -> None:
    run = make_run(tmp_path, Shape(2, 2, 16, 16))
    few, all_k = (
        {name: replace(mask, k_mask=torch.full_like(mask.k_mask, kept)) for name, mask in run.masks.items()}
        for kept in (False, True)
    )
    hues = [kept_hues(ImportanceOverview().draw(replace(run, masks=masks), DPI)[0]) for masks in (few, all_k)]
    assert hues[1]["K"] > 5 * hues[0]["K"]
    assert abs(hues[1]["V"] - hues[0]["V"]) < 0.6 * hues[0]["V"]


def test_drawing_leaves_matplotlib_as_it_was_and_repeats_exactly(tmp_path: Path) -> None:
    settings = dict(matplotlib.rcParams)
    run = make_run(tmp_path, Shape(1, 2, 8, 8))
    first = [path.read_bytes() for path in Visualizer(FIGURES, dpi=DPI).draw(run)]
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "text.usetex": True}):
        second = [path.read_bytes() for path in Visualizer(FIGURES, dpi=DPI).draw(run)]
    assert first == second, "the user's own settings do not reach the pictures"
    assert dict(matplotlib.rcParams) == settings
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []


@pytest.mark.parametrize(
    "figure", [ImportanceOverview(), SparsityCurves()], ids=lambda figure: type(figure).__name__
)
def test_a_failed_drawing_leaves_the_former_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figure: ImportanceOverview | SparsityCurves
) -> None:
    run = make_run(tmp_path)
    [path] = figure.draw(run, DPI)
    before = path.read_bytes()

    def broken(self: Figure, target: Path, **_: Any) -> None:
        Path(target).write_bytes(b"half a picture")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", broken)
    with pytest.raises(OSError, match="disk full"):
        figure.draw(run, DPI)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


HOSTILE = [
    "../../escape",
    "a/b",
    "a_b",
    "A_b",
    "x|y`z",
    "<script>alert(1)</script>",
    "名前 🙂 $x_1$",
    "n" * 400,
    "kv_channel",
]


def test_layer_files_are_safe_and_all_different() -> None:
    files = layer_files(["model.layers.10.self_attn", *HOSTILE])
    assert files["model.layers.10.self_attn"] == "model.layers.10.self_attn_importance.png"
    assert all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{1,150}", filename) for filename in files.values())
    taken = [filename.lower() for filename in files.values()]
    assert len({*taken, ImportanceOverview.filename}) == len(HOSTILE) + 2


def test_hostile_names_are_drawn_as_text(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    run = with_layer_names(make_run(directory, Shape(2, 1, 4, 4), steps=2), [HOSTILE[0], HOSTILE[6]])
    run.result.checkpoint.name = "m$\\frac{1}{0}$ 名前\x00\nnext"
    drawn = Visualizer(FIGURES, dpi=DPI).draw(run)
    assert sorted(directory.iterdir()) == sorted(drawn)
    assert list(tmp_path.iterdir()) == [directory]


def test_curves_without_temperature_or_steps(tmp_path: Path) -> None:
    def height(**options: Any) -> int:
        return imread(SparsityCurves().draw(make_run(tmp_path, **options), DPI)[0]).shape[0]

    full, cold, none = height(), height(temperature=False), height(steps=0)
    assert full > cold > none > DPI / 2
    assert height(steps=1) == full
    assert height(steps=100) == full


def test_curves_survive_gaps_in_the_log(tmp_path: Path) -> None:
    run = make_run(tmp_path, steps=60)
    run.history[3]["loss"] = None
    del run.history[-1]["sparsity"]
    assert SparsityCurves().draw(run, DPI)[0].exists()


def test_index_ticks_and_printable() -> None:
    assert list(index_ticks(1, 8)) == [0]
    assert list(index_ticks(64, 8)) == [0, 8, 16, 24, 32, 40, 48, 56]
    assert printable("a\n\tb 名\x00") == "a b ??"
    assert len(printable("x" * 500)) <= 130


# --- reading a run


def test_run_files_survive_the_round_trip_in_layer_order(tmp_path: Path) -> None:
    run = make_run(tmp_path, Shape(12, 1, 4, 4), steps=5)
    run.result.layers.reverse()
    read = RunFiles.read(write_run(run))
    assert list(read.masks) == [f"transformer.h.{i}.attn" for i in range(12)]
    assert [layer.index for layer in read.layers] == list(range(12))
    assert read.history == run.history
    for name, mask in run.masks.items():
        assert torch.equal(read.masks[name].v_mask, mask.v_mask)
    (tmp_path / "final_masks.safetensors").unlink()
    assert list(RunFiles.read(tmp_path).masks) == list(read.masks), "the .pt file will do"


def test_redrawn_report_is_identical(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    before = write_report(run, []).read_text()
    assert write_report(RunFiles.read(write_run(run)), []).read_text() == before


def break_result(**changes: Any) -> Callable[[Path], object]:
    def change(directory: Path) -> None:
        path = directory / "result.json"
        content = json.loads(path.read_text())
        path.write_text(
            json.dumps({key: value for key, value in (content | changes).items() if value is not None})
        )

    return change


BROKEN = {
    "no result": (lambda d: (d / "result.json").unlink(), r"no result.json in .*finished run"),
    "not JSON": (lambda d: (d / "result.json").write_text("{"), r"result.json cannot be read"),
    "foreign": (lambda d: (d / "result.json").write_text("[]"), r"not written by an analysis"),
    "running": (break_result(status="running", metrics=None), r"no numbers \(status running\)"),
    "failed": (
        break_result(status="failed", metrics=None, error="OSError: no\nspace"),
        r"no numbers \(status failed: OSError: no space\)",
    ),
    "cut": (break_result(sparsity=None), r"lacks sparsity; run the analysis again"),
    "no masks": (lambda d: [path.unlink() for path in d.glob("final_masks.*")], r"no mask file"),
    "other masks": (lambda d: save_masks(make_masks(Shape(2, 1, 4, 4), 0.5), d, {}), r"different runs"),
    "broken log": (lambda d: (d / "metrics.jsonl").write_text('x\n{"step": 0}\n'), r"line 1 is not JSON"),
}


@pytest.mark.parametrize(("damage", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_unusable_runs_are_refused_in_one_line(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    directory = write_run(make_run(tmp_path))
    damage(directory)
    with pytest.raises(UserError, match=message) as caught:
        RunFiles.read(directory)
    assert "\n" not in str(caught.value)


def test_a_log_cut_short_or_missing_is_read(tmp_path: Path) -> None:
    directory = write_run(make_run(tmp_path, steps=3))
    log = directory / "metrics.jsonl"
    log.write_text(log.read_text()[:-20])
    assert len(RunFiles.read(directory).history) == 2
    log.unlink()
    assert RunFiles.read(directory).history == []


# --- what the report says


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ({"masked": 1.40}, r"improves on the dense model, its loss is 4\.7 % lower"),
        ({"masked": 1.50}, r"nearly all .*\(faithfulness 0\.99\)"),
        ({"masked": 1.90}, r"keeps most of"),
        ({"masked": 2.81}, r"only part of"),
        ({"masked": 4.50}, r"most of what the channels contribute is lost"),
        ({"masked": 5.30}, r"explains nothing \(faithfulness -0\.05\)"),
        ({"masked": 2.0, "empty": 1.2}, r"do not help the model on this data"),
        ({"masked": None}, r"not a finite number"),
    ],
)
def test_the_finding_is_honest(tmp_path: Path, losses: dict[str, float | None], words: str) -> None:
    sentences = finding(with_losses(make_run(tmp_path), **losses))
    assert re.search(words, sentences)
    assert len(re.findall(r"\.(?: |$)", sentences)) == 2, "two sentences"


def test_the_finding_counts_and_places_the_kept_channels(tmp_path: Path) -> None:
    run = make_run(tmp_path, target=0.95)
    k, v = run.result.channels.k.kept, run.result.channels.v.kept
    sentences = finding(run)
    assert sentences.startswith(
        "Keeping 51 of 1,024 attention K/V channels, 5.0 %, leaves the model at 2.810 nats"
    )
    assert "1.468 dense and 5.127 with no channels" in sentences
    assert f"K keeps {k} of 512" in sentences
    assert f"V {v} of 512" in sentences
    kept = [run.kept(name) for name in run.masks]
    assert max(kept) > 51 / 2, "the synthetic masks concentrate in one layer"
    assert f"concentrate in layer {kept.index(max(kept))}, which holds" in sentences


def test_evenly_kept_channels_are_not_said_to_concentrate(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    half = torch.arange(128).reshape(4, 32) % 2 == 0
    masks = {name: replace(mask, k_mask=half, v_mask=half) for name, mask in run.masks.items()}
    assert "spread out, from 128 in layer 3 to 128 in layer 0" in finding(replace(run, masks=masks))


def test_cautions(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    on, off = torch.ones(4, 32, dtype=torch.bool), torch.zeros(4, 32, dtype=torch.bool)
    sound = {name: replace(mask, k_mask=on, v_mask=on) for name, mask in run.masks.items()}
    assert cautions(replace(run, masks=sound)) == []
    idle = sound | {"transformer.h.2.attn": replace(sound["transformer.h.2.attn"], v_mask=off)}
    said = " ".join(cautions(with_losses(replace(run, masks=idle), complement=2.0)))
    assert "No V channel is kept in layer 2" in said
    assert "128 kept K channels belong to KV heads without any V channel" in said
    assert "reaches a loss of 2.000 by itself" in said
    run.result.mask.ablation = "counterfactual"
    assert "can have no effect" not in " ".join(cautions(replace(run, masks=idle)))
    run.result.sparsity.target = 0.5
    assert "The target asks for 512 kept units" in cautions(replace(run, masks=sound))[0]


@pytest.mark.parametrize(
    ("layers", "split"), [(2, []), (3, [1, 1, 1]), (4, [2, 1, 1]), (6, [2, 2, 2]), (30, [10, 10, 10])]
)
def test_thirds(tmp_path: Path, layers: int, split: list[int]) -> None:
    run = make_run(tmp_path, Shape(layers, 1, 4, 4), target=0.5)
    rows = thirds(run)
    assert [len(row["indices"]) for row in rows] == split
    if split:
        assert [row["name"] for row in rows] == ["early", "middle", "late"]
        assert sum(row["k_kept"] for row in rows) == run.result.channels.k.kept


def table(report: str, heading: str) -> list[list[str]]:
    """Cells of the first table below a heading, without its head."""
    lines = report.split(heading, 1)[1].split("\n")
    rows = [line for line in lines if line.startswith("|")]
    first = lines.index(rows[0])
    rows = [line for line in lines[first : lines.index("", first)] if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def test_report_tables(tmp_path: Path) -> None:
    run = make_run(tmp_path, Shape(12, 2, 8, 8), target=0.9)
    drawn = [tmp_path / "kv_channel_importance.png", tmp_path / "transformer.h.10.attn_importance.png"]
    report = write_report(run, drawn).read_text()
    assert (
        report.index("**Finding.**")
        < report.index("## The run")
        < report.index("## How to read these numbers")
    )
    settings = dict(table(report, "## The run"))
    assert settings["Target sparsity"] == "90.00 %"
    assert settings["Achieved sparsity"] == "90.10 %: 38 of 384 (9.9 %) units kept"
    assert settings["Model"] == "`gpt2`: 12 layers × 2 KV heads × 8 channels, 842,496 parameters"
    assert settings["Seed"] == "7"
    models = table(report, "## How well the kept channels do")
    assert [row[0] for row in models] == ["dense", "empty", "masked", "complement"]
    assert models[2][2:] == ["2.8102", "16.61", "4.054", "1.3000", "51.0 %"]
    layers = table(report, "## Where the kept channels are")
    assert [row[0] for row in layers] == [str(i) for i in range(12)]
    assert layers[10][1] == "[`transformer.h.10.attn`](transformer.h.10.attn_importance.png)"
    assert layers[11][1] == "`transformer.h.11.attn`", "no link to a figure that was not drawn"
    assert layers[3][2] == f"{run.layers[3].k_kept}/16"
    assert "](kv_channel_importance.png)" in report
    assert "sparsity_curves.png" not in report


def test_absent_numbers_are_dashes(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for metrics in run.result.metrics.values():
        metrics.bits_per_byte = None
    run.result.metrics.empty.perplexity = None
    run.result.cost = Cost()
    run.result.faithfulness = None
    models = table(write_report(run, []).read_text(), "## How well the kept channels do")
    assert [row[4] for row in models] == ["—"] * 4
    assert models[1][3] == "—"


def test_units_that_are_not_channels_are_counted_apart(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.result.mask.unit = "rope_pair"
    run.result.sparsity.total, run.result.sparsity.kept = 768, 77
    report = write_report(run, []).read_text()
    assert "(as 77 units)" in report
    settings = dict(table(report, "## The run"))
    assert settings["Unit"] == "`rope_pair`: two K channels that are rotated together, or one V channel"
    assert settings["In channels"] == "102 of 1,024 (10.0 %) channels kept"
    mask = run.masks["transformer.h.0.attn"]
    channels = table(report, "## Where the kept channels are")[0][4:6]
    assert channels == [f"({int(mask.k_mask.sum())}/128)", f"({int(mask.v_mask.sum())}/128)"]


def test_hostile_names_are_text_in_the_rendered_report(tmp_path: Path) -> None:
    markdown = pytest.importorskip("markdown_it", reason="markdown-it-py renders the report")
    evil = "<img src=x onerror=alert(1)> | `` [click](javascript:alert(1)) **bold** \n# heading"
    run = with_layer_names(make_run(tmp_path), [evil, "a`b|c", "| |", "![x](http://evil)"])
    for section, names in (
        (run.result.checkpoint, ("name", "source", "architecture", "format")),
        (run.result.dataset, ("name", "tokenizer")),
    ):
        for name in names:
            setattr(section, name, evil)
    run.result.notes = [evil, "# not a heading", "K and V weights are tied"]
    report = write_report(run, []).read_text()
    page = markdown.MarkdownIt("commonmark", {"html": True}).enable("table").render(report)
    plain = re.sub(r"<code>.*?</code>", "", page, flags=re.DOTALL)
    assert "<img" not in page
    assert "href" not in page
    assert "bold**" not in plain.replace("**bold**", "")
    assert page.count("<h1>") == 1
    assert page.count("<h2>") == 5
    layers = page.split("Where the kept channels are")[1].split("</table>")[0]
    assert [row.count("<td") for row in layers.split("<tr>")[2:]] == [6] * 4
    assert "<li>K and V weights are tied</li>" in page


def test_wording() -> None:
    assert number(None) == number(math.inf) == number(math.nan) == "—"
    assert number(1234.5678, 2) == "1,234.57"
    assert number(1e12) == "1e+12"
    assert counted(51, 1024) == "51 of 1,024 (5.0 %)"
    assert enumeration([0, 1, 2, 5]) == "0–2 and 5"
    assert enumeration([7]) == "7"
    assert code("a`b") == "``a`b``"
    assert code("`a|") == "`` `a\\| ``"
    assert text("# <b> [x](y)\nz") == "\\# &lt;b&gt; \\[x\\](y) z"


# --- configuration


def test_visualizer_options(tmp_path: Path) -> None:
    default, none = (
        hydra.utils.instantiate(yaml.safe_load((VISUALIZER_CONFIGS / f"{name}.yaml").read_text()))
        for name in ("default", "none")
    )
    assert [type(figure) for figure in default.figures] == [type(figure) for figure in FIGURES]
    assert default.dpi == 150
    drawn = none.draw(make_run(tmp_path))
    assert [path.name for path in drawn] == ["circuit_analysis_report.md"], "no figures, but a report"
