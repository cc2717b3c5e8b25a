"""experiments/evaluate.py: a finished run's mask on other data."""

import json
from pathlib import Path

import pytest
from hydra_application import SMALL, experiment


@pytest.mark.slow
def test_a_saved_mask_is_measured_again_and_on_other_text(
    byte_model_directory: Path,
    tmp_path: Path,
) -> None:
    with experiment(tmp_path) as analyze:
        assert (
            analyze(f"checkpoint={byte_model_directory}", "target_sparsity=0.5", "output_dir=run").code == 0
        )
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    recorded = json.loads((tmp_path / "run" / "result.json").read_text())
    with experiment(tmp_path, "evaluate.py") as evaluate:
        again = evaluate("run=run", "output_dir=again", small=False)
        assert again.code == 0, again.err
        found = json.loads((tmp_path / "again" / "evaluation.json").read_text())
        for model in ("dense", "empty", "masked", "complement"):
            for key in ("loss", "kl"):
                assert found["metrics"][model][key] == pytest.approx(
                    recorded["metrics"][model][key], abs=1e-5
                )
        assert f"{recorded['metrics']['masked']['loss']:.4f}" in again.out
        lines = again.out.splitlines()
        assert [line.split()[0] for line in lines[2:7]] == [
            *("dense", "empty", "masked", "complement", "faithfulness")
        ]

        (tmp_path / "book.txt").write_text(
            "".join(f"The {number}th of so many words. " for number in range(999))
        )
        settings = [word for word in SMALL if word.startswith("dataset.") and "calibration" not in word]
        other = evaluate("run=run", "dataset=text", "dataset.path=book.txt", *settings, small=False)
        assert other.code == 0, other.err
        assert "text-book.txt" in other.out
        assert again.out.splitlines()[2:] != other.out.splitlines()[2:]
        assert evaluate("run=book.txt", small=False).code == 2
    assert before == {path: path.read_bytes() for path in before}
    assert {path.name for path in tmp_path.iterdir()} == {"run", "again", "book.txt"}
