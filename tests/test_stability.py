"""Several seeds: what they agree on, and tests of it whose answers are known."""

import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
import pytest
import torch
from architectures import tiny_model
from comparable_runs import make_masks
from scipy import stats
from test_planted import small

from mechint import analyze, compare_variants
from mechint.analysis import Controls, Stability
from mechint.analysis.null import block_matrices, permuted_weights
from mechint.analysis.stability import Selections
from mechint.analysis.trials import Trials, measure_inertness, measure_necessity, subset_counts
from mechint.comparison.study import read_study
from mechint.data import TextFiles
from mechint.errors import UserError
from mechint.learning import MaskTrainer
from mechint.masking import Pools
from mechint.masking.ablation import MeanAblation
from mechint.masking.masks import LayerMask
from mechint.methods import RandomOrder
from mechint.metrics.agreement import Agreement
from mechint.metrics.evaluation import Evaluator, measure
from mechint.reporting import StabilityFigure, Visualizer
from mechint.reporting.certainty import agreement_lines, certainty
from mechint.reporting.context import KINDS, Context
from mechint.reporting.redrawing import redraw_run
from mechint.reporting.stability import unit_values
from mechint.results import RunFiles, load_masks
from mechint.results.identity import config_digest
from mechint.validation import Planted


def seeded() -> torch.Generator:
    """Random numbers that are the same every time."""
    return torch.Generator().manual_seed(0)


def test_the_consensus_keeps_what_most_seeds_keep_and_breaks_ties_by_rank() -> None:
    keep = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 0], [0, 1, 0, 1]]).bool()
    importance = torch.tensor(
        [[0.9, 0.8, 0.1, 0.0], [1.0, 0.2, 0.7, 0.0], [1.0, 0.6, 0.8, 0.0], [0.1, 0.9, 0.0, 0.8]]
    )
    selections = Selections(keep, importance)
    assert selections.frequency.tolist() == [0.75, 0.5, 0.5, 0.25]
    pool = Pools(torch.zeros(4, dtype=torch.long), torch.tensor([0.5], dtype=torch.double))
    # units 1 and 2 are kept twice each; unit 1 has the ranks 1, 2, 2, 0 and unit 2 the ranks 2, 1, 1, 3
    assert pool.select(selections.scores(pool)).tolist() == [True, True, False, False]


def heads(masks: list[LayerMask]) -> list[torch.Tensor]:
    """The kept channels of every layer, kind and KV head."""
    return [head for mask in masks for kind in (mask.k_mask, mask.v_mask) for head in kind]


def iou(a: list[LayerMask], b: list[LayerMask]) -> float:
    """Channels that both keep over channels that either keeps."""
    x, y = torch.cat(heads(a)), torch.cat(heads(b))
    return int((x & y).sum()) / int((x | y).sum())


def test_agreement_is_that_of_all_pairs_beside_chance() -> None:
    masks = [list(make_masks([(3, 5), (8, 2)], seed=seed).values()) for seed in range(4)]
    found = Agreement.of(masks)
    assert found.iou is not None
    assert found.iou.values == pytest.approx([iou(a, b) for a, b in combinations(masks, 2)])
    assert found.chance is not None
    expected = []
    for a, b in combinations(masks, 2):
        counts = [(int(p.sum()), int(q.sum()), len(p)) for p, q in zip(heads(a), heads(b), strict=True)]
        both = sum(p * q / n for p, q, n in counts)
        expected.append(both / (sum(p + q for p, q, _ in counts) - both))
    assert found.chance.values == pytest.approx(expected)
    assert sum(found.histogram) == 64
    assert sum(times * count for times, count in enumerate(found.histogram)) == 4 * 18
    assert sum(found.chance_histogram) == pytest.approx(64)
    assert 0 < found.chance_histogram[4] < 4
    alike = Agreement.of([masks[0]] * 3)
    assert alike.iou is not None
    assert alike.iou.low == 1
    assert alike.histogram == (46, 0, 0, 18)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_weights_are_permuted_inside_their_matrices_and_come_back(name: str) -> None:
    model = tiny_model(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    inside = {id(matrix) for matrix in block_matrices(model)}
    with permuted_weights(model, seed=3) as count:
        changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
        assert changed == {key for key, value in model.named_parameters() if value.ndim == 2} - {
            key for key in before if any(part in key for part in ("embed", "lm_head", "wte", "wpe"))
        }
        assert count == len(changed) == len(inside)
        for key in changed:
            now = model.state_dict()[key]
            assert torch.equal(now.flatten().sort().values, before[key].flatten().sort().values)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.fixture(scope="module")
def planted() -> Planted:
    """A model whose circuit is known."""
    return small("induction")


def trials_of(planted: Planted, keep: torch.Tensor) -> Trials:
    """Trials on its evaluation rows."""
    evaluator = Evaluator(planted.masked, planted.evaluation, planted.ablation, at_once=5)
    return Trials(evaluator, planted.units, keep)


def test_a_trial_measures_what_a_measurement_does(planted: Planted) -> None:
    flips = [torch.tensor(numbers) for numbers in ([], [3], [0, 7, 40])]
    kl = trials_of(planted, planted.truth).kl([flip.long() for flip in flips]).mean(1)
    for flip, value in zip(flips, kl.tolist(), strict=True):
        keep = planted.truth.clone()
        keep[flip.long()] ^= True
        variants = {"masked": planted.units.to_channels(keep)}
        measured = measure(Evaluator(planted.masked, planted.evaluation, at_once=8), variants, None)
        assert value == pytest.approx(measured.metrics["masked"]["kl"], abs=1e-6)


def test_twins_are_no_samples_of_their_own(planted: Planted) -> None:
    trials = trials_of(planted, planted.truth)
    rows = torch.arange(len(planted.evaluation)).repeat_interleave(2)
    twins = replace(planted.evaluation[rows], families=rows)
    twice = replace(trials, evaluator=Evaluator(planted.masked, twins, planted.ablation, at_once=5))
    flips = [torch.tensor([3])]
    torch.testing.assert_close(twice.kl(flips), trials.kl(flips))
    assert len(twice.positions) == len(planted.evaluation)


def test_planted_units_are_needed_and_idle_ones_are_not(planted: Planted) -> None:
    idle = int((~planted.truth & (planted.certificate.effect == 0)).nonzero()[0])
    keep = planted.truth.clone()
    keep[idle] = True
    found = measure_necessity(trials_of(planted, keep), most=1000, generator=seeded())
    assert found.units.tolist() == keep.nonzero().flatten().tolist()
    needed = set(found.units[found.needed].tolist())
    assert needed == set(planted.truth.nonzero().flatten().tolist())
    assert not found.harmful.any()
    expected = stats.ttest_1samp(found.rises.numpy(), 0, axis=1).pvalue
    tested = (found.rises.std(1) > 0).numpy()
    assert found.p.numpy()[tested] == pytest.approx(expected[tested])
    assert found.q.numpy() == pytest.approx(stats.false_discovery_control(found.p.numpy()))
    info = found.info(tokens=1, kept=int(keep.sum()), seconds=0.0)
    assert (info.needed, info.unclear, info.harmful) == (len(needed), 1, 0)
    rise = found.on_units(planted.units.count)["necessity"]
    certified = planted.certificate.necessity[planted.truth]
    assert rise[planted.truth] == pytest.approx(certified, rel=1e-2, abs=1e-5)
    assert rise[~keep].isnan().all()
    few = measure_necessity(trials_of(planted, keep), most=5, generator=seeded())
    assert len(few.units.unique()) == 5
    assert bool(keep[few.units].all())


def test_distractors_are_inert_beside_the_circuit_and_half_of_it_is_not(planted: Planted) -> None:
    counts = subset_counts(planted.truth, [0.1, 0.5])
    assert counts == [2, 12]
    inert = measure_inertness(trials_of(planted, planted.truth), counts, 6, seeded())
    few, many = inert.sizes
    assert few.equivalent is True
    assert few.bound == pytest.approx(0.01 * few.removed.mean)
    assert -few.bound < few.interval[0] <= few.interval[1] < few.bound
    # Two distractors cancel each other: a draw of many that holds one of them is far from inert, and the others do not
    # make up for it.
    assert many.added.max > 1
    assert sum(change > 1e-3 for change in many.added.values) == 1
    assert (many.equivalent, inert.equivalent, inert.verdict) == (False, False, "unclear")
    assert all(size.removed.raises == 1 for size in inert.sizes)
    alone = measure_inertness(trials_of(planted, planted.truth), counts[:1], 6, seeded())
    assert (alone.equivalent, alone.verdict) == (True, "equivalent")
    half = planted.truth.clone()
    half[half.nonzero().flatten()[::2]] = False
    lacking = measure_inertness(trials_of(planted, half), [int((~half).sum())], 1, seeded())
    assert lacking.verdict == "lowers"  # everything is added back
    assert lacking.sizes[0].added.mean == pytest.approx(-lacking.masked_kl, abs=1e-6)


@pytest.mark.parametrize(
    "settings",
    [{"tokens": 0}, {"subset_draws": -1}, {"subset_sizes": [0.0]}, {"subset_sizes": []}, {"budget": 0}],
)
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="stability"):
        Stability(**settings)


def test_for_one_seed_the_keys_about_several_change_nothing() -> None:
    plain: dict[str, Any] = {"seed": 0, "steps": 5}
    one = {**plain, "seeds": 1, "stability": {"tokens": 5}}
    assert config_digest(plain, "x") == config_digest(one, "x")
    assert config_digest(plain, "x") != config_digest({**one, "seeds": 2}, "x")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, byte_model_directory: Path) -> dict[str, Any]:
    """Arguments of a small analysis of the tiny model."""
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text("\n\n".join(f"{n} green bottles hanging on the wall" for n in range(400)))
    return {
        "checkpoint": str(byte_model_directory),
        "target_sparsity": 0.75,
        "steps": 3,
        "dataset": TextFiles(
            path=str(text), sequence_length=16, calibration_tokens=512, evaluation_tokens=256
        ),
        "trainer": MaskTrainer(batch_size=4),
        "visualizer": Visualizer([StabilityFigure()], dpi=40),
        "stability": Stability(subset_draws=3, tokens=64, budget=5),
        "controls": Controls(random_masks=3, permutations=2),
    }


@pytest.fixture(scope="module")
def study(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> RunFiles:
    """A finished run of three seeds."""
    return analyze(output_dir=tmp_path_factory.mktemp("study") / "out", seed=1, seeds=3, **settings)


@pytest.mark.slow
def test_every_seed_is_an_ordinary_run(
    study: RunFiles, settings: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert sorted(path.name for path in study.directory.glob("seed_*")) == ["seed_1", "seed_2", "seed_3"]
    own = analyze(output_dir=tmp_path / "own", seed=2, **settings)
    other = RunFiles.read(study.directory / "seed_2")
    assert own.result.config_digest == other.result.config_digest
    assert own.result.metrics == other.result.metrics
    assert all(
        torch.equal(own.masks[name].k_importance, other.masks[name].k_importance) for name in own.masks
    )
    assert own.result.stability is None
    assert "stability.* has no effect" in caplog.text
    assert "one mask from one seed" in (own.directory / "circuit_analysis_report.md").read_text()
    assert not (own.directory / "stability.png").exists()


def test_the_figure_fills_the_dots_that_the_report_counts(study: RunFiles) -> None:
    context, tested = Context(study), study.result.stability.necessity
    told = [unit_values(context, layer.name, kind)[1] for layer in context.layers for kind in KINDS]
    assert sum(len(clear) for clear in told) == tested.tested
    assert sum(int(clear.sum()) for clear in told) == tested.needed + tested.harmful


def test_a_study_says_how_sure_it_is(study: RunFiles) -> None:
    stability, singles = study.result.stability, sorted(study.directory.glob("seed_*"))
    assert stability.seeds == [1, 2, 3]
    results = [json.loads((path / "result.json").read_text()) for path in singles]
    assert stability.single.kl == [result["metrics"]["masked"]["kl"] for result in results]
    assert stability.consensus.kl == study.result.metrics.masked.kl
    masks = [load_masks(path / "final_masks.safetensors") for path in singles]
    pairs = [iou(list(a.values()), list(b.values())) for a, b in combinations(masks, 2)]
    assert stability.iou.mean == pytest.approx(fmean(pairs))
    assert 0 < stability.iou.chance < 1
    assert stability.necessity.tested == study.result.sparsity.kept == 24
    assert [size.units for size in stability.inertness.sizes] == [1, 5, 12]
    assert stability.null.matrices == 3 * 7
    assert stability.null.loss.dense != study.loss("dense")
    assert len(stability.null.permutations) == 2
    assert not list(study.directory.glob(".permuted*"))
    assert study.result.cost.steps == 9


def test_the_consensus_holds_the_units_most_often_selected(study: RunFiles) -> None:
    assert study.evidence is not None
    parts = [
        (part.frequency, part.necessity, getattr(study.masks[layer], f"{kind}_mask"))
        for (layer, kind), part in study.evidence.items()
    ]
    frequency, necessity, kept = (
        torch.cat([part.flatten() for part in column]) for column in zip(*parts, strict=True)
    )
    assert int(kept.sum()) == 24
    assert frequency[kept].min() >= frequency[~kept].max()
    assert torch.equal(necessity.isfinite(), kept)
    table = pd.read_csv(study.directory / "necessity.csv")
    assert len(table) == int(kept.sum())
    assert sorted(table["rise"]) == pytest.approx(sorted(necessity[kept].tolist()), abs=1e-6)
    tested = study.result.stability.necessity
    assert [int((table["verdict"] == name).sum()) for name in ("needed", "unclear", "harmful")] == [
        tested.needed,
        tested.unclear,
        tested.harmful,
    ]
    assert tested.sequences == 16
    quantile = stats.t.ppf(0.975, 15)
    assert (table["high"] - table["rise"]).to_numpy() == pytest.approx(quantile * table["error"].to_numpy())
    assert table["q"].to_numpy() == pytest.approx(stats.false_discovery_control(table["p"].to_numpy()))
    singles = [load_masks(path / "final_masks.pt") for path in study.directory.glob("seed_*")]
    counted = torch.stack(
        [
            torch.cat([part.flatten() for m in one.values() for part in (m.k_mask, m.v_mask)])
            for one in singles
        ]
    )
    assert torch.equal(counted.float().mean(0), frequency)


def test_the_report_says_it_in_words(study: RunFiles, tmp_path: Path) -> None:
    report = (study.directory / "circuit_analysis_report.md").read_text()
    assert "## How sure" in report
    assert "| Seeds | 1–3;" in report
    assert "(stability.png)" in report
    assert all(
        sentence.split(":")[0] in report.replace("&#39;", "'")
        for sentence in certainty(study.result.stability)
    )
    assert len(agreement_lines(study.result)) == 2
    again = redraw_run(study.directory, Visualizer([StabilityFigure()], dpi=40), tmp_path / "again")
    assert [path.name for path in again] == ["stability.png", "report.html", "circuit_analysis_report.md"]
    assert "| `seed_2` | 3 |" in report
    assert "| permuted models |" in report
    assert "3 of 3 runs took fewer than 50 steps" in report
    assert again[0].read_bytes() == (study.directory / "stability.png").read_bytes()
    assert again[2].read_text() == report


@pytest.mark.slow
def test_a_study_goes_on_where_it_was_stopped(
    study: RunFiles, settings: dict[str, Any], tmp_path: Path
) -> None:
    parent, single = study.directory / "result.json", study.directory / "seed_1" / "result.json"
    before = single.stat().st_mtime_ns
    result = json.loads(parent.read_text())
    parent.write_text(json.dumps({**result, "status": "failed", "stability": None}))
    again = analyze(output_dir=study.directory, seed=1, seeds=3, **settings)
    assert single.stat().st_mtime_ns == before
    without_times = [
        {key: value for key, value in one["stability"].items() if key in ("iou", "single", "consensus")}
        for one in (again.result.as_json(), result)
    ]
    assert without_times[0] == without_times[1]


def test_comparisons_count_the_seeds_and_not_their_consensus(study: RunFiles, tmp_path: Path) -> None:
    tree = read_study(study.directory)
    assert tree.points["seeds"].tolist() == ["1 2 3"]
    assert tree.points["iou"].tolist() == pytest.approx([study.result.stability.iou.mean])
    assert "consensus" in tree.notes[0]
    compared = compare_variants(
        {"three": study.directory, "one": study.directory / "seed_1"}, tmp_path, figures=[], dpi=40
    )
    assert compared["three"].numbers["seed"].tolist() == [1, 2, 3]


@pytest.mark.slow
def test_tests_can_be_switched_off_and_other_units_work(settings: dict[str, Any], tmp_path: Path) -> None:
    off = Stability(necessity=False, subset_draws=0, null_control=False)
    other = {"stability": off, "method": RandomOrder(unit="head"), "ablation": MeanAblation()}
    run = analyze(output_dir=tmp_path, seeds=2, **{**settings, **other})
    stability = run.result.stability
    assert [stability.necessity, stability.inertness, stability.null] == [None, None, None]
    assert run.result.sparsity.kept == 3
    assert len(certainty(stability)) == 2
    assert (tmp_path / "stability.png").exists()
