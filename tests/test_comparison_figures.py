"""Figures of variants and of a tree of runs: what they show is what was given to them, and it is legible."""

from __future__ import annotations

import itertools
import math
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from comparable_runs import make_run
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection, QuadMesh
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from mechint.comparison import figures
from mechint.comparison.compare import compare
from mechint.comparison.comparison import KINDS, Comparison
from mechint.comparison.figures.looks import variant_looks
from mechint.comparison.figures.page import shortened, width_of, wrapped
from mechint.comparison.figures.pareto import group_looks
from mechint.comparison.findings import in_short
from mechint.comparison.flags import title_of
from mechint.comparison.runs import UnfinishedRun, runs_frame
from mechint.comparison.study import Study
from mechint.reporting.style import ACCENT
from mechint.results import RunFiles
from mechint.results.result import Metrics, OldToolLosses

VARIANT_FIGURES = {
    "overall_summary.png": figures.OverallSummary(),
    "delta_heatmap.png": figures.DeltaHeatmap(),
    "key_findings.png": figures.KeyFindings(),
    "sparsity_comparison.png": figures.SparsityComparison(),
    "importance_comparison.png": figures.ImportanceComparison(),
    "channels_comparison.png": figures.ChannelsComparison(),
}
DPI = 100  # what a figure has by default, so that texts can be measured as they were drawn
LONG = "KV-Tying with a rather long name, 40 let"
NAMES = ["Baseline", LONG, "K=V^T", "$x_1$ \\frac{", "名前 🙂 名", "a\nb <b>", "M" * 40, "hard concrete"]

LAYERS = [(8, 12), (4, 2), (16, 16), (0, 6)]  # (K, V) channels that four layers keep, of 16 each

GROUPS = itertools.count()


@dataclass
class Drawn:
    """A figure as it was about to be saved, and where."""

    figure: Figure
    path: Path

    @property
    def texts(self) -> list[Text]:
        """Everything written, from the top to the bottom."""
        found = [text for text in self.figure.findobj(Text) if isinstance(text, Text)]
        return [text for text in found if text.get_text().strip() and text.get_visible()]

    @property
    def words(self) -> str:
        """All of it in one line."""
        return " ".join(" ".join(text.get_text().split()) for text in self.texts)

    def panel(self, title: str) -> Axes:
        """The panel whose title begins so."""
        titles = {" ".join(axes.get_title(loc="left").split()): axes for axes in self.figure.axes}
        return next(axes for name, axes in titles.items() if name.startswith(title))


Draw = Callable[[Any, Any], Drawn]


@pytest.fixture(scope="module")
def draw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Draw]:
    """Draw a figure of something, and keep the figure."""
    directory = tmp_path_factory.mktemp("figures")
    kept: list[Figure] = []
    original = Figure.savefig

    def savefig(self: Figure, *arguments: Any, **options: Any) -> None:
        kept.append(self)
        original(self, *arguments, **options)

    def call(figure: Any, subject: Any) -> Drawn:
        [path] = figure.draw(subject, directory, DPI)
        return Drawn(kept.pop(), path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", savefig)
        yield call


def seeds(loss: float, count: int, kept: list[tuple[int, int]] = LAYERS, **told: Any) -> list[RunFiles]:
    """Runs that differ in the seed: in loss by hundredths, and in the places of the kept channels."""
    runs = [make_run(kept, loss=loss + 0.01 * seed, seed=seed, **told) for seed in range(count)]
    place = Path(f"group{next(GROUPS)}")  # or one run would seem to stand in two groups
    for run in runs:
        for metrics in run.result.metrics.values():  # the one that the hand-made runs lack
            metrics.top1_agreement = 0.5
    return [replace(run, directory=place / str(seed)) for seed, run in enumerate(runs)]


def unmeasured(kept: list[tuple[int, int]] = LAYERS) -> list[RunFiles]:
    """Masks of the replaced tool: no metrics, but a report with a loss degradation of -40 %."""
    [run] = seeds(2.0, 1, kept)
    run.result.metrics = Metrics()
    run.result.faithfulness = run.result.loss_degradation_percent = None
    run.result.old_tool = OldToolLosses(initial_loss=5.0, final_loss=3.0)
    return [run]


@pytest.fixture(scope="module")
def two() -> Comparison:
    """Two variants with three seeds each; B loses 0.4 more and moves channels from layer 2 to layer 1."""
    moved = [(8, 12), (14, 12), (6, 6), (0, 6)]
    return compare({"A": seeds(2.0, 3), "B": seeds(2.4, 3, moved)}, "A")


@pytest.fixture(scope="module")
def many() -> Comparison:
    """Eight variants with difficult names, other depths, other data, other sparsity, one without numbers."""
    deep = [(4 + i % 5, 3 + i % 7) for i in range(24)]
    variants = {name: seeds(2 + 0.1 * i, 1 + i % 3, deep) for i, name in enumerate(NAMES)}
    variants[NAMES[2]] = seeds(2.2, 2, deep, dataset__evaluation_digest="ff" * 32)
    variants[NAMES[3]] = seeds(2.3, 2, [(k + 3, v + 3) for k, v in deep])
    variants[NAMES[4]] = unmeasured(deep)
    variants[NAMES[5]] = seeds(2.3, 2, deep[:18])
    return compare(variants, "Baseline")


@pytest.fixture(scope="module")
def two_drawn(draw: Draw, two: Comparison) -> dict[str, Drawn]:
    """Every figure of the two."""
    return {name: draw(figure, two) for name, figure in VARIANT_FIGURES.items()}


@pytest.fixture(scope="module")
def many_drawn(draw: Draw, many: Comparison) -> dict[str, Drawn]:
    """Every figure of the eight."""
    return {name: draw(figure, many) for name, figure in VARIANT_FIGURES.items()}


# --- every figure


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANT_FIGURES)
def test_each_figure_is_its_file_and_not_blank(two_drawn: dict[str, Drawn], name: str) -> None:
    path = two_drawn[name].path
    assert path.name == name
    assert imread(path)[..., :3].std() > 0.02
    assert [other.name for other in path.parent.iterdir() if other.name.startswith(".")] == []


@pytest.mark.parametrize("name", VARIANT_FIGURES)
@pytest.mark.parametrize("count", ["two", "many"])
@pytest.mark.slow
def test_no_words_leave_the_page_or_the_warnings_their_box(
    request: pytest.FixtureRequest, name: str, count: str
) -> None:
    drawn: Drawn = request.getfixturevalue(f"{count}_drawn")[name]
    assert outside(drawn.figure) == []


def outside(figure: Figure) -> list[str]:
    """Texts that reach over the figure's edge."""
    assert figure.dpi == DPI
    page = figure.bbox.padded(1)
    unused = {id(label) for axes in figure.axes for label in hidden_ticks(axes)}
    over = []
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        box = text.get_window_extent()
        fits = page.x0 <= box.x0 and box.x1 <= page.x1 and box.y0 >= page.y0 and box.y1 <= page.y1
        if text.get_visible() and text.get_text().strip() and not fits and id(text) not in unused:
            over.append(text.get_text())
    return over


def hidden_ticks(axes: Axes) -> list[Text]:
    """Labels of ticks beyond the ends of the axes, which matplotlib keeps but does not draw."""
    found = []
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        found += [tick.label1 for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANT_FIGURES)
def test_variants_sparsity_and_data_are_named(
    two_drawn: dict[str, Drawn], many_drawn: dict[str, Drawn], name: str
) -> None:
    words = two_drawn[name].words
    for fact in (
        "A baseline",
        "sparsity 50.0 %",
        "3 runs each",
        "measured on text, 512 tokens",
    ):
        assert fact in words
    squeezed = re.sub(r"\s", "", many_drawn[name].words)
    for variant in ("Baseline", LONG, "K=V^T", "hard concrete"):
        assert variant.replace(" ", "") in squeezed
    assert "data ffffffff" in many_drawn[name].words, "which data, where they differ"
    assert "nothing measured" in many_drawn[name].words


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANT_FIGURES)
def test_what_forbids_comparing_stands_in_the_figure(
    two_drawn: dict[str, Drawn], many_drawn: dict[str, Drawn], many: Comparison, name: str
) -> None:
    assert "⚠" not in two_drawn[name].words
    words = many_drawn[name].words
    assert len(many.flags) >= 4
    for flag in many.flags:
        assert title_of(flag) in words


@pytest.mark.slow
def test_drawing_repeats_exactly_and_leaves_matplotlib_alone(draw: Draw, two: Comparison) -> None:
    settings = dict(matplotlib.rcParams)
    chosen = [VARIANT_FIGURES[name] for name in ("overall_summary.png", "key_findings.png")]
    first = [draw(figure, two).path.read_bytes() for figure in chosen]
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "text.hinting": "none"}):
        again = [draw(figure, two).path.read_bytes() for figure in chosen]
    assert first == again
    assert dict(matplotlib.rcParams) == settings
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []


# --- overall summary


@pytest.mark.slow
def test_summary_gives_numbers_differences_and_the_verdict(two_drawn: dict[str, Drawn]) -> None:
    loss = two_drawn["overall_summary.png"].panel("Loss: dense")
    said = {text.get_text(): text.get_weight() for text in loss.texts}
    assert said == {"2.010": "normal", "2.4100 (+0.4000 ± 0.0082)": "normal"}
    agreement_ = two_drawn["overall_summary.png"].panel("Top-1")
    assert {text.get_text(): text.get_weight() for text in agreement_.texts}["0.500 (+0.000)"] == "normal"
    marks = np.concatenate([points.get_offsets() for points in loss.collections])  # type: ignore[arg-type]
    places = {round(float(x), 2) for x, _ in marks}
    assert places == {1.0, 2.0, 2.01, 2.02, 2.4, 2.41, 2.42}, "dense, every run, and the means"


@pytest.mark.slow
def test_summary_withholds_what_cannot_be_compared(many_drawn: dict[str, Drawn]) -> None:
    drawn = many_drawn["overall_summary.png"]
    assert "(+" not in drawn.words.split("⚠ different evaluation")[1]
    assert drawn.words.count("⚠ different evaluation data: not comparable") == 5, "on every panel of a metric"
    assert drawn.words.count("not measured") == 5, "numbers of the replaced tool are not ours"


@pytest.mark.slow
def test_numbers_of_the_replaced_tool_are_quoted_but_never_plotted(draw: Draw) -> None:
    comparison = compare({"ours": seeds(2.0, 1), "old": unmeasured()}, "ours")
    summary = draw(figures.OverallSummary(), comparison)
    assert not re.search(r"[-−]40\.0|5\.0000|3\.0000", summary.words)
    for title in ("Loss: dense", "Loss degradation", "KL", "Faithfulness", "Top-1"):
        panel = summary.panel(title)
        heights = {float(y) for points in panel.collections for _, y in points.get_offsets()}  # type: ignore[union-attr]
        assert heights == {0.0}, "only our own row has a mark"


@pytest.mark.slow
def test_summary_of_masks_alone_is_drawn(draw: Draw) -> None:
    comparison = compare({"a": unmeasured(), "b": unmeasured()}, "a")
    words = draw(figures.OverallSummary(), comparison).words
    assert words.count("not measured") == 10
    assert "In brackets" not in words


# --- layers


@pytest.mark.slow
def test_heatmap_shows_the_differences_and_marks_those_beyond_seeds(
    two: Comparison, two_drawn: dict[str, Drawn]
) -> None:
    drawn, difference = two_drawn["delta_heatmap.png"], two.differences["B"]
    panels = [axes for axes in drawn.figure.axes if any(isinstance(c, QuadMesh) for c in axes.collections)]
    for axes, places in zip(panels, (difference.layers, difference.thirds), strict=False):
        [mesh] = [mesh for mesh in axes.collections if isinstance(mesh, QuadMesh)]
        assert np.asarray(mesh.get_array()).tolist() == [
            pytest.approx([100 * place.sparsity[kind].difference for place in places]) for kind in KINDS
        ]
        dots = {round(float(np.asarray(line.get_xdata())[0])) for line in axes.lines}
        assert dots == {i for i, place in enumerate(places) if place.claim.distinguished}
    assert "+0.0" in drawn.words
    assert "−62.5" in drawn.words, "K of layer 1: 4 kept against 14, of 16"


@pytest.mark.slow
def test_profiles_show_each_variant_beside_the_baseline(two: Comparison, two_drawn: dict[str, Drawn]) -> None:
    panel = two_drawn["sparsity_comparison.png"].panel("K channels")
    lines = [np.asarray(line.get_ydata()).tolist() for line in panel.lines]
    assert lines == [pytest.approx([0.5, 0.75, 0, 1]), pytest.approx([0.5, 2 / 16, 10 / 16, 1])]
    assert [np.asarray(line.get_xdata()).tolist() for line in panel.lines] == [[0, 1, 2, 3]] * 2
    assert len([c for c in panel.collections if isinstance(c, PolyCollection)]) == 2, "a band for each: seeds"


@pytest.mark.slow
def test_other_depths_are_placed_by_relative_depth(many_drawn: dict[str, Drawn]) -> None:
    drawn = many_drawn["sparsity_comparison.png"]
    assert "relative depth" in drawn.words
    lines = [np.asarray(line.get_xdata()) for axes in drawn.figure.axes for line in axes.lines]
    ends = {len(places): places[[0, -1]].tolist() for places in lines}
    assert ends[24] == pytest.approx([0.5 / 24, 23.5 / 24])
    assert ends[18] == pytest.approx([0.5 / 18, 17.5 / 18])


@pytest.mark.slow
def test_bars_count_kept_channels_and_overlap_stands_below(
    two: Comparison, two_drawn: dict[str, Drawn]
) -> None:
    drawn = two_drawn["channels_comparison.png"]
    heights = [bar.get_height() for bar in drawn.panel("A").patches]  # type: ignore[attr-defined]
    for kept in ([8, 4, 16, 0], [-12, -2, -16, -6]):
        assert any(heights[i : i + 4] == kept for i in range(0, len(heights), 4))
    overlap = two.differences["B"].overlap
    assert overlap is not None
    assert overlap.iou is not None
    assert overlap.chance is not None
    assert overlap.highest is not None
    assert (
        f"{overlap.iou.mean:.2f} chance {overlap.chance.mean:.2f}, highest {overlap.highest.mean:.2f}"
        in drawn.words
    )
    assert "keeps K 28 of 64, V 36 of 64" in drawn.words


@pytest.mark.slow
def test_masks_that_cannot_overlap_say_why(many_drawn: dict[str, Drawn]) -> None:
    assert "channels cannot be matched" in many_drawn["channels_comparison.png"].words


# --- key findings


@pytest.mark.slow
def test_the_card_holds_the_findings_in_short(two: Comparison, two_drawn: dict[str, Drawn]) -> None:
    written = re.sub(r"\s", "", two_drawn["key_findings.png"].words)
    sentences = in_short(two)
    assert 0 < len(sentences) <= 3
    for sentence in sentences:
        assert re.sub(r"\s", "", sentence) in written


# --- a tree


def curve(label: str, checkpoint: str, losses: dict[float, list[float]], **told: Any) -> pd.DataFrame:
    """Runs of a curve; losses: sparsity -> the loss of each seed. KL is the fourth power of what is lost, over ten."""
    [run] = seeds(2.0, 1)
    rows = [
        {
            **runs_frame([run.result]).iloc[0],
            "group": label, "checkpoint": checkpoint, "sha256": checkpoint, "directory": f"{label}/{sparsity}/{seed}",
            "seed": seed, "sparsity": sparsity, "kept": round(1024 * (1 - sparsity)), "total": 1024,
            "kv_bytes": 2048 * (1 - sparsity), "dense_kv_bytes": 2048, "dense_loss": 1.0, "empty_loss": 5.0,
            "loss": loss, "kl": (loss - 1) ** 4 / 10, "empty_kl": 25.6, "faithfulness": (5 - loss) / 4,
            "evaluation_digest": "ab" * 32, **told,
        }
        for sparsity, found in losses.items()
        for seed, loss in enumerate(found)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def study_of(*curves: pd.DataFrame, **told: Any) -> Study:
    """A study of these curves."""
    return Study(Path("outputs/sweeps/night"), pd.concat(curves, ignore_index=True), **told)


LOSSES = {0.5: [1.1, 1.2], 0.75: [1.4, 1.6], 0.9375: [3.0, 3.2]}


@pytest.fixture(scope="module")
def study() -> Study:
    """Two checkpoints with two methods each, some runs missing."""
    curves = [curve(f"{c} · {m}", c, LOSSES) for c in ("base", "tied") for m in ("TopK", "Other")]
    missing = (UnfinishedRun(Path("x"), "failed", "disk full"), UnfinishedRun(Path("y"), "running", ""))
    return study_of(*curves, unfinished=missing, flags=("Different evaluation data: no.",))


@pytest.mark.slow
def test_pareto_draws_means_against_sparsity_and_bytes(draw: Draw, study: Study) -> None:
    drawn = draw(figures.Pareto(), study_of(curve("base · TopK", "base", LOSSES)))
    assert drawn.path.name == "pareto.png"
    left, right = drawn.figure.axes[:2]
    longest = [max(axes.lines, key=lambda line: len(np.asarray(line.get_xdata()))) for axes in (left, right)]
    assert np.asarray(longest[0].get_xdata()).tolist() == [0.5, 0.75, 0.9375]
    assert np.asarray(longest[1].get_xdata()).tolist() == [1024, 512, 128]
    assert np.asarray(longest[0].get_ydata()).tolist() == pytest.approx([1.15, 1.5, 3.1])
    spans = [np.asarray(line.get_ydata()).tolist() for line in left.lines]
    for found in LOSSES.values():
        assert found in spans, "the range over seeds"
    assert [1.0, 1.0] in spans, "dense"
    assert [5.0, 5.0] in spans, "empty"
    assert [label.get_text() for label in drawn.figure.axes[4].get_xticklabels()] == [
        "93.8 %",
        "75 %",
        "50 %",
    ]


@pytest.mark.slow
def test_pareto_says_what_is_missing_and_where_it_was_measured(draw: Draw, study: Study) -> None:
    drawn = draw(figures.Pareto(), study)
    for fact in (
        "runs below night",
        "24 finished runs",
        "2 runs per point",
        "1 failed, not drawn",
        "abababab",
    ):
        assert fact in drawn.words
    for name in ("base · TopK", "tied · Other", "sparsity 50, 75, 93.75 %", "all channels 2 KiB per token"):
        assert name in drawn.words
    assert "⚠ Different evaluation data" in drawn.words
    assert outside(drawn.figure) == []


@pytest.mark.slow
def test_pareto_scales_kl_only_where_it_helps(draw: Draw, study: Study) -> None:
    wide = draw(figures.Pareto(), study).panel("KL")
    assert wide.get_yscale() == "log"
    narrow = study_of(curve("g", "c", {0.5: [3.0], 0.75: [3.1]}))
    assert draw(figures.Pareto(), narrow).panel("KL").get_yscale() == "linear"
    zero = study_of(curve("g", "c", {0.0: [1.0], 0.75: [3.1]}))
    assert draw(figures.Pareto(), zero).panel("KL").get_yscale() == "linear", "0 has no logarithm"


@pytest.mark.slow
def test_pareto_of_single_points_and_absent_numbers(draw: Draw) -> None:
    assert "1 run per point" in draw(figures.Pareto(), study_of(curve("g", "c", {0.9: [2.0]}))).words
    silent = study_of(curve("g", "c", {0.9: [2.0]}, kl=math.nan, loss=math.nan, faithfulness=math.nan))
    assert "No finished run has numbers" in draw(figures.Pareto(), silent).words


def test_curves_have_looks_of_their_own(study: Study) -> None:
    twelve = [curve(f"a{i}", "a", LOSSES) for i in range(12)]
    models = [curve(str(i), str(i), LOSSES) for i in range(12)]
    for one in (study, study_of(*twelve), study_of(*models)):
        looks = group_looks(one)
        assert len({(look.colour, look.marker, look.dash) for look in looks.values()}) == len(one.groups)


# --- KL against sparsity


BASES = {"channels": 0.0, "principal": -0.1, "learned, keys before the rotation": -0.15}


def shifted(by: float) -> dict[float, list[float]]:
    """The losses, a little lower."""
    return {sparsity: [loss + by * (loss - 1) for loss in found] for sparsity, found in LOSSES.items()}


@pytest.mark.slow
def test_bases_of_a_sweep_are_named_curves_on_logarithmic_axes(draw: Draw) -> None:
    curves = [
        curve(f"base · basis={basis} · more", "base", shifted(by), basis=basis) for basis, by in BASES.items()
    ]
    drawn = draw(figures.KLBySparsity(), study_of(*curves))
    [axes] = drawn.figure.axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    names = {text.get_text(): text for text in axes.texts}
    assert {*names} == {*BASES, "no units"}, "named after what differs"
    assert len({names[basis].get_color() for basis in BASES}) == 3
    lines = {
        line.get_color(): np.asarray(line.get_ydata()).tolist()
        for line in axes.lines
        if len(line.get_xdata()) == 3
    }
    expected = [(0.1 * (loss - 1)) for loss in (1.1, 1.2)]
    assert lines[names["channels"].get_color()][-1] == pytest.approx(sum(x**4 * 1e3 for x in expected) / 2)
    shares = np.asarray(axes.get_xticks()).tolist()
    assert shares == pytest.approx([0.0625, 0.25, 0.5])
    assert axes.get_xticklabels()[0].get_text().split() == ["93.8", "%", "64"]
    assert axes.get_xlim()[0] > axes.get_xlim()[1], "more removed to the right"
    assert len([c for c in axes.collections if isinstance(c, PolyCollection)]) == 3, "a band for the seeds"
    assert "nats per token" in axes.get_ylabel()
    assert "of 1,024 are kept" in axes.get_xlabel()
    assert outside(drawn.figure) == []


@pytest.mark.slow
def test_methods_of_two_models_are_two_panels(draw: Draw, study: Study) -> None:
    drawn = draw(figures.KLBySparsity(), study)
    assert [axes.get_title(loc="left") for axes in drawn.figure.axes] == ["base", "tied"]
    assert {text.get_text() for text in drawn.figure.axes[1].texts} == {"TopK", "Other", "no units"}
    assert "⚠ Different evaluation data" in drawn.words


def test_curves_of_one_point_or_too_many_are_not_drawn(tmp_path: Path) -> None:
    crowd = study_of(*(curve(f"a · {i}", "a", LOSSES) for i in range(9)))
    for one in (study_of(curve("g", "c", {0.9: [2.0]})), crowd):
        assert figures.KLBySparsity().draw(one, tmp_path, DPI) == []
    assert not list(tmp_path.iterdir())


# --- looks and letters


def test_variants_have_looks_of_their_own(many: Comparison) -> None:
    looks = variant_looks(many)
    assert next(iter(looks)) == "Baseline"
    assert len({look.colour for look in looks.values()}) == len({look.marker for look in looks.values()}) == 8
    assert not {look.colour for look in looks.values()} & set(ACCENT.values()), "blue is K, orange is V"


@pytest.mark.parametrize("bold", [False, True])
def test_lines_keep_within_their_width(bold: bool) -> None:
    text = "losses and everything made from them were measured on different tokens"
    lines = wrapped(text, 8, 120, bold)
    assert max(width_of(line, 8, bold) for line in lines) <= 120
    assert " ".join(lines) == text
    assert width_of(shortened(text, 8, 120, bold), 8, bold) <= 120
    assert max(width_of(line, 8, bold) for line in wrapped(f"a {'M' * 90}", 8, 120, bold)) <= 120
    assert shortened("short", 8, 120, bold) == "short"
    assert re.fullmatch(r"loss.*….*tokens", shortened(text, 8, 120, bold))
    assert math.isclose(width_of("名", 8), width_of("?", 8))
