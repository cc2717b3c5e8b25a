"""The benchmark of mask methods: equal passes, resumable, one line for what fails."""

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from hydra import initialize_config_dir
from hydra.errors import HydraException
from hydra_application import Experiment, experiment
from omegaconf import OmegaConf
from PIL import Image
from test_configs import composed

from mechint import config as configuration
from mechint.benchmark.quality.cells import Cell, Entry, entries, in_bases, kind_of, spend
from mechint.benchmark.quality.figure import draw_quality
from mechint.benchmark.quality.quality import QualityBenchmark
from mechint.benchmark.quality.summary import summarise
from mechint.benchmark.quality.table import as_markdown
from mechint.errors import UserError
from mechint.learning.recipe import Recipe
from mechint.masking.masks import LayerMask
from mechint.methods import (
    ChannelBasis,
    EdgePopup,
    Fisher,
    IntegratedGradients,
    IterativeFisher,
    LearnedBasis,
    TopK,
)
from mechint.methods.bases import BasisMethod
from mechint.methods.method import MaskMethod
from mechint.results.mask_files import save_masks

SMALL = [
    "dataset.calibration_tokens=1024",
    "dataset.evaluation_tokens=512",
    "dataset.sequence_length=32",
    "trainer.batch_size=4",
]


@pytest.fixture
def benchmark(tmp_path: Path) -> Iterator[Experiment]:
    """Runs experiments/benchmark.py below tmp_path."""
    with experiment(tmp_path, "benchmark.py") as run:
        yield run


def test_what_is_not_known_is_one_line(benchmark: Experiment) -> None:
    done = benchmark("output_dir=out", "what=size", small=False)
    assert done.code == 2
    assert "size" in done.err
    assert len(done.err.strip().splitlines()) == 1


@pytest.mark.slow
def test_it_runs_goes_on_and_counts_passes(
    benchmark: Experiment, byte_model_directory: Path, tmp_path: Path
) -> None:
    arguments = [
        f"what.models=[{{tiny: '{byte_model_directory}'}}]",
        'what.methods=[topk,{price: "annealed_sigmoid mask.multiplier=0.1"},iterative_fisher,integrated_gradients]',
        "what.sparsities=[0.9]",
        "what.passes=30",
        "what.seeds=[0,1]",
        "output_dir=out",
        f"what.overrides={json.dumps(SMALL)}",
    ]
    done = benchmark(*arguments, small=False)
    assert done.code == 0, done.err
    record = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert record["status"] == "done"
    assert len(record["cells"]) == 4 * 2
    for cell in record["cells"]:
        assert cell["kept"] == 10
        assert 0 < cell["passes"] <= 30
        run = json.loads((tmp_path / "out" / cell["directory"] / "result.json").read_text())
        assert run["mask"]["ablation"] == "zero"
        assert run["metrics"]["masked"]["kl"] == cell["kl"]
    by_method = {cell["method"]: cell for cell in record["cells"]}
    assert by_method["price"]["passes"] > 29  # a share that is reserved for finishing may not come out even
    assert by_method["price"]["binarization_gap"] is not None
    assert by_method["topk"]["binarization_gap"] == 0
    assert by_method["iterative_fisher"]["binarization_gap"] is None
    assert by_method["integrated_gradients"]["passes"] > 29  # 24 of 32 rows on each of 5 points of the way
    with (tmp_path / "out" / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    assert {row["seeds"] for row in rows} == {"2"}
    assert (tmp_path / "out" / "kl_by_sparsity.png").stat().st_size > 10_000
    assert "price" in done.out

    stopped = tmp_path / "out" / by_method["price"]["directory"] / "result.json"
    stopped.write_text(json.dumps(json.loads(stopped.read_text()) | {"status": "running"}))
    untouched = tmp_path / "out" / by_method["topk"]["directory"] / "result.json"
    before = untouched.stat().st_mtime_ns
    again = benchmark(*arguments, small=False)
    assert again.code == 0, again.err
    repeated = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert untouched.stat().st_mtime_ns == before
    assert [cell["kl"] for cell in repeated["cells"]] == [cell["kl"] for cell in record["cells"]]


def small(**changes: Any) -> QualityBenchmark:
    """A benchmark of seconds."""
    settings: dict[str, Any] = {
        "models": ["bundled:baseline"],
        "methods": ["topk", "random"],
        "reference": "topk",
        "sparsities": [0.5],
        "seeds": [0],
        "passes": 4,
        "finishing_share": 0.25,
        "overrides": SMALL,
        "compose": configuration.compose_analysis,
    }
    return QualityBenchmark(**settings | changes)


@pytest.fixture
def composing() -> Iterator[None]:
    """As inside a Hydra job."""
    configuration.register()
    with initialize_config_dir(config_dir=str(ROOT / "conf"), version_base=configuration.VERSION_BASE):
        yield


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": ["bundled:baseline", "nowhere.pt"]}, "models: nowhere.pt: .*nowhere.pt"),
        ({"methods": ["topk", "magic"]}, "magic"),
        ({"methods": ["topk", "fisher mask.untt=head"]}, "untt"),
        ({"methods": ["fisher"]}, "reference=topk"),
        ({"methods": ["topk", "topk"]}, "nothing twice"),
        ({"sparsities": []}, "sparsities"),
    ],
)
@pytest.mark.usefixtures("composing")
def test_what_is_wrong_is_said_before_anything_runs(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises((UserError, HydraException), match=message):
        small(**changes).run(tmp_path, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.usefixtures("composing")
def test_a_model_that_cannot_be_read_is_left_out_and_named(
    byte_model_directory: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.pt"
    torch.save({"model": {"lm_head.weight": torch.zeros(3, 3)}}, broken)
    models = [{"broken": str(broken)}, {"tiny": str(byte_model_directory)}]
    record = small(models=models).run(tmp_path / "out", {})
    assert [failed["model"] for failed in record["failed"]] == ["broken"]
    assert {cell["model"] for cell in record["cells"]} == {"tiny"}
    assert "left out" in (tmp_path / "out" / "table.md").read_text()


@pytest.mark.slow
def test_the_benchmarks_file_composes_and_every_method_in_it_exists() -> None:
    config = composed("benchmark", ["what=quality"])
    assert config.hydra.run.dir.startswith("outputs/benchmarks/quality/2")
    methods = entries(OmegaConf.to_object(config.what.methods), "methods")
    assert config.what.reference in [method.label for method in methods]
    available = {path.stem for path in (ROOT / "conf" / "mask").glob("*.yaml")}
    assert {method.option for method in methods} == available
    for method in methods:
        if method.overrides:  # the options themselves are composed elsewhere
            composed("analyze", [f"mask={method.option}", *method.overrides])


@pytest.mark.usefixtures("composing")
@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_an_ablation_can_be_chosen(ablation: str) -> None:
    chosen = [] if ablation == "zero" else [f"ablation={ablation}"]
    [plan] = (
        small(models=["bundled:llama"], methods=["fisher"], reference="fisher", overrides=chosen)
        ._plans()
        .values()
    )
    analysis, _ = configuration.compose_analysis(plan)
    assert analysis.recipe.ablation.name == ablation


def test_entries_are_options_with_overrides_and_labels() -> None:
    assert Entry.of("topk mask.unit=head", "methods") == Entry(
        "topk mask.unit=head", "topk", ("mask.unit=head",)
    )
    assert Entry.of({"short": "topk 'dataset.path=a b'"}, "methods") == Entry(
        "short", "topk", ("dataset.path=a b",)
    )
    for wrong in ("", "topk unit", 3, {"a": "b", "c": "d"}, "'"):
        with pytest.raises(UserError, match="methods"):
            Entry.of(wrong, "methods")
    models = entries(
        ["bundled:llama", "path/to/model.pt dataset=text", {"mine": "path/to/model.pt"}], "models"
    )
    assert [model.label for model in models] == ["bundled:llama", "model.pt", "mine"]
    cell = Cell(Entry.of("bundled:llama", "models"), Entry.of("topk mask.unit=head", "methods"), 0.9, 3)
    assert cell.directory == Path("runs/llama/topk_mask.unit=head/0.9/3")


def test_methods_run_in_every_basis_but_one_of_their_own_once() -> None:
    methods = entries(["topk", "energy", {"energy of its own": "energy basis=principal"}], "methods")
    assert [entry.label for entry in in_bases(methods, ["channels"])] == ["topk", "energy of its own"]
    found = in_bases(methods, ["channels", "learned"])
    labels = ["topk", "energy of its own", "topk in learned", "energy in learned"]
    assert [entry.label for entry in found] == labels
    assert found[1].overrides == ("basis=principal",)
    assert found[2].overrides == ("basis=learned",)


def test_every_method_gets_the_same_passes() -> None:
    def spent(method: MaskMethod, basis: BasisMethod | None = None) -> list[str]:
        recipe = Recipe(method=method, basis=basis or ChannelBasis())
        first, share, *rest = spend(recipe, 100, 8, 0.25)
        assert (first, share) == ("trainer.passes=100", "trainer.finishing_share=0.25")
        return rest

    assert spent(EdgePopup()) == ["steps=100"]
    assert spent(TopK(finishing_trials=3)) == ["steps=75"]
    assert spent(TopK(finishing_trials=0)) == ["steps=100"]
    assert spent(TopK(finishing_trials=3), LearnedBasis(passes=4)) == ["steps=71"]
    assert spent(IterativeFisher(stages=30)) == ["mask.sequences_per_stage=26"]
    assert spent(IterativeFisher(stages=30, finishing_trials=3)) == ["mask.sequences_per_stage=20"]
    assert spent(Fisher()) == []
    assert IntegratedGradients(path_steps=7).passes_per_row == 7
    kinds = [kind_of(method, False) for method in (EdgePopup(), IterativeFisher(), Fisher())]
    assert kinds == ["published learner", "iterative scorer", "one-shot scorer"]
    assert kind_of(Fisher(), True) == "default"
    assert kind_of(Fisher(), False, True) == "variant of the default"


KLS = {  # per model and method: a KL for two seeds
    ("a", "topk"): (0.1, 0.3),
    ("a", "leank"): (0.4, 0.4),
    ("a", "edge_popup"): (0.8, 0.8),
    ("a", "fisher"): (0.6, 1.0),
    ("b", "topk"): (0.5, 0.5),
    ("b", "leank"): (2.0, 2.0),
    ("b", "edge_popup"): (0.5, 0.5),
    ("b", "fisher"): (1.0, 1.0),
}
KIND = {
    "topk": "default",
    "leank": "published learner",
    "edge_popup": "published learner",
    "fisher": "one-shot scorer",
}


@pytest.fixture
def record(tmp_path: Path) -> dict[str, Any]:
    """A benchmark's record with masks on disk: seed 0 keeps channels 0 to 3, seed 1 channels 2 to 5, of 8."""
    cells = []
    for (model, method), kls in KLS.items():
        for seed, kl in enumerate(kls):
            directory = f"{model}-{method}-{seed}"
            keep = torch.zeros(1, 8, dtype=torch.bool)
            keep[0, 2 * seed : 2 * seed + 4] = True
            score = keep.float()
            save_masks({"h.0": LayerMask(keep, keep.clone(), score, score.clone())}, tmp_path / directory, {})
            cells.append(
                {
                    "model": model, "method": method, "kind": KIND[method], "sparsity": 0.5, "seed": seed,
                    "directory": directory, "kl": kl, "loss": 2 + kl, "dense_loss": 2.0, "empty_kl": 3.0,
                    "kept": 8, "total": 16, "passes": 30.0, "seconds": 1.0,
                    "binarization_gap": None if method == "fisher" else 0.0,
                }
            )  # fmt: skip
    config = {"passes": 30, "seeds": [0, 1], "reference": "topk"}
    return {
        "started": "2026-01-02T03:04",
        "machine": "an old computer",
        **config,
        "cells": cells,
        "failed": [{"model": "c", "method": None, "reason": "no such file"}],
        "summary": summarise(cells, tmp_path, "topk"),
    }


def test_ratios_are_geometric_means_over_models(record: dict[str, Any]) -> None:
    (ratios,) = record["summary"]["ratios"]
    methods = {name: entry["ratio"] for name, entry in ratios["methods"].items()}
    assert methods == pytest.approx(
        {"topk": 1, "leank": math.sqrt(2 * 4), "edge_popup": math.sqrt(4 * 1), "fisher": math.sqrt(4 * 2)}
    )
    learner = ratios["best"]["published learner"]
    assert learner["method"] == "edge_popup"
    assert learner["ratio"] == pytest.approx(1 / 2)
    assert learner["ratio_per_model"] == pytest.approx(math.sqrt(0.2 / 0.4 * 1))
    assert ratios["best"]["one-shot scorer"]["ratio"] == pytest.approx(1 / math.sqrt(8))
    assert "iterative scorer" not in ratios["best"]
    point = record["summary"]["points"][0]
    assert point["kl"] == pytest.approx({"mean": 0.2, "low": 0.1, "high": 0.3})
    assert point["iou"] == pytest.approx(2 / 6)
    assert point["iou_chance"] == pytest.approx(2 / 6)  # 4 of 8 twice: 2 expected in common, 6 in either


def test_the_table_and_the_figure_say_it(record: dict[str, Any], tmp_path: Path) -> None:
    words = as_markdown(record)
    assert "| best published learner | 0.50 (edge\\_popup) |" in words
    assert "0.2000 (0.1000 to 0.3000)" in words
    assert "an old computer" in words
    assert "left out: `c`: no such file" in words
    assert words.index("| 50 % | topk") < words.index("| 50 % | leank") < words.index("| 50 % | fisher")
    with Image.open(draw_quality(record, tmp_path)) as picture:
        assert picture.width > 900
