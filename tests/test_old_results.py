"""Masks of other programs become runs: the replaced tool's directories and LeanK's files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mechint.comparison.compare import read_comparison
from mechint.comparison.findings import findings_text
from mechint.comparison.report import comparison_report
from mechint.errors import UserError
from mechint.imports.leank import read_leank, read_leank_run
from mechint.imports.old_results import read_old_run
from mechint.reporting import ImportanceOverview, LayerImportance, Visualizer
from mechint.results import load_masks, save_masks
from mechint.results.result import OldToolLosses

HEADS, WIDTH = 2, 4

REPORT = """# KV Feature-Circuit Analysis Report
## Results
### Initial (Unpruned)
- Loss: 4.0000
- Perplexity: 54.60
### Final (Pruned)
- Loss: 3.0000
### Faithfulness
- Loss degradation: -25.00%
"""


def write_old(directory: Path, kept: dict[str, int], report: str = REPORT) -> Path:
    """A directory as the replaced tool leaves it; kept: layer -> the first so many of its channels."""
    directory.mkdir(parents=True)
    content: dict[str, Any] = {}
    for name, count in kept.items():
        logits = torch.where(torch.arange(HEADS * WIDTH) < count, 1.0, -1.0).view(HEADS, WIDTH)
        mask = (logits > 0).float()
        content[name] = {
            "logits": logits,
            "mask": mask,
            "importance": logits.sigmoid(),
            "sparsity": 1 - float(mask.mean()),
        }
    torch.save(content, directory / "final_masks.pt")
    if report:
        (directory / "circuit_analysis_report.md").write_text(report, encoding="utf-8")
    return directory


def test_an_old_run_has_its_masks_for_k_and_v_in_the_order_of_the_layers(tmp_path: Path) -> None:
    names = {f"transformer.h.{index}.attn": index % 8 for index in (0, 1, 10, 11, 2)}  # sorted as strings
    run = read_old_run(write_old(tmp_path / "old", names))
    assert [layer.index for layer in run.layers] == [0, 1, 2, 10, 11]
    assert list(run.masks) == [f"transformer.h.{index}.attn" for index in (0, 1, 2, 10, 11)]
    for name, count in names.items():
        assert run.masks[name].k_mask.sum() == run.masks[name].v_mask.sum() == count
    kept = sum(names.values())
    assert run.result.channels.kept == 2 * kept
    assert run.result.sparsity.kept == kept  # a unit is a K channel with its V channel
    assert run.result.sparsity.achieved == pytest.approx(1 - kept / (5 * HEADS * WIDTH))


def test_its_losses_are_quoted_with_a_warning_and_are_no_metrics(tmp_path: Path) -> None:
    run = read_old_run(write_old(tmp_path / "old", {"transformer.h.0.attn": 3}))
    assert run.result.old_tool == OldToolLosses(initial_loss=4.0, final_loss=3.0)
    assert all(run.loss(model) is None for model in ("dense", "empty", "masked", "complement"))
    assert run.result.faithfulness is None
    assert run.result.loss_degradation_percent is None
    quoted = run.result.notes[-1]
    assert "-25.00 %" in quoted
    assert "against the empty model" in quoted


@pytest.mark.parametrize("report", ["", "# Something else\n- Loss: many\n", REPORT.replace("4.0000", "?")])
def test_a_report_without_the_losses_is_no_error(tmp_path: Path, report: str) -> None:
    run = read_old_run(write_old(tmp_path / "old", {"transformer.h.0.attn": 3}, report))
    assert not any("degradation" in note for note in run.result.notes)


def test_old_and_new_numbers_never_meet(tmp_path: Path) -> None:
    for name, count in (("a", 8), ("b", 2)):
        write_old(tmp_path / name, {f"transformer.h.{index}.attn": count for index in range(3)})
    comparison = read_comparison({"A": tmp_path / "a", "B": tmp_path / "b"})
    assert comparison["A"].spread("loss") is None
    assert not comparison.differences["B"].metrics
    text = findings_text(comparison)
    assert "Not measured: A, B have masks" in text
    assert text.count("against the empty model") == 2
    assert "BETTER" not in text
    assert "WORSE" not in text
    assert "B is 75.0 points more sparse" in text
    report = comparison_report(comparison, [])
    assert "loss degradation against own dense model" not in report  # neither has that number


@pytest.mark.slow
def test_an_old_run_can_be_redrawn_elsewhere(tmp_path: Path) -> None:
    old = write_old(tmp_path / "old", {"transformer.h.0.attn": 3, "transformer.h.1.attn": 5})
    before = {path.name: path.read_bytes() for path in old.iterdir()}
    target = tmp_path / "redrawn"
    target.mkdir()
    run = dataclasses.replace(read_old_run(old), directory=target)
    drawn = Visualizer([ImportanceOverview(), LayerImportance()], dpi=40).draw(run)
    assert [path.suffix for path in drawn] == [".png", ".png", ".png", ".html", ".md"]
    assert all(path.parent == target and path.stat().st_size > 1000 for path in drawn)
    assert {path.name: path.read_bytes() for path in old.iterdir()} == before


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no final_masks.pt"),
        ({}, "not a mask file"),
        ([1, 2], "not a mask file"),
        ({"transformer.h.0.attn": {"mask": torch.ones(2, 4)}}, "lacks mask and importance"),
        ({"h": {"mask": torch.ones(2, 4), "importance": torch.ones(2, 3)}}, "lacks mask and importance"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path: Path, content: Any, words: str) -> None:
    if content is not None:
        torch.save(content, tmp_path / "final_masks.pt")
    with pytest.raises(UserError, match=words) as error:
        read_old_run(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "kept"), [("shakespeare_l1_0.0", 494), ("shakespeare_l1_0.001", 328)])
def test_real_old_results(shared_data: Path, name: str, kept: int) -> None:
    run = read_old_run(shared_data / "old_results" / name)
    assert (run.result.channels.k.total, run.result.channels.k.kept) == (512, kept)
    assert [layer.index for layer in run.layers] == [0, 1, 2, 3]
    assert run.result.old_tool.initial_loss == 3.1231  # the empty model, whatever the tool calls it


LEANK_MASKS = [np.arange(HEADS * WIDTH).reshape(HEADS, WIDTH) % (layer + 2) == 0 for layer in range(3)]


@pytest.mark.parametrize("kind", ["float32", "uint8", "bool", "int64"])
@pytest.mark.parametrize("form", ["tensor", "list of tensors", "list of arrays", "dictionary of arrays"])
def test_leank_masks_become_k_masks(tmp_path: Path, form: str, kind: str) -> None:
    arrays = [mask.astype(kind) for mask in LEANK_MASKS]
    tensors = [torch.from_numpy(array) for array in arrays]
    content = {
        "tensor": torch.stack(tensors),
        "list of tensors": tensors,
        "list of arrays": arrays,
        "dictionary of arrays": {index: arrays[index] for index in (2, 0, 1)},
    }[form]
    path = tmp_path / "leank.pth"
    torch.save(content, path)
    masks = read_leank(path)
    assert list(masks) == [f"model.layers.{index}.self_attn" for index in range(3)]
    for mask, expected in zip(masks.values(), LEANK_MASKS, strict=True):
        assert (mask.k_mask.numpy() == expected).all()
        assert mask.v_mask.all()
        assert mask.v_mask.shape == mask.k_mask.shape
    run = read_leank_run(path)
    assert run.result.channels.v.kept == run.result.channels.v.total == 3 * HEADS * WIDTH
    save_masks(masks, tmp_path, {})
    assert load_masks(tmp_path / "final_masks.safetensors").keys() == masks.keys()


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("executed"),))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([Evil()], "re-save it"),
        ([np.full((2, 4), 0.5)], "zeros and ones"),
        ([torch.ones(4)], "zeros and ones"),
        ([], "zeros and ones"),
        ("masks", "zeros and ones"),
    ],
)
def test_other_pth_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(UserError, match=words) as error:
        read_leank(tmp_path / "other.pth")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "executed").exists()


def test_leank_masks_compare_with_runs_of_other_programs(tmp_path: Path) -> None:
    torch.save(torch.ones(3, HEADS, WIDTH), tmp_path / "leank.pth")
    old = write_old(tmp_path / "old", {f"model.layers.{index}.self_attn": 4 for index in range(3)})
    comparison = read_comparison({"LeanK": tmp_path / "leank.pth", "Old": old})
    overlap = comparison.differences["Old"].overlap
    assert overlap is not None
    assert overlap.iou is not None
    assert overlap.iou.mean == pytest.approx(0.5)
