"""What a mask is compared with: random masks, rivals, constants of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import tiny_model

from mechint import analyze, load_run
from mechint.analysis.chance import Controls
from mechint.circuits.gates import NUMBERS
from mechint.circuits.scores import differ, interval_of
from mechint.data import TextFiles
from mechint.data.byte_tokenizer import byte_tokenizer
from mechint.errors import UserError
from mechint.learning import MaskTrainer
from mechint.masking import MaskedModel, MeanAblation, OptimalAblation
from mechint.masking.masks import LayerMask
from mechint.masking.prompt_ablations import MeanPerPositionAblation
from mechint.masking.random_masks import matched_random_masks, only_mask
from mechint.masking.units import make_units
from mechint.methods import Fisher, LearnedBasis, PrincipalBasis, TopK
from mechint.metrics.agreement import Agreement
from mechint.reporting import Visualizer
from mechint.results import Result


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, byte_model_directory: Path) -> dict[str, Any]:
    """Arguments of a small analysis of the tiny model."""
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text("\n\n".join(f"{n * n} bottles and {n**3 % 97} on wall {n**5 % 101}" for n in range(400)))
    dataset = TextFiles(path=str(text), sequence_length=32, calibration_tokens=512, evaluation_tokens=256)
    return {
        "checkpoint": str(byte_model_directory),
        "target_sparsity": 0.5,
        "steps": 3,
        "device": "cpu",
        "dataset": dataset,
        "method": TopK(finishing_trials=0),
        "trainer": MaskTrainer(batch_size=4),
        "visualizer": Visualizer([]),
        "controls": Controls(random_masks=0),
    }


def test_random_masks_of_heads_have_the_counts_of_layers_and_kinds() -> None:
    units = make_units(MaskedModel(tiny_model("llama")), "head", tie_kv=False)
    keep = torch.zeros(units.count, dtype=torch.bool)
    keep[(units.head == 0).nonzero().squeeze(1)] = True
    masks = matched_random_masks(units, keep, 20, torch.Generator().manual_seed(0))
    assert any(not torch.equal(mask, keep) for mask in masks)
    for mask in masks:
        for layer in units.layer.unique():
            for kind in (units.has_key, units.has_value):
                here = (units.layer == layer) & kind
                assert mask[here].sum() == keep[here].sum()
    assert not only_mask(units, keep)
    assert only_mask(units, torch.ones_like(keep))


def test_whole_heads_agree_by_chance_as_heads() -> None:
    def layer(first: bool) -> LayerMask:
        kept = torch.zeros(2, 4, dtype=torch.bool)
        kept[0 if first else 1] = True
        return LayerMask(kept, kept, kept.float(), kept.float())

    found = Agreement.of([[layer(True)] * 3, [layer(True), layer(False), layer(True)]])
    assert found.iou is not None
    assert found.chance is not None
    assert found.chance.mean < found.iou.mean < 1


@pytest.mark.parametrize(
    ("draws", "interval"),
    [([1.0, float("nan")], None), ([float("inf"), 1.0], None), ([2.0, 2.0], [2.0, 2.0])],
)
def test_an_interval_is_numbers_or_nothing(draws: list[float], interval: list[float] | None) -> None:
    assert interval_of(torch.tensor(draws)) == interval
    assert differ(torch.tensor(draws), torch.zeros(2)) == (interval is not None)


@pytest.mark.slow
def test_constants_of_a_consensus_and_of_scores_serve_their_own_mask(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    def empty_loss(name: str, **changes: Any) -> float | None:
        result = analyze(output_dir=tmp_path / name, **{**settings, **changes}).result
        return result.metrics.masked.kl

    for changes in ({"seeds": 2}, {"method": Fisher()}):
        mean, optimal = (
            empty_loss(f"{len(changes)}{next(iter(changes))}{kind.name}", ablation=kind, **changes)
            for kind in (MeanAblation(), OptimalAblation())
        )
        assert mean != optimal


def test_scores_do_not_learn_directions(settings: dict[str, Any], tmp_path: Path) -> None:
    result = analyze(
        output_dir=tmp_path / "run", **{**settings, "method": Fisher(), "basis": LearnedBasis(passes=1)}
    ).result
    assert (result.basis.keys, result.basis.parameters) == ("principal", 0)
    assert any("basis=learned is basis=principal here" in note for note in result.notes)


@pytest.mark.slow
def test_a_rival_is_a_mask_of_the_same_weights_and_basis(settings: dict[str, Any], tmp_path: Path) -> None:
    first = analyze(output_dir=tmp_path / "first", **settings)
    for name, changes in {
        "ladder": {"target_sparsity": [0.3, 0.6]},
        "seeds": {"seeds": 2},
        "search": {"target_sparsity": None, "target_kl": 1.0},
    }.items():
        run = analyze(output_dir=tmp_path / name, rival_of=first.directory, **{**settings, **changes})
        assert run.result.rival is not None, name
        assert "| Rival | of the run in" in (tmp_path / name / "circuit_analysis_report.md").read_text()
    with pytest.raises(UserError, match=r"keeps channels and this run directions of its own basis=principal"):
        analyze(
            output_dir=tmp_path / "basis",
            rival_of=first.directory,
            basis=PrincipalBasis(passes=1),
            **settings,
        )
    model = tiny_model("llama", vocab_size=256)
    model.lm_head.weight.data += 0.1
    other = {**settings, "checkpoint": model, "tokenizer": byte_tokenizer()}
    with pytest.raises(UserError, match="with other weights than this checkpoint"):
        analyze(output_dir=tmp_path / "weights", rival_of=first.directory, **other)


@pytest.mark.slow
def test_a_mask_of_means_by_position_reads_free_text(settings: dict[str, Any], tmp_path: Path) -> None:
    analyze(output_dir=tmp_path / "run", ablation=MeanPerPositionAblation(), **settings)
    with load_run(tmp_path / "run").masked_model() as masked:
        assert masked.loss("12 bottles") > 0


@pytest.mark.parametrize("same", [1, 3])
def test_random_masks_that_are_the_mask_itself_are_told(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same: int
) -> None:
    monkeypatch.setattr(
        "mechint.analysis.chance.matched_random_masks",
        lambda units, keep, count, generator, norms: [keep] * same + [~keep] * (count - same),
    )
    controls = Controls(random_masks=3, match="norms")
    result = analyze(output_dir=tmp_path / "run", **{**settings, "controls": controls}).result
    assert (result.random_masks is None) == (same == 3)
    told = "1 of 3 random masks are" if same == 1 else "there are no random masks to compare with"
    (note,) = [note for note in result.notes if told in note]
    assert note.endswith("of every quarter of them by norm")
    norms = "quarter of these units by the norm of their activations"
    assert (norms in (tmp_path / "run" / "circuit_analysis_report.md").read_text()) == (same == 1)


def test_gates_compare_like_with_like() -> None:
    """On a task both numbers are of the logit difference, on running text of the loss."""
    result = Result.model_validate(
        {
            "faithfulness": 0.1,
            "circuit": {"faithfulness": 0.8},
            "random_masks": {"faithfulness_mean": 0.2, "logit_diff_faithfulness_mean": 0.7},
        }
    )
    for name, wanted in {"faithfulness": 0.8, "random_faithfulness": 0.7}.items():
        found: Any = result
        for part in NUMBERS[name][0].split("."):
            found = getattr(found, part)
        assert found == wanted
