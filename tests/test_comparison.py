"""Variants held against a baseline: numbers, layers, overlap, flags and findings."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from comparable_runs import judged, make_masks, make_run, write_run
from safetensors.torch import save_file

from mechint.comparison.compare import compare, read_comparison, read_variant
from mechint.comparison.comparison import Comparison
from mechint.comparison.difference import by_sequence
from mechint.comparison.findings import findings_text
from mechint.comparison.job import Output, leave_comparison
from mechint.errors import UserError
from mechint.loggers import Logger
from mechint.masking.masks import LayerMask
from mechint.metrics.overlap import Pairs
from mechint.metrics.spread import Spread
from mechint.results import RunFiles
from mechint.results.sequences import FILENAME

EVEN = [(8, 8)] * 6  # half of the channels of six layers


def comparison_of(baseline: list[RunFiles], variant: list[RunFiles]) -> Comparison:
    """A comparison of runs in memory, B against A."""
    return compare({"A": baseline, "B": variant}, "A")


def pair(*masks: list[LayerMask]) -> Pairs:
    """How two masks overlap."""
    parts = [
        [head for layer in one for kind in (layer.k_mask, layer.v_mask) for head in kind] for one in masks
    ]
    widths = [len(head) for head in parts[0]]
    kept = np.stack([torch.cat(heads).numpy() for heads in parts])
    return Pairs.of(kept, np.repeat(np.arange(len(widths)), widths))


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
    assert entry.error == pytest.approx(0.0604, abs=1e-4)  # of two means of four runs with SD 0.0854
    assert comparison.differences["B"].metrics["loss_degradation_percent"].difference == pytest.approx(50)
    assert comparison.differences["B"].metrics["dense_loss"].verdict == "not tested"
    text = findings_text(comparison)
    assert re.search(
        r"masked loss: B 2\.58\d* ± 0\.085, A 2\.08\d* ± 0\.085 nats/token; difference \+0\.5\d* \[\+0\.\d+, "
        r"\+0\.\d+\], higher",
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
    assert "With fewer than 4 runs on a side no difference is claimed" in findings_text(comparison)


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
    assert [place.claim.difference for place in difference.layers] == pytest.approx(
        [0, 0, 4 / 32, 0, 8 / 32, -12 / 32]
    )
    assert difference.layers[2].sparsity["k"].difference == pytest.approx(4 / 16)
    assert difference.layers[4].sparsity["v"].difference == pytest.approx(8 / 16)
    assert [place.kept for place in difference.layers] == [0, 0, -4, 0, -8, 12]
    assert [place.title for place in difference.thirds] == [
        "early layers 0–1",
        "middle layers 2–3",
        "late layers 4–5",
    ]
    assert [place.claim.difference for place in difference.thirds] == pytest.approx([0, 4 / 64, -4 / 64])
    text = findings_text(comparison_of([make_run(EVEN)], [make_run(thinner)]))
    biggest = [line for line in text.splitlines() if line.startswith("  • layer")]
    assert [line.split(":")[0] for line in biggest] == ["  • layer 5", "  • layer 4", "  • layer 2"]
    assert "layer 5: B is 37.5 points less sparse (K -25.0, V -50.0)" in biggest[0]


def test_models_of_different_depth_compare_by_relative_depth() -> None:
    deep = make_run([(16, 16), (8, 8), (4, 4), (0, 0)])
    shallow = make_run([(8, 8), (8, 8)])
    comparison = comparison_of([shallow], [deep])
    difference = comparison.differences["B"]
    assert difference.by_depth
    assert [place.claim.difference for place in difference.layers] == pytest.approx([0.25 - 0.5, 0.875 - 0.5])
    assert [place.kept for place in difference.layers] == [None, None]
    assert difference.overlap is None
    assert any("relative depth" in flag for flag in comparison.flags)
    assert comparison["B"].depths.tolist() == pytest.approx([0.125, 0.375, 0.625, 0.875])
    text = findings_text(comparison)
    assert "channels cannot be matched" in text


def test_places_that_cut_layers_count_them_by_their_share() -> None:
    comparison = comparison_of([make_run([(8, 8)] * 2)], [make_run([(16, 16), (8, 8), (0, 0)])])
    # the first half of three layers: all of the first and half of the second, (0 + 0.5 / 2) / 1.5
    assert comparison.differences["B"].layers[0].claim.difference == pytest.approx(0.25 / 1.5 - 0.5)


def test_overlap_of_equal_disjoint_and_empty_masks() -> None:
    mask = list(make_masks([(4, 8)]).values())
    inverse = [LayerMask(~m.k_mask, ~m.v_mask, m.k_importance, m.v_importance) for m in mask]
    none = list(make_masks([(0, 0)]).values())
    both = [LayerMask(m.k_mask, ~m.v_mask, m.k_importance, m.v_importance) for m in mask]
    found = pair(mask, inverse, both, mask)
    assert found.iou[0].tolist() == pytest.approx([1, 0, 4 / 20, 1])
    assert np.isnan([pair(none, none).iou[0, 1], pair(none, none).chance[0, 1]]).all()
    assert np.isnan(pair(mask, none).contained[0, 1])


def test_random_masks_overlap_as_chance_says() -> None:
    kept = [(40, 200), (10, 100), (250, 5)]
    a, b = (list(make_masks(kept, seed, heads=4, width=64).values()) for seed in (1, 2))
    found = pair(a, b)
    assert found.iou[0, 1] == pytest.approx(found.chance[0, 1], abs=0.03)
    heads = [
        (int(p.sum()), int(q.sum()))
        for one, other in zip(a, b, strict=True)
        for x, y in ((one.k_mask, other.k_mask), (one.v_mask, other.v_mask))
        for p, q in zip(x, y, strict=True)
    ]
    both = sum(p * q / 64 for p, q in heads)
    assert found.chance[0, 1] == pytest.approx(both / (sum(p + q for p, q in heads) - both))


def test_masks_of_different_size_have_a_highest_iou() -> None:
    large, small = (list(make_masks([(count, count)], 1).values()) for count in (8, 4))
    inside = [
        LayerMask(m.k_mask & n.k_mask, m.v_mask & n.v_mask, m.k_importance, m.v_importance)
        for m, n in zip(large, small, strict=True)
    ]
    found = pair(large, inside)
    assert found.contained[0, 1] == 1
    assert found.iou[0, 1] == found.highest[0, 1] < 1
    common = sum(
        int((m.k_mask & n.k_mask).sum() + (m.v_mask & n.v_mask).sum())
        for m, n in zip(large, small, strict=True)
    )
    assert pair(large, small).contained[0, 1] == pytest.approx(common / 8)


def test_containment_stands_beside_the_overlap_of_masks_of_different_size() -> None:
    text = findings_text(comparison_of(seeds([2.0]), seeds([3.0], kept=[(2, 2)] * 6)))
    assert "highest possible 0.25" in text
    assert "so no IoU above 0.25 is possible" in text
    same = findings_text(comparison_of(seeds([2.0]), seeds([3.0])))
    assert "possible" not in same


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
    assert comparison.flags[0].startswith("Different evaluation data")
    text = findings_text(comparison)
    assert text.index("Different evaluation data") < text.index("B against A")
    assert "difference" not in text.split("B against A: what the masks cost")[1].split("\n\n")[0]
    assert "B: masked loss 1.5000, dense loss 1.0000" in text


def test_different_sparsity_is_flagged_and_repeated_at_the_losses() -> None:
    comparison = comparison_of(seeds([2.0]), seeds([3.0], kept=[(4, 4)] * 6))
    assert comparison.flags[0].startswith("Different sparsity")
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
    read = read_variant("A", tmp_path)
    runs, notes = read.runs, read.notes
    assert [run.loss("masked") for run in runs] == [2.0, 9.0]  # the later repetition counts
    assert [run.result.seed for run in runs] == [0, 1]
    told = " ".join(notes)
    assert "out of memory" in told
    assert "its status is unreadable" in told
    assert "is left out" in told
    assert "repeats it" in told


@pytest.mark.parametrize(
    ("kept", "changes", "words"),
    [
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
    assert comparison["A"].numbers["loss"].tolist() == [2.0, 3.0]
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
        "summary.csv",
        "report.html",
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
    assert [row["loss"] for row in content["variants"]["B"]["numbers"]] == [2.4, 2.6]
    assert content["overlaps"]["B"]["chance"]["mean"] > 0
    table = pd.read_csv(output.directory / "summary.csv")
    loss = table[table["number"] == "loss"].iloc[0]
    assert (loss["difference"], loss["verdict"]) == (pytest.approx(0.45), "too few seeds")
    assert loss["se"] == pytest.approx((0.05**2 + 0.1**2) ** 0.5)
    places = table[(table["number"] == "sparsity") & (table["kind"] == "k")].set_index("place")
    assert places["difference"]["layer 5"] == -0.5
    assert places["se"].notna().all()
    assert [row["difference"] for row in content["differences"]] == pytest.approx(
        table["difference"].tolist()
    )
    report = (output.directory / "variant_comparison.md").read_text()
    assert "![picture](picture.png)" in report
    assert "| masked loss \\[nats/token\\] | 2.050 ± 0.071 | 2.50 ± 0.14 |" in report


@pytest.mark.slow
def test_gates_of_variants_come_first_and_stand_in_every_table(tmp_path: Path) -> None:
    write_run(tmp_path / "a", EVEN, verdict=judged(True, True))
    for seed in (0, 1):
        write_run(tmp_path / "b" / f"seed_{seed}", EVEN, seed=seed)
    write_run(tmp_path / "b", EVEN, verdict=judged(True, False), nested=[{"directory": "0"}])
    comparison = read_comparison({"A": tmp_path / "a", "B": tmp_path / "b"})
    assert comparison["B"].gates == "NO_GO: kl <= 0.1"  # of the whole
    line = "Gates: A GO; B NO_GO: kl <= 0.1."
    assert line in findings_text(comparison).split("\n\n")[1]
    output = Output(directory=tmp_path / "out")
    leave_comparison(comparison, [], output)
    assert (
        "| gates | GO | NO\\_GO: kl &lt;= 0.1 |" in (output.directory / "variant_comparison.md").read_text()
    )
    assert "<td>NO_GO: kl &lt;= 0.1</td>" in (output.directory / "report.html").read_text()
    content = json.loads((output.directory / "comparison.json").read_text())
    assert content["variants"]["B"]["gates"] == "NO_GO: kl <= 0.1"


def test_names_cannot_break_the_report(tmp_path: Path) -> None:
    name = "K=V^T | *<b>\n# x"
    comparison = compare({"A": seeds([2.0]), name: seeds([2.1])}, "A")
    output = Output(directory=tmp_path)
    leave_comparison(comparison, [], output)
    report = (tmp_path / "variant_comparison.md").read_text()
    assert "<b>" not in report.replace("`K=V^T \\| *<b> # x`", "")
    assert "\n# x" not in report
    assert len({line.count(" | ") for line in report.splitlines() if line.startswith("| masked loss")}) == 1
    assert name in json.loads((tmp_path / "comparison.json").read_text())["variants"]


def curve(faithful: dict[int, float], seed: int = 0, **told: Any) -> list[RunFiles]:
    """Runs of one seed: channels of each kind that a layer keeps (of 16) -> faithfulness."""
    return [
        make_run([(kept, kept)] * 4, loss=5 - 4 * value, seed=seed, **told)
        for kept, value in faithful.items()
    ]


def test_units_needed_come_first_and_say_between_which_sparsities() -> None:
    ours = [run for seed in range(4) for run in curve({8: 0.95, 4: 0.92, 2: 0.6 + 0.02 * seed}, seed)]
    theirs = [run for seed in range(4) for run in curve({8: 0.94, 4: 0.5 + 0.02 * seed, 2: 0.3}, seed)]
    comparison = comparison_of(ours, theirs)
    a, b = comparison["A"].needed, comparison["B"].needed
    assert a is not None
    assert b is not None
    assert a.between == (0.125, 0.25)
    assert b.between == (0.25, 0.5)
    # at share 2 ** -x, x from 2 to 3, faithfulness falls from 0.92 to 0.6
    assert a.share.values[0] == pytest.approx(2 ** -(2 + 0.02 / 0.32))
    claim = comparison.differences["B"].metrics["units_needed"]
    assert claim.verdict == "higher"
    first = findings_text(comparison).split("\n\n")[1].splitlines()[1]
    assert first.startswith("  • Units needed for faithfulness 0.9: A 2")
    assert "interpolated between the measured 12.5 and 25 %" in first
    assert [len(variant.runs) for variant in comparison.variants] == [4, 4]
    assert {*comparison["A"].numbers["sparsity"]} == {0.875}, "compared at the highest sparsity of both"
    assert any("the runs at 0.875 are compared" in note for note in comparison.notes)


@pytest.mark.parametrize(
    ("faithful", "bound"), [({8: 0.95, 4: 0.93}, "at most"), ({8: 0.85, 4: 0.5}, "more than")]
)
def test_units_needed_outside_of_what_was_measured_are_bounds(faithful: dict[int, float], bound: str) -> None:
    comparison = comparison_of(curve(faithful), curve({8: 0.95, 4: 0.5}))
    needed = comparison["A"].needed
    assert needed is not None
    assert (needed.bound, needed.between) == (bound, None)
    assert "units_needed" not in comparison.differences["B"].metrics
    assert f"A {bound} " in findings_text(comparison)


def test_nothing_is_said_of_units_needed_where_nothing_tells() -> None:
    assert "Units needed" not in findings_text(comparison_of(seeds([2.0, 2.1]), seeds([2.0, 2.1])))


def write_search(directory: Path, kept: int, seed: int) -> None:
    """What a search for faithfulness 0.9 leaves: its result, and the masks that it tried below."""
    wanted = {"config__target_sparsity": None, "config__target_faithfulness": 0.9, "seed": seed}
    target = {"kind": "faithfulness", "value": 0.9, "achieved": 0.91, "units": 8 * kept, "runs": 2}
    tried = [{"directory": "search_0.5"}]
    write_run(directory, [(kept, kept)] * 4, target=target, nested=tried, loss=1.36, **wanted)
    write_run(directory / "search_0.5", [(8, 8)] * 4, loss=1.1, seed=seed)


def test_of_a_search_the_result_counts_and_not_what_it_tried(tmp_path: Path) -> None:
    for seed in range(4):
        write_search(tmp_path / "a" / str(seed), 2 + seed % 2, seed)
        write_search(tmp_path / "b" / str(seed), 5 + seed % 2, seed)
    comparison = read_comparison({"A": tmp_path / "a", "B": tmp_path / "b"})
    assert [len(variant.runs) for variant in comparison.variants] == [4, 4]
    needed = comparison["B"].needed
    assert needed is not None
    assert needed.share.values == pytest.approx((5 / 16, 6 / 16, 5 / 16, 6 / 16))
    assert comparison.differences["B"].metrics["units_needed"].verdict == "higher"
    first = findings_text(comparison).split("\n\n")[1].splitlines()[1]
    assert re.search(r"Units needed for faithfulness 0\.9: A 15\.6 ± 3\.6 % \(20 of 128;", first)
    assert "on evaluation data 0.910 is reached" in first
    alone = read_comparison({"A": tmp_path / "a" / "0", "B": tmp_path / "b" / "0"})
    assert alone["A"].needed is not None
    assert alone["A"].needed.share.values == (2 / 16,)


def test_variants_in_different_bases_are_flagged_and_their_masks_do_not_overlap() -> None:
    basis = {"keys": "principal", "values": "principal", "where": "before_rope"}
    comparison = comparison_of(seeds([2.0]), seeds([2.0], basis=basis))
    [flag] = [flag for flag in comparison.flags if flag.startswith("Different bases")]
    assert "A channels; B principal, keys before the rotation" in flag
    assert comparison.differences["B"].overlap is None
    assert "directions of different bases" in findings_text(comparison)


def test_directions_of_different_bases_have_no_overlap(tmp_path: Path) -> None:
    for name, scale in (("a", 1.0), ("b", 2.0), ("c", 1.0)):
        write_run(tmp_path / name, EVEN, basis={"keys": "principal", "values": "principal"})
        save_file({"map": scale * torch.eye(2)}, tmp_path / name / "basis.safetensors")
    comparison = read_comparison({name: tmp_path / name for name in ("a", "b", "c")})
    assert comparison.differences["b"].overlap is None
    assert "directions of different bases" in comparison.differences["b"].no_overlap
    assert comparison.differences["c"].overlap is not None, "one basis"


def test_single_runs_have_the_error_of_their_evaluation_data() -> None:
    def run(loss: float) -> list[RunFiles]:
        found = seeds([loss])
        found[0].result.metrics.masked.loss_se = 0.03
        return found

    comparison = comparison_of(run(2.0), run(2.5))
    claim = comparison.differences["B"].metrics["loss"]
    assert claim.error == pytest.approx(0.03 * 2**0.5)
    text = findings_text(comparison)
    assert "difference +0.500 ± 0.042 (standard error of the evaluation data alone), too few runs" in text


def test_twins_among_prompts_are_no_evaluation_data_of_their_own(tmp_path: Path) -> None:
    values = torch.rand(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.double) + 1
    both, found = torch.arange(6).repeat_interleave(2), []
    for name, chosen in (("single", torch.arange(6)), ("twins", both)):
        numbers = {key: values[:, chosen] + n for n, key in enumerate(("loss", "kl", "top1_agreement"))}
        numbers |= {"positions": torch.ones(len(chosen)).double(), "documents": chosen}
        (tmp_path / name).mkdir()
        save_file(numbers, tmp_path / name / FILENAME)
        variant: Any = SimpleNamespace(runs=[SimpleNamespace(directory=tmp_path / name)])
        found.append(by_sequence(variant, "faithfulness"))
    np.testing.assert_allclose(*found)


def test_importance_is_compared_by_ranks() -> None:
    runs = seeds([2.0])
    scaled = seeds([2.0])
    for mask in scaled[0].layer_masks:
        mask.k_importance.mul_(0.1)
        mask.v_importance.mul_(0.1)
    comparison = comparison_of(runs, scaled)
    ranks = [variant.per_layer("rank", "kv")["mean"].tolist() for variant in comparison.variants]
    assert ranks[0] == ranks[1]
