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
from matplotlib.text import Text

from mechint.api import run_figures
from mechint.errors import UserError
from mechint.masking.masks import LayerMask
from mechint.reporting import (
    Context,
    ImportanceOverview,
    LayerImportance,
    RankFigure,
    SparsityCurves,
    SurvivalMap,
    Visualizer,
    write_report,
)
from mechint.reporting.context import Cells
from mechint.reporting.finding import cautions, finding, headline_lines, thirds
from mechint.reporting.layer_importance import layer_stems
from mechint.reporting.style import (
    KEPT,
    KINDS,
    REMOVED,
    Caution,
    Kind,
    cell_colours,
    figure_style,
    index_ticks,
    printable,
    save,
    wrapped,
)
from mechint.reporting.visualizer import RunFigure
from mechint.reporting.wording import code, counted, enumeration, measured, measured_percent, number, text
from mechint.results import Result, RunFiles
from mechint.results.directories import clear_run
from mechint.results.mask_files import save_masks
from mechint.results.result import (
    BasisInfo,
    BinarizationGap,
    Cost,
    CostPart,
    FinishingInfo,
    NestedPoint,
    RandomMasks,
    RunCost,
    TargetInfo,
)
from mechint.results.verdict import FEW_STEPS, MEASURES, judge

FIGURES = run_figures()
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


def draw(figure: RunFigure, run: RunFiles, dpi: int = DPI) -> list[Path]:
    """The pictures of one kind, and no report."""
    with figure_style():
        return [
            save(picture, run.directory / f"{stem}.png", dpi) for stem, picture in figure.draw(Context(run))
        ]


def report_of(run: RunFiles, drawn: list[Path] | None = None) -> str:
    """The report's text."""
    return write_report(Context(run), drawn or []).read_text()


def with_layer_names(run: RunFiles, names: list[str]) -> RunFiles:
    """The same run with other module paths."""
    masks = dict(zip(names, run.masks.values(), strict=True))
    result = run.result.model_copy(deep=True)
    for layer, name in zip(result.layers, names, strict=True):
        layer.name = name
    return replace(run, masks=masks, result=result)


# --- figures


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(shape, id=name, marks=[] if name == "one of everything" else pytest.mark.slow)
        for name, shape in SHAPES.items()
    ],
)
def test_visualizer_writes_exactly_the_files_of_a_run(tmp_path: Path, shape: Shape) -> None:
    run = make_run(tmp_path, shape, target=0.5)
    drawn = Visualizer(FIGURES, dpi=DPI).draw(run)
    layers = [f"transformer.h.{i}.attn_importance.png" for i in range(shape.layers)]
    expected = [
        "kv_channel_importance.png",
        *layers,
        "sparsity_curves.png",
        "report.html",
        "circuit_analysis_report.md",
    ]
    assert [path.name for path in drawn] == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(expected), "no temporary files are left"
    for path in drawn[:-2]:
        pixels = imread(path)
        assert min(pixels.shape[:2]) > 2 * DPI
        assert pixels[..., :3].std() > 0.02, f"{path.name} is blank"


@pytest.mark.slow
@pytest.mark.parametrize("shape", [Shape(6, 12, 64, 64), THIRTY, Shape(32, 32, 32, 32)], ids=str)
def test_overview_grows_with_the_model_and_keeps_rows_apart(tmp_path: Path, shape: Shape) -> None:
    [path] = draw(ImportanceOverview(), make_run(tmp_path, shape), dpi=150)
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
    keep = (np.arange(20) % 2 == 0).reshape(2, 10)
    rank = np.linspace(0, 1, 20).reshape(2, 10)
    cells = Cells(keep, rank, rank, np.zeros((2, 10), dtype=np.int64))
    colours = cell_colours(cells, kind)[..., :3]
    saturation = colours.max(-1) - colours.min(-1)
    assert saturation[keep].min() > 0.3
    assert saturation[~keep].max() < 0.05


def test_colours_are_ranks_so_that_one_outlier_flattens_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    first = run.masks["transformer.h.0.attn"]
    loud = replace(first, k_importance=first.k_importance.clone())
    loud.k_importance.view(-1)[int(first.k_importance.argmax())] = 1e6
    contexts = [Context(run), Context(replace(run, masks={**run.masks, "transformer.h.0.attn": loud}))]
    one, other = ([c.cells(layer, kind).shade for layer in c.layers for kind in KINDS] for c in contexts)
    changed = sum(int((np.abs(a - b) > 0.02).sum()) for a, b in zip(one, other, strict=True))
    assert changed <= 1
    context = contexts[0]
    every = [context.cells(layer, kind) for layer in run.layers for kind in KINDS]
    kept = np.concatenate([cells.shade[cells.kept] for cells in every])
    assert kept.min() < 0.2, "the kept are told apart among themselves"
    assert kept.max() > 0.8


def test_the_palest_kept_colour_is_darker_than_the_darkest_removed_one() -> None:
    def luminance(colour: tuple[float, ...]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for kind in KINDS:
        shades = [luminance(KEPT[kind](x)) for x in np.linspace(0, 1, 50)]
        assert max(shades) < luminance(REMOVED(1.0)) - 0.05
        assert shades == sorted(shades, reverse=True), "more important is darker"


@pytest.mark.slow
def test_overview_shows_what_is_kept(tmp_path: Path) -> None:
    run = make_run(tmp_path, Shape(2, 2, 16, 16))
    few, all_k = (
        {name: replace(mask, k_mask=torch.full_like(mask.k_mask, kept)) for name, mask in run.masks.items()}
        for kept in (False, True)
    )
    hues = [kept_hues(draw(ImportanceOverview(), replace(run, masks=masks))[0]) for masks in (few, all_k)]
    assert hues[1]["K"] > 5 * hues[0]["K"]
    assert abs(hues[1]["V"] - hues[0]["V"]) < 0.6 * hues[0]["V"]


@pytest.mark.slow
def test_many_layers_get_one_sheet_beside_their_files(tmp_path: Path) -> None:
    few, many = (make_run(tmp_path, Shape(layers, 2, 8, 8), target=0.5) for layers in (8, 9))
    names = [[stem for stem, _ in LayerImportance().draw(Context(run))] for run in (few, many)]
    assert [len(name) for name in names] == [8, 10]
    assert names[1][-1] == LayerImportance.sheet
    [*_, sheet] = draw(LayerImportance(), many, dpi=20)
    assert "layers_contact_sheet.png" in report_of(many, [sheet])


@pytest.mark.parametrize("kind", ["pdf", "svg"])
@pytest.mark.slow
def test_other_formats_repeat_exactly_and_are_cleared_away(tmp_path: Path, kind: str) -> None:
    run = make_run(tmp_path, Shape(1, 1, 4, 4), steps=3)
    figures = [ImportanceOverview(), LayerImportance()]
    first = [path.read_bytes() for path in Visualizer(figures, dpi=DPI, format=kind).draw(run)]
    drawn = Visualizer(figures, dpi=DPI, format=kind).draw(run)
    assert [path.read_bytes() for path in drawn] == first
    assert {path.suffix for path in drawn} == {f".{kind}", ".html", ".md"}
    shown = "![" if kind == "svg" else "\n["  # Markdown shows no PDF
    assert f"{shown}Rank of every K" in drawn[-1].read_text()
    clear_run(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match=r"visualizer\.format=gif"):
        Visualizer([], format="gif")


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "figure", [ImportanceOverview(), SparsityCurves()], ids=lambda figure: type(figure).__name__
)
def test_a_failed_drawing_leaves_the_former_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figure: RunFigure
) -> None:
    run = make_run(tmp_path)
    [path] = draw(figure, run)
    before = path.read_bytes()

    def broken(self: Figure, target: Path, **_: Any) -> None:
        Path(target).write_bytes(b"half a picture")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", broken)
    with pytest.raises(OSError, match="disk full"):
        draw(figure, run)
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
    stems = layer_stems(["model.layers.10.self_attn", *HOSTILE])
    assert stems["model.layers.10.self_attn"] == "model.layers.10.self_attn_importance"
    assert all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{1,150}", stem) for stem in stems.values())
    taken = [stem.lower() for stem in stems.values()]
    assert len({*taken, ImportanceOverview.stem}) == len(HOSTILE) + 2


@pytest.mark.slow
def test_hostile_names_are_drawn_as_text(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    run = with_layer_names(make_run(directory, Shape(2, 1, 4, 4), steps=2), [HOSTILE[0], HOSTILE[6]])
    run.result.checkpoint.name = "m$\\frac{1}{0}$ 名前\x00\nnext"
    drawn = Visualizer(FIGURES, dpi=DPI).draw(run)
    assert sorted(directory.iterdir()) == sorted(drawn)
    assert list(tmp_path.iterdir()) == [directory]


@pytest.mark.slow
def test_curves_without_temperature_or_steps(tmp_path: Path) -> None:
    def height(**options: Any) -> int:
        return imread(draw(SparsityCurves(), make_run(tmp_path, **options))[0]).shape[0]

    full, cold = height(), height(temperature=False)
    assert full > cold > DPI / 2
    assert abs(height(steps=1) - full) <= DPI, "a warning takes a line or two"
    assert abs(height(steps=100) - full) <= DPI
    assert draw(SparsityCurves(), make_run(tmp_path, steps=0)) == []


def test_curves_survive_gaps_in_the_log(tmp_path: Path) -> None:
    run = make_run(tmp_path, steps=60)
    run.history[3]["loss"] = None
    del run.history[-1]["sparsity"]
    assert draw(SparsityCurves(), run)[0].exists()


def words_of(figure: RunFigure, run: RunFiles) -> str:
    """All that is written in a figure, in one line."""
    pictures = [picture for _, picture in figure.draw(Context(run))]
    written = [words.get_text() for picture in pictures for words in picture.findobj(Text)]
    return " ".join(" ".join(written).split())


def test_curves_show_what_comes_after_the_steps(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert "finishing" not in words_of(SparsityCurves(), run)
    run.result.finishing = FinishingInfo(
        objective="kl", before=1.545, after=1.402, tried=60, exchanged_units=5
    )
    run.result.metrics.masked.kl_se = 0.012
    said = words_of(SparsityCurves(), run)
    assert "1.545 → 1.402" in said
    assert "held out: 1.300 ± 0.012" in said


def test_heading_lines_are_wrapped_and_not_cut() -> None:
    long = Caution("⚠ " + "word " * 60)
    lines = wrapped([long, "short"], 5.0)
    assert " ".join(lines).count("word") == 60
    assert all(len(line) < 80 for line in lines)
    assert all(isinstance(line, Caution) for line in lines[:-1])
    assert not isinstance(lines[-1], Caution)


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
    before = report_of(run)
    assert report_of(RunFiles.read(write_run(run))) == before


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


GOOD = {"kl": 0.01, "top1_agreement": 0.97}


def with_model(run: RunFiles, name: str, **numbers: float | None) -> RunFiles:
    """The same run with other numbers of one model."""
    result = run.result.model_copy(deep=True)
    model = getattr(result.metrics, name)
    for key, value in numbers.items():
        setattr(model, key, value)
    dense, empty, masked = (result.metrics[key].loss for key in ("dense", "empty", "masked"))
    known = None not in (dense, empty, masked) and dense != empty
    result.faithfulness = (empty - masked) / (empty - dense) if known else None
    return replace(run, result=result)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"loss": 1.40, **GOOD}, r"are \*\*sufficient .*4\.7 % below the dense model's"),
        ({"loss": 1.50, **GOOD}, r"are \*\*sufficient .*nearly all of what"),
        (
            {"loss": 1.60, **GOOD},
            r"are \*\*largely sufficient .*worst of four measures \(loss above dense\)",
        ),
        ({"loss": 1.60, "kl": 0.3, "top1_agreement": 0.97}, r"are \*\*partly sufficient .*\(KL\)"),
        # SmolLM2-135M at 50 %: faithfulness alone would call this most of the model.
        (
            {"loss": 2.00, "kl": 0.9, "top1_agreement": 0.41},
            r"faithfulness 0\.85.*little .*top token, KL, loss",
        ),
        ({"loss": 5.30, "kl": 3.9, "top1_agreement": 0.1}, r"not sufficient.*faithfulness -0\.05"),
        ({"loss": math.inf}, r"loss is not a finite number"),
    ],
)
def test_the_finding_rests_on_the_worst_measure(
    tmp_path: Path, numbers: dict[str, float | None], words: str
) -> None:
    assert re.search(words, finding(Context(with_model(make_run(tmp_path), "masked", **numbers))))


def test_data_on_which_channels_do_not_help_tell_nothing(tmp_path: Path) -> None:
    run = with_model(make_run(tmp_path), "empty", loss=1.2)
    assert "these data cannot tell a good mask from a bad one" in finding(Context(run))


@pytest.mark.parametrize(
    ("complement", "words"),
    [
        ({"loss": 1.47, **GOOD}, "not necessary"),
        ({"loss": 1.60, "kl": 0.1, "top1_agreement": 0.8}, "hardly necessary"),
        ({"loss": 4.0, "kl": 2.9, "top1_agreement": 0.1}, "not sufficient but necessary"),
    ],
)
def test_necessity_is_said_beside_sufficiency(
    tmp_path: Path, complement: dict[str, float], words: str
) -> None:
    run = with_model(make_run(tmp_path), "complement", **complement)
    assert f"{words}**" in finding(Context(run))
    assert words in headline_lines(Context(run))[0]
    assert f"removed alone: KL {complement['kl']:.3f}" in "\n".join(headline_lines(Context(run)))


@pytest.mark.parametrize(("p", "words"), [(0.05, "p = 0.05"), (0.4, ", and not distinguished from chance**")])
def test_matched_random_masks_stand_in_finding_and_figure(tmp_path: Path, p: float, words: str) -> None:
    run = make_run(tmp_path)
    run.result.random_masks = RandomMasks(
        count=19, tokens=4096, kl_mean=1.589, kl_of_mask=1.392, faithfulness_mean=0.29, p=p
    )
    assert words in finding(Context(run))
    assert "KL 1.589 on average" in finding(Context(run))
    assert f"19 matched random masks: KL 1.589; this one on the same tokens 1.392 (p = {p})" in words_of(
        ImportanceOverview(), run
    )
    assert "| random masks | as many, matched | | | | | 1.589 | |" in report_of(run)


def test_the_thresholds_stand_in_the_glossary(tmp_path: Path) -> None:
    report = report_of(make_run(tmp_path))
    for measure in MEASURES:
        assert measure.in_words() in report
    assert "same top token at least 90, 75, 50 %" in report


OPEN = BinarizationGap(soft_kl=0.2, soft_open=812, gap=1.1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"binarization_gap": OPEN}, "812 gates were open"),
        ({"cost": Cost(steps=FEW_STEPS - 1)}, "49 steps are few"),
        ({"cost": Cost(steps=9, runs=[RunCost(name="seed_0", steps=9)])}, "1 of 1 runs took fewer than 50"),
    ],
)
def test_a_mask_that_was_not_learned_is_not_presented_as_one(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    run = make_run(tmp_path, Shape(1, 2, 16, 16))
    run.history[-1].update(changed_units=0, sparsity=run.result.sparsity.achieved)
    run.history[-2].update(changed_units=0)
    assert judge(run.result, run.history).not_learned == []
    for name, value in changes.items():
        setattr(run.result, name, value)
    assert "**Not the mask that learning arrives at:**" in finding(Context(run))
    assert words in finding(Context(run))
    for figure in (ImportanceOverview(), LayerImportance(), SparsityCurves()):
        assert words in " ".join(words_of(figure, run).split())


def test_a_mask_that_still_changes_or_whose_last_step_has_another_count_is_not_learned(
    tmp_path: Path,
) -> None:
    run = make_run(tmp_path)
    run.result.cost.steps = len(run.history) * 10
    for place, line in enumerate(run.history):
        line["step"] = 10 * place
    for line in run.history[-2:]:
        line["changed_units"] = 60
    [reason] = judge(run.result, run.history).not_learned
    assert reason == "each of the last steps still exchanged 30 of 102 kept units"
    run.history[-1] |= {"sparsity": 0.0, "changed_units": 0}
    run.history[-2] |= {"changed_units": 0}
    [reason] = judge(run.result, run.history).not_learned
    assert reason.startswith("when learning ended 1,024 gates were open, and the 102 of the highest scores")


def test_few_evaluation_tokens_are_called_few(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert "few" not in " ".join(cautions(Context(run)))
    run.result.dataset.evaluation_tokens = 9_999
    assert "9,999 evaluation tokens, which are few" in " ".join(cautions(Context(run)))
    assert "9,999 others to measure it on (few)" in report_of(run)
    assert "which are few" in words_of(ImportanceOverview(), run)


def test_the_finding_counts_and_places_the_kept_channels(tmp_path: Path) -> None:
    run = make_run(tmp_path, target=0.95)
    k, v = run.result.channels.k.kept, run.result.channels.v.kept
    sentences = finding(Context(run))
    assert sentences.startswith("The 51 of 1,024 attention K/V channels (5.0 %) that the mask keeps are")
    assert "KL 1.300 nats per token" in sentences
    assert "loss 2.810 (dense 1.468, empty 5.127)" in sentences
    assert "the 973 others alone give KL 2.900" in sentences
    assert f"K keeps {k} of 512" in sentences
    assert f"V {v} of 512" in sentences
    kept = [run.kept(name) for name in run.masks]
    assert max(kept) > 51 / 2, "the synthetic masks concentrate in one layer"
    assert f"concentrate in layer {kept.index(max(kept))}, which holds" in sentences


def test_evenly_kept_channels_are_not_said_to_concentrate(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    half = torch.arange(128).reshape(4, 32) % 2 == 0
    masks = {name: replace(mask, k_mask=half, v_mask=half) for name, mask in run.masks.items()}
    assert "spread out, from 128 in layer 3 to 128 in layer 0" in finding(Context(replace(run, masks=masks)))


def test_cautions(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    on, off = torch.ones(4, 32, dtype=torch.bool), torch.zeros(4, 32, dtype=torch.bool)
    sound = {name: replace(mask, k_mask=on, v_mask=on) for name, mask in run.masks.items()}
    assert cautions(Context(replace(run, masks=sound))) == []
    idle = sound | {"transformer.h.2.attn": replace(sound["transformer.h.2.attn"], v_mask=off)}
    said = " ".join(cautions(Context(replace(run, masks=idle))))
    assert "No V channel is kept in layer 2" in said
    assert "128 kept K channels belong to KV heads without any V channel" in said
    run.result.mask.ablation = "counterfactual"
    assert "can have no effect" not in " ".join(cautions(Context(replace(run, masks=idle))))
    run.result.sparsity.target = 0.5
    assert "The target asks for 512 kept units" in cautions(Context(replace(run, masks=sound)))[0]


@pytest.mark.parametrize(
    ("layers", "split"), [(2, []), (3, [1, 1, 1]), (4, [2, 1, 1]), (6, [2, 2, 2]), (30, [10, 10, 10])]
)
def test_thirds(tmp_path: Path, layers: int, split: list[int]) -> None:
    run = make_run(tmp_path, Shape(layers, 1, 4, 4), target=0.5)
    rows = thirds(Context(run))
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
    report = report_of(run, drawn)
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
    assert models[2][2:] == ["2.810", "1.342", "16.61", "4.054", "1.300", "51.0 %"]
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
    models = table(report_of(run), "## How well the kept channels do")
    assert [row[5] for row in models] == ["—"] * 4
    assert models[1][4] == "—"


def test_units_that_are_not_channels_are_counted_apart(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.result.mask.unit = "rope_pair"
    run.result.sparsity.total, run.result.sparsity.kept = 768, 77
    report = report_of(run)
    assert ", as 77 units)" in report
    settings = dict(table(report, "## The run"))
    assert settings["Unit"] == "`rope_pair`: two K channels that are rotated together, or one V channel"
    assert settings["In channels"] == "102 of 1,024 (10.0 %) channels kept"
    mask = run.masks["transformer.h.0.attn"]
    channels = table(report, "## Where the kept channels are")[0][4:6]
    assert channels == [f"({int(mask.k_mask.sum())}/128)", f"({int(mask.v_mask.sum())}/128)"]


def test_standard_errors_decide_the_digits(tmp_path: Path) -> None:
    assert measured(1.23456, 0.0123) == "1.235 ± 0.012"
    assert measured(1.23456, 0.123) == "1.23 ± 0.12"
    assert measured(126.4, 43.2, 2) == "126 ± 43"
    assert measured(1.23456) == measured(1.23456, math.nan) == "1.235"
    assert measured(0.0, 0.0) == "0"
    assert measured(None, 0.1) == measured_percent(None) == "—"
    assert measured_percent(0.38154, 0.0044) == "38.15 ± 0.44 %"
    run = make_run(tmp_path)
    masked = run.result.metrics.masked
    masked.loss_se, masked.kl_se, masked.top1_agreement_se = 0.021, 0.0164, 0.0044
    run.result.faithfulness_se = 0.0061
    models = table(report_of(run), "## How well the kept channels do")
    assert models[2][2:] == ["2.810 ± 0.021", "1.342", "16.61", "4.054", "1.300 ± 0.016", "51.00 ± 0.44 %"]
    assert "Faithfulness: **0.6333 ± 0.0061**" in report_of(run)


def test_the_costs_of_all_parts_add_up(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.result.finishing = FinishingInfo(objective="kl", before=1.6, after=1.5, tried=60, exchanged_units=4)
    run.result.cost = Cost(
        steps=300,
        step_seconds=0.21,
        seconds=75.2,
        total_seconds=100.0,
        parts=[
            CostPart(name="steps", seconds=63.2, tokens=614_400),
            CostPart(name="finishing", seconds=12.0, tokens=10_000),
            CostPart(name="measuring", seconds=9.0, tokens=131_072),
        ],
    )
    rows = table(report_of(run), "## What it cost")
    assert rows[0] == ["steps", "300 steps, 210 ms each", "63.2 s", "614,400"]
    assert rows[1][1] == "60 exchanges tried, 4 units exchanged"
    assert rows[-2][::2] == ["everything else", "15.8 s"]
    assert rows[-1] == ["total", "", "100.0 s", "755,472"]
    costs = Context(run).cost
    assert sum(row.seconds or 0 for row in costs[:-1]) == pytest.approx(costs[-1].seconds)
    run.result.cost.runs = [RunCost(name=f"seed_{n}", steps=150, seconds=80.0, tokens=9) for n in range(2)]
    report = report_of(run)
    assert "| `seed_1` | 150 | 80.0 s | 9 |" in report
    assert "| total |  | 2 min 40 s |" in report, "runs that were there already count as well"


@pytest.mark.slow
def test_a_method_that_only_scores_has_neither_objective_nor_curves(tmp_path: Path) -> None:
    run = make_run(tmp_path, steps=0)
    run.result.cost = Cost(seconds=3.0, parts=[CostPart(name="scores", seconds=3.0, tokens=9)])
    run.result.mask.method, run.result.mask.importance = "Fisher", "mean squared gradient of its gate"
    drawn = Visualizer(FIGURES, dpi=20).draw(run)
    report = drawn[-1].read_text()
    assert not [path for path in drawn if "curves" in path.name]
    settings = dict(table(report, "## The run"))
    assert settings["Method"] == "`Fisher`, which only scores, scope `global`"
    for absent in ("schedule", "objective", "learned score", "learning arrives", "How the mask was learned"):
        assert absent not in report
    assert "**Importance**: here mean squared gradient of its gate." in report
    assert "Importance: mean squared gradient of its gate." in words_of(ImportanceOverview(), run)


def test_the_losses_that_a_checkpoint_states_stand_beside_the_dense_one(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert "records a validation loss" not in report_of(run)
    run.result.checkpoint.stated_loss = 1.4697
    assert "records a validation loss of 1.4697; the dense model has 1.468 on these" in report_of(run)


def test_the_held_out_objective_is_told_where_it_is_neither_loss_nor_kl(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert "The objective" not in report_of(run)
    run.result.mask.objective, run.result.mask.surrogate_of = "logit_diff_gap", "logit_diff"
    for place, model in enumerate(run.result.metrics.values()):
        model.objective, model.objective_se = 0.5 * place, 0.01
    line = "`logit_diff_gap`, mean over positions: dense 0.000 ± 0.010, empty 0.500 ± 0.010, masked 1.000 ± 0.010"
    assert line in report_of(run)
    assert "objective `logit_diff_gap` (a surrogate of `logit_diff`)" in report_of(run)


def in_basis(run: RunFiles, where: str = "before_rope") -> RunFiles:
    """The same run in a basis whose last directions are worth most."""
    sizes = [mask.k_mask.shape for mask in run.masks.values() for _ in KINDS]
    energy = torch.cat([torch.arange(1.0, 1 + width).repeat(heads) for heads, width in sizes])
    ranks = [
        {"layer": layer.index, "name": layer.name, "kind": kind, "rank": [3.5] * 4}
        for layer in run.layers
        for kind in "kv"
    ]
    result = run.result.model_copy(deep=True)
    result.basis = BasisInfo(
        keys="principal", values="principal", where=where, error=1e-6, effective_rank=ranks
    )
    return replace(run, result=result, energy=energy)


@pytest.mark.slow
def test_directions_are_named_and_ordered_by_their_share(tmp_path: Path) -> None:
    run = in_basis(make_run(tmp_path))
    context = Context(run)
    for layer in run.layers:
        mask = run.masks[layer.name].k_mask.numpy()
        assert np.array_equal(context.cells(layer, "K").kept, mask[:, ::-1])
    said = words_of(ImportanceOverview(), run)
    assert "K direction of the head, by its share" in said
    assert "channel" not in said
    report = report_of(run, draw(RankFigure(), run))
    assert "# Which K and V directions matter" in report
    assert "keys `principal` (before the rotation), values `principal`" in report
    assert "put together and rotated again whenever they are read" in report
    assert "effective_rank.png" in report
    assert table(report, "## Where the kept directions are")[0][-1] == "3.5, 3.5"
    assert "effective rank 3.5 on average" in words_of(RankFigure(), run)
    assert draw(RankFigure(), make_run(tmp_path)) == []


def nested_run(directory: Path) -> RunFiles:
    """A made-up run for three targets, whose importance ranks all channels."""
    run = make_run(directory, target=0.9)
    total = run.result.channels.total
    run.result.nested = [
        NestedPoint(
            directory=f"sparsity_{target}",
            target=target,
            achieved=target,
            kept=kept,
            total=total,
            channels=kept,
        )
        for target, kept in ((0.5, 512), (0.75, 256), (0.9, run.result.channels.kept))
    ]
    return run


@pytest.mark.slow
def test_the_survival_map_has_each_channel_at_the_sparsity_at_which_it_goes(tmp_path: Path) -> None:
    run = nested_run(tmp_path)
    context = Context(run)
    cells = [context.cells(layer, kind) for layer in run.layers for kind in KINDS]
    times = np.concatenate([one.targets.ravel() for one in cells])
    assert np.bincount(times).tolist() == [512, 256, 256 - run.result.channels.kept, run.result.channels.kept]
    assert np.array_equal(times == 3, np.concatenate([one.kept.ravel() for one in cells]))
    drawn = draw(SurvivalMap(), run)
    assert [path.name for path in drawn] == ["survival_map.png"]
    assert "survival_map.png" in report_of(run, drawn)
    run.result.target = TargetInfo(
        kind="kl", value=0.1, achieved=0.09, interval=[0.08, 0.1], units=102, runs=3
    )
    assert draw(SurvivalMap(), run) == [], "masks of a search are not ranked together"
    assert "a KL of at most 0.1 with as few units as possible" in report_of(run)
    assert "0.090 on evaluation data (95 % interval 0.080 to 0.100) with 102 units |" in report_of(run)


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
    report = report_of(run)
    page = markdown.MarkdownIt("commonmark", {"html": True}).enable("table").render(report)
    plain = re.sub(r"<code>.*?</code>", "", page, flags=re.DOTALL)
    assert "<img" not in page
    assert "href" not in page
    assert "bold**" not in plain.replace("**bold**", "")
    assert page.count("<h1>") == 1
    assert page.count("<h2>") == 6
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
    assert (default.dpi, default.format) == (150, "png")
    drawn = none.draw(make_run(tmp_path))
    assert [path.name for path in drawn] == ["report.html", "circuit_analysis_report.md"], "no figures"
