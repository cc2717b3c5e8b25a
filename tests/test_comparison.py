"""Variants held against a baseline: numbers, layers, overlap, flags and findings."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from comparable_runs import make_masks, make_run, write_run

from mechint.comparison.compare import compare, read_comparison
from mechint.comparison.comparison import Comparison
from mechint.comparison.findings import findings_text
from mechint.comparison.job import Output, leave_comparison
from mechint.comparison.variant import make_variant, read_variant
from mechint.errors import UserError
from mechint.loggers import Logger
from mechint.masking.masks import LayerMask
from mechint.metrics.overlap import contained, highest_iou, iou, matched_chance
from mechint.metrics.spread import Spread
from mechint.results import RunFiles

EVEN = [(8, 8)] * 6  # half of the channels of six layers


def comparison_of(baseline: list[RunFiles], variant: list[RunFiles]) -> Comparison:
    """A comparison of runs in memory, B against A."""
    return compare([make_variant("A", baseline), make_variant("B", variant)], "A")


def seeds(losses: list[float], kept: list[tuple[int, int]] = EVEN, **told: Any) -> list[RunFiles]:
    """Runs that differ in seed and loss."""
    return [make_run(kept, loss=loss, seed=seed, **told) for seed, loss in enumerate(losses)]


def test_metrics_differ_by_their_means_with_an_interval() -> None:
    apart = ([2.0, 2.1, 2.2, 2.05], [2.6, 2.5, 2.7, 2.55])
    comparison = comparison_of(seeds(apart[0]), seeds(apart[1], checkpoint__sha256="bb"))
    entry = comparison.differences["B"].metrics["loss"]
    assert entry.difference == pytest.approx(0.5)
    assert entry.verdict == "higher"
    assert entry.effect.low is not None
    assert entry.effect.low < 0.5 < (entry.effect.high or 0)
    assert comparison.differences["B"].metrics["loss_degradation_percent"].difference == pytest.approx(50)
    assert comparison.differences["B"].metrics["dense_loss"].verdict == "not tested"
    text = findings_text(comparison)
    assert re.search(
        r"masked loss: B 2\.58\d*, A 2\.08\d* nats/token; difference \+0\.5\d* \[\+0\.\d+, \+0\.\d+\], higher",
        text,
    )
    assert "several trainings of each" in text  # two checkpoints
    assert "no common numbering of channels" in text


def test_overlapping_seeds_are_not_distinguished() -> None:
    comparison = comparison_of(seeds([2.0, 2.5, 2.2, 2.4]), seeds([2.4, 2.6, 2.1, 2.3]))
    assert comparison.differences["B"].metrics["loss"].verdict == "not distinguished"
    text = findings_text(comparison)
    assert ", not distinguished (p = 1)" in text
    assert "several trainings" not in text  # one checkpoint


@pytest.mark.parametrize("losses", [([2.0], [2.4]), ([2.0, 2.1], [2.4]), ([2.0, 2.1, 2.0], [9.4, 9.5, 9.4])])
def test_below_four_seeds_nothing_is_claimed(losses: tuple[list[float], list[float]]) -> None:
    comparison = comparison_of(seeds(losses[0]), seeds(losses[1]))
    assert comparison.differences["B"].metrics["loss"].verdict == "too few seeds"
    assert "Below 4 runs a side nothing is claimed" in findings_text(comparison)


def test_the_summary_comes_first_and_is_short() -> None:
    text = findings_text(comparison_of(seeds([2.0]), seeds([1.5])))
    first = text.split("\n\n")[1].splitlines()
    assert first[0] == "In short"
    assert 1 <= len(first) - 1 <= 3


def test_one_value_has_no_spread() -> None:
    assert Spread((1.0,)).sd is None
    assert Spread((1.0, 3.0)).sd == pytest.approx(math.sqrt(2))
    assert Spread.of([None, math.nan]) is None


def test_layers_thirds_and_kinds() -> None:
    thinner = [(8, 8), (8, 8), (4, 8), (8, 8), (8, 0), (12, 16)]
    difference = comparison_of([make_run(EVEN)], [make_run(thinner)]).differences["B"]
    assert [delta.sparsity for delta in difference.layers] == pytest.approx(
        [0, 0, 4 / 32, 0, 8 / 32, -12 / 32]
    )
    assert difference.layers[2].k_sparsity == pytest.approx(4 / 16)
    assert difference.layers[4].v_sparsity == pytest.approx(8 / 16)
    assert [delta.kept for delta in difference.layers] == [0, 0, -4, 0, -8, 12]
    assert [delta.title for delta in difference.thirds] == [
        "early layers 0–1",
        "middle layers 2–3",
        "late layers 4–5",
    ]
    assert [delta.sparsity for delta in difference.thirds] == pytest.approx([0, 4 / 64, -4 / 64])
    text = findings_text(comparison_of([make_run(EVEN)], [make_run(thinner)]))
    biggest = text[text.index("three layers that differ most") :].splitlines()[1:4]
    assert [line.split(":")[0] for line in biggest] == ["  • layer 5", "  • layer 4", "  • layer 2"]
    assert "layer 5: B is 37.5 points less sparse (K -25.0, V -50.0)" in biggest[0]


def test_models_of_different_depth_compare_by_relative_depth() -> None:
    deep = make_run([(16, 16), (8, 8), (4, 4), (0, 0)])
    shallow = make_run([(8, 8), (8, 8)])
    comparison = comparison_of([shallow], [deep])
    difference = comparison.differences["B"]
    assert difference.by_depth
    assert [delta.sparsity for delta in difference.layers] == pytest.approx([0.25 - 0.5, 0.875 - 0.5])
    assert [delta.kept for delta in difference.layers] == [None, None]
    assert difference.overlap is None
    assert any("relative depth" in flag for flag in comparison.flags)
    assert [layer.depth for layer in comparison["B"].layers] == pytest.approx([0.125, 0.375, 0.625, 0.875])
    text = findings_text(comparison)
    assert "channels cannot be matched" in text


def test_places_that_cut_layers_count_them_by_their_share() -> None:
    comparison = comparison_of([make_run([(8, 8)] * 2)], [make_run([(16, 16), (8, 8), (0, 0)])])
    # the first half of three layers: all of the first and half of the second, (0 + 0.5 / 2) / 1.5
    assert comparison.differences["B"].layers[0].sparsity == pytest.approx(0.25 / 1.5 - 0.5)


def test_overlap_of_equal_disjoint_and_empty_masks() -> None:
    mask = list(make_masks([(4, 8)]).values())
    inverse = [LayerMask(~m.k_mask, ~m.v_mask, m.k_importance, m.v_importance) for m in mask]
    none = list(make_masks([(0, 0)]).values())
    assert iou(mask, mask) == 1
    assert iou(mask, inverse) == 0
    assert iou(none, none) is None
    assert matched_chance(none, none) is None
    assert contained(mask, none) is None
    both = [LayerMask(m.k_mask, ~m.v_mask, m.k_importance, m.v_importance) for m in mask]
    assert iou(mask, both, "k") == 1
    assert iou(mask, both, "v") == 0
    assert iou(mask, both) == pytest.approx(4 / 20)


def test_random_masks_overlap_as_chance_says() -> None:
    kept = [(40, 200), (10, 100), (250, 5)]
    a, b = (list(make_masks(kept, seed, heads=4, width=64).values()) for seed in (1, 2))
    chance = matched_chance(a, b)
    assert chance is not None
    assert iou(a, b) == pytest.approx(chance, abs=0.03)
    heads = [
        (int(p.sum()), int(q.sum()))
        for one, other in zip(a, b, strict=True)
        for x, y in ((one.k_mask, other.k_mask), (one.v_mask, other.v_mask))
        for p, q in zip(x, y, strict=True)
    ]
    both = sum(p * q / 64 for p, q in heads)
    assert chance == pytest.approx(both / (sum(p + q for p, q in heads) - both))


def test_masks_of_different_size_have_a_highest_iou() -> None:
    large, small = (list(make_masks([(count, count)], 1).values()) for count in (8, 4))
    inside = [
        LayerMask(m.k_mask & n.k_mask, m.v_mask & n.v_mask, m.k_importance, m.v_importance)
        for m, n in zip(large, small, strict=True)
    ]
    assert contained(large, inside) == 1
    assert iou(large, inside) == highest_iou(large, inside)
    assert contained(large, small) == pytest.approx(
        sum(
            int((m.k_mask & n.k_mask).sum() + (m.v_mask & n.v_mask).sum())
            for m, n in zip(large, small, strict=True)
        )
        / 8
    )


def test_overlap_is_given_between_variants_and_between_seeds() -> None:
    comparison = comparison_of(seeds([2.0, 2.1]), seeds([2.0, 2.1], kept=[(8, 8)] * 6))
    overlap = comparison.differences["B"].overlap
    assert overlap is not None
    assert overlap.iou is not None
    assert overlap.baseline_iou is not None
    assert overlap.iou.n == 4
    assert overlap.baseline_iou.n == 1
    assert sorted(overlap.iou.values)[-2:] == [1.0, 1.0]  # equal seeds give equal masks here
    assert len(overlap.layers) == 6
    assert "Between two seeds of one variant it is: A" in findings_text(comparison)


def test_different_evaluation_data_forbid_a_verdict() -> None:
    comparison = comparison_of(seeds([2.0]), seeds([1.5], dataset__evaluation_digest="ff" * 32))
    assert not comparison.comparable_loss
    assert comparison.flags[0].startswith("DIFFERENT EVALUATION DATA")
    text = findings_text(comparison)
    assert text.index("DIFFERENT EVALUATION DATA") < text.index("B against A")
    assert "difference" not in text.split("B against A: what the masks cost")[1].split("\n\n")[0]
    assert "B: dense loss 1.0000, masked loss 1.5000" in text


def test_different_sparsity_is_flagged_and_repeated_at_the_losses() -> None:
    comparison = comparison_of(seeds([2.0]), seeds([3.0], kept=[(4, 4)] * 6))
    assert comparison.flags[0].startswith("DIFFERENT SPARSITY")
    assert "At different sparsity: B removes 75.0 % of the channels, A 50.0 %." in findings_text(comparison)
    one_unit = comparison_of(seeds([2.0]), seeds([3.0], kept=[(8, 8)] * 5 + [(8, 9)]))
    assert not one_unit.flags  # rounding


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mask__method": "HardConcrete"}, "method: A TopK | B HardConcrete"),
        ({"mask__method": "Evil\x1b[31m\nOne"}, "method: A TopK | B Evil One"),
        ({"mask__ablation": "mean"}, "ablation: A zero | B mean"),
        ({"cost__steps": 20}, "steps: A 10 | B 20"),
        ({"config__optimizer": {"_target_": "a.b.SGD", "lr": 0.2}}, "optimizer.lr: A 0.1 | B 0.2"),
        ({"checkpoint__dtype": "bfloat16"}, "dtype: A float32 | B bfloat16"),
    ],
)
def test_different_options_are_flagged(changes: dict[str, Any], words: str) -> None:
    comparison = comparison_of(seeds([2.0]), seeds([2.0], **changes))
    assert [flag for flag in comparison.flags if words in flag]


def test_where_results_are_written_and_the_device_are_no_options() -> None:
    other = {"seed": 0, "output_dir": "x", "device": "cuda", "optimizer": {"_target_": "a.b.SGD", "lr": 0.1}}
    comparison = comparison_of(seeds([2.0]), seeds([2.1], config=other, checkpoint__sha256="bb"))
    assert not comparison.flags


def test_a_directory_of_seeds_is_one_variant_and_tells_what_it_leaves_out(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / f"{seed}", EVEN, seed=seed, loss=2.0 + seed)
    write_run(tmp_path / "again", EVEN, seed=1, loss=9.0, finished="2026-01-02T00:00:00+00:00")
    write_run(tmp_path / "failed", EVEN, seed=2, status="failed", error="RuntimeError: out of memory")
    write_run(tmp_path / ".hidden", EVEN, seed=3)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "result.json").write_text('{"status": "do')
    variant, notes = read_variant("A", tmp_path)
    assert variant.metrics["loss"].values == (2.0, 9.0)  # the later repetition counts
    assert variant.seeds == (0, 1)
    told = " ".join(notes)
    assert "out of memory" in told
    assert "cannot be read" in told
    assert "is left out" in told
    assert "repeats it" in told


@pytest.mark.parametrize(
    ("kept", "changes", "words"),
    [
        ([(4, 4)] * 6, {}, "target_sparsity=0.5 | target_sparsity=0.75"),
        (EVEN, {"mask__method": "HardConcrete"}, "TopK | HardConcrete"),
        (EVEN, {"checkpoint__sha256": "bb"}, "checkpoint="),
        (EVEN, {"dataset__evaluation_digest": "ff"}, "evaluation data"),
    ],
)
def test_runs_that_differ_in_more_than_the_seed_are_not_averaged(
    tmp_path: Path, kept: list[tuple[int, int]], changes: dict[str, Any], words: str
) -> None:
    write_run(tmp_path / "0", EVEN)
    write_run(tmp_path / "1", kept, **changes)
    with pytest.raises(UserError, match="differ in more than the seed") as error:
        read_variant("A", tmp_path)
    assert words in str(error.value)
    assert f"tree={tmp_path}" in str(error.value)


def test_listed_runs_may_be_of_several_trainings(tmp_path: Path) -> None:
    for number in range(4):
        write_run(tmp_path / f"{number}", EVEN, checkpoint__sha256=str(number), loss=2.0 + number)
    pairs = {"A": [tmp_path / "0", tmp_path / "1"], "B": [tmp_path / "2", tmp_path / "3"]}
    comparison = read_comparison(pairs)
    assert comparison["A"].metrics["loss"].values == (2.0, 3.0)
    assert any("between checkpoints and seeds together" in flag for flag in comparison.flags)


@pytest.mark.parametrize(
    ("names", "baseline", "words"),
    [
        (["A"], None, "two or more"),
        (["A", "B"], "C", "none of the variants: A, B"),
        (["A", "missing"], None, "there is no directory"),
        (["A", "empty"], None, "no finished run"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    tmp_path: Path, names: list[str], baseline: str | None, words: str
) -> None:
    for name in ("A", "B"):
        write_run(tmp_path / name, EVEN)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=words) as error:
        read_comparison({name: tmp_path / name for name in names}, baseline)
    assert "\n" not in str(error.value)


class Recorder(Logger):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.told: dict[str, Any] = {}

    def start(self, run: Any) -> None:
        self.told["run"] = run

    def table(self, name: str, columns: Any, rows: Any) -> None:
        self.told["table"] = (name, columns, rows)

    def figures(self, paths: Any) -> None:
        self.told["figures"] = list(paths)


class OneFigure:
    """Stands for a figure."""

    def draw(self, comparison: Comparison, directory: Path, dpi: int) -> list[Path]:
        path = directory / "picture.png"
        path.write_bytes(f"{comparison.baseline} {dpi}".encode())
        return [path]


def test_what_a_comparison_leaves(tmp_path: Path) -> None:
    comparison = comparison_of(seeds([2.0, 2.1]), seeds([2.4, 2.6], kept=[(8, 8)] * 5 + [(16, 0)]))
    recorder = Recorder()
    output = Output(directory=tmp_path / "out", loggers=[recorder], dpi=40)
    written = leave_comparison(comparison, [OneFigure()], output)
    assert [path.name for path in written] == [
        "picture.png",
        "key_findings.txt",
        "variant_comparison.md",
        "comparison.json",
    ]
    assert sorted(path.name for path in output.directory.iterdir()) == sorted(path.name for path in written)
    assert recorder.told["run"].job_type == "compare"
    assert recorder.told["figures"] == [output.directory / "picture.png"]
    _, columns, rows = recorder.told["table"]
    last = dict(zip(columns, rows[-1], strict=True))
    assert (last["layer"], last["A K"], last["B K"]) == (5, 0.5, 0.0)
    assert (last["Δ B K"], last["Δ B V"], last["Δ B kept"]) == (-0.5, 0.5, 0.0)
    content = json.loads((output.directory / "comparison.json").read_text())
    assert content["variants"]["B"]["metrics"]["loss"]["values"] == [2.4, 2.6]
    assert content["differences"]["B"]["metrics"]["loss"]["verdict"] == "too few seeds"
    assert content["differences"]["B"]["overlap"]["chance"]["mean"] > 0
    report = (output.directory / "variant_comparison.md").read_text()
    assert "![picture](picture.png)" in report
    assert "2.5000 ± 0.1414 (n=2)" in report


def test_names_cannot_break_the_report(tmp_path: Path) -> None:
    name = "K=V^T | *<b>\n# x"
    comparison = compare([make_variant("A", seeds([2.0])), make_variant(name, seeds([2.1]))], "A")
    output = Output(directory=tmp_path)
    leave_comparison(comparison, [], output)
    report = (tmp_path / "variant_comparison.md").read_text()
    assert "<b>" not in report.replace("`K=V^T \\| *<b> # x`", "")
    assert "\n# x" not in report
    assert len({line.count(" | ") for line in report.splitlines() if line.startswith("| masked loss")}) == 1
    assert name in json.loads((tmp_path / "comparison.json").read_text())["variants"]
