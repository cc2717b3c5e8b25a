"""Planted models: their truth is certain, their distractors mislead, and the validation job measures what it claims."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from conftest import ROOT
from test_configs import composed, options
from tiers import rest_slow
from torch import Tensor

from mechint import config as configuration
from mechint.errors import UserError
from mechint.learning import MaskTrainer
from mechint.learning.recipe import Recipe
from mechint.masking import MaskedModel
from mechint.masking.ablation import ZERO, Ablation, MeanAblation
from mechint.masking.prompt_ablations import CounterfactualAblation, MeanPerPositionAblation
from mechint.methods import RandomOrder, TopK
from mechint.methods.method import MaskMethod, ScoringMethod
from mechint.metrics import Evaluator
from mechint.validation import Grouped, Induction, Planted, Rope, plant
from mechint.validation.blueprint import Blueprint, K
from mechint.validation.induction import CIRCUIT_HEAD
from mechint.validation.validation import Validation
from mechint.validation.variants import rotate_values

SMALL: dict[str, Any] = {
    "num_heads": 4,
    "num_kv_heads": 4,
    "head_dim": 12,
    "num_tokens": 6,
    "distinct": 4,
    "calibration_rows": 48,
    "evaluation_rows": 32,
}
# What is planted in a small model: previous-token keys, induction keys, two times values, the constant value.
SIZES = {
    "induction": 5 + 6 + 2 * 6 + 1,
    "grouped": 5 + 6 + 2 * 6 + 1,
    "rope": 2 + 3 + 2 * 6 + 1,
    "graded": 5 + 6 + 2 * 6 + 1,
    "rotated": 5 + 6 + 2 * 12 + 1,
}


# Of these, keys that only tell positions apart.
POSITIONS = {name: 2 if name == "rope" else 5 for name in SIZES}


def small(name: str, seed: int = 0, **settings: Any) -> Planted:
    """A small planted model."""
    grouped = {"num_kv_heads": 2} if name == "grouped" else {}
    return plant(name, seed, **SMALL | grouped | settings)


def draw(model: Induction, seed: int = 0) -> Blueprint:
    """Its weights, without any certificate."""
    return model.draw(torch.Generator().manual_seed(seed), ZERO)


def logits(model: Induction, blueprint: Blueprint) -> Tensor:
    """What the model of a blueprint says to some of its rows."""
    rows = model.rows(16, torch.Generator().manual_seed(1))
    return model.build(blueprint)(rows[:, :-1]).logits.detach()


@pytest.fixture(scope="module")
def base() -> Planted:
    """A small base model."""
    return small("induction")


@pytest.mark.parametrize(
    "ablation",
    [
        ZERO,
        pytest.param(MeanAblation(), marks=pytest.mark.slow),
        pytest.param(MeanPerPositionAblation(), marks=pytest.mark.slow),
        pytest.param(CounterfactualAblation(), marks=pytest.mark.slow),
    ],
    ids=lambda ablation: ablation.name,
)
@pytest.mark.parametrize("name", rest_slow(SIZES, ["induction", "rope"]))
def test_planted_units_matter_and_no_others(name: str, ablation: Ablation) -> None:
    planted = small(name, seed=1, ablation=ablation)
    # The constant value is its own mean, and positions are the same on every row.
    inert = (ablation.name != "zero") + ablation.keeps_positions * POSITIONS[name]
    assert planted.size == int(planted.truth.sum()) == SIZES[name] - inert
    noise = 1e-3 if name == "graded" else 1e-6
    assert planted.kl(planted.truth) < noise
    everything = torch.ones_like(planted.truth)
    assert planted.kl(everything) == pytest.approx(0, abs=1e-7)
    assert planted.kl(~everything) > 1
    generator = torch.Generator().manual_seed(2)
    true = planted.truth.nonzero().flatten()
    for unit in true[torch.randperm(len(true), generator=generator)[:5]]:
        keep = planted.truth.clone()
        keep[unit] = False
        assert planted.kl(keep) > 2e-3, planted.labels[unit]
    for _ in range(3):  # any part of the other units may go, as long as the cancelling pair goes together
        pair = torch.tensor(["cancelling" in label for label in planted.labels])
        some = torch.rand(len(planted.truth), generator=generator) < 0.5
        assert planted.kl(planted.truth | (some & ~pair)) < noise


@pytest.mark.slow
@pytest.mark.parametrize(
    "ablation", [ZERO, MeanAblation(), CounterfactualAblation()], ids=lambda ablation: ablation.name
)
def test_the_default_method_finds_the_truth_of_each_ablation(ablation: Ablation, tmp_path: Path) -> None:
    model = Induction(**SMALL | {"calibration_rows": 512})
    job = Validation(
        models={"induction": model},
        make_recipe=lambda: Recipe(method=TopK(), steps=250, ablation=ablation),
        trainer=MaskTrainer(batch_size=16, learning_rate_decay=0.1),  # as in conf
        seed=0,
        seeds=1,
    )
    (found,) = job.run(tmp_path, {})["models"]["induction"]["seeds"]
    truth = model.plant(0, ablation).truth
    assert found["planted"] == int(truth.sum())
    assert (found["exact"], found["precision"], found["recall"]) == (True, 1, 1)
    assert found["kl"] < 1e-5
    others = [model.plant(0, other).truth for other in (ZERO, MeanAblation(), CounterfactualAblation())]
    assert len({int(other.sum()) for other in others}) == 3  # each ablation has a truth of its own


def test_the_base_has_58_true_channels_of_1024_and_57_under_mean_ablation() -> None:
    for ablation, count in ((ZERO, 58), (MeanAblation(), 57)):
        planted = Induction().draw(torch.Generator().manual_seed(0), ablation).planted
        assert planted.numel() == 1024
        assert int(planted.sum()) == count


def test_each_of_a_cancelling_pair_looks_vital(base: Planted) -> None:
    pair = torch.tensor(["cancelling" in label for label in base.labels])
    effect = base.certificate.effect
    assert int(pair.sum()) == 2
    assert effect[pair].min() > effect[base.truth].median()
    assert base.kl(~pair) < 1e-6


def test_grouped_queries_share_a_mask() -> None:
    planted = small("grouped")
    layers = planted.masked.space.layers
    assert [(layer.num_query_heads, layer.num_kv_heads) for layer in layers] == [(4, 2)] * 2
    opposed = next(i for i, label in enumerate(planted.labels) if "readers cancel" in label)
    assert planted.certificate.effect[opposed] < 1e-6
    with pytest.raises(UserError, match="num_kv_heads=4 must be below"):
        draw(Grouped(**SMALL))


def test_rope_pairs_are_the_units() -> None:
    planted = small("rope")
    assert planted.unit == "rope_pair"
    assert planted.units.count == planted.masked.space.num_channels * 3 // 4
    pairs = [
        label for label, true in zip(planted.labels, planted.truth, strict=True) if true and " K " in label
    ]
    assert len(pairs) == 5
    assert any("channel 0+6: previous-token key, cosine of pair 0" in label for label in pairs)


def test_noise_has_graded_effects() -> None:
    planted = small("graded")
    noise = torch.tensor(["weak noise" in label for label in planted.labels])
    effect = planted.certificate.effect
    assert 0 < effect[noise].max() < effect[planted.truth].min() / 3
    strong = effect[noise][effect[noise] > 1e-7]
    assert strong.max() > 30 * strong.min()


def test_places_and_value_basis_do_not_change_the_function() -> None:
    class Unmoved(Induction):
        def shuffle(self, blueprint: Blueprint, generator: torch.Generator) -> None:
            pass

    model = Unmoved(**SMALL)
    blueprint = draw(model)
    before = logits(model, blueprint)
    marked = blueprint.planted.clone()
    generator = torch.Generator().manual_seed(3)
    blueprint.shuffle(generator, keys=True)
    torch.testing.assert_close(logits(model, blueprint), before, rtol=0, atol=1e-4)
    assert blueprint.planted.sum() == marked.sum()
    assert not torch.equal(blueprint.planted, marked)

    blueprint = draw(model)
    value = blueprint.value[0, CIRCUIT_HEAD].clone()
    rotate_values(blueprint, generator)
    assert (blueprint.value[0, CIRCUIT_HEAD] - value).abs().max() > 0.1
    torch.testing.assert_close(logits(model, blueprint), before, rtol=0, atol=1e-4)


def test_permuted_weights_have_no_truth() -> None:
    planted = small("permuted")
    assert not planted.truth.any()
    assert planted.size == SIZES["induction"]
    assert planted.certificate.accuracy < 0.7
    found = planted.recovery(planted.certificate.effect > planted.certificate.effect.median())
    assert (found.precision, found.recall, found.exact) == (None, None, None)


def test_eager_and_sdpa_attention_agree() -> None:
    for cls in (Induction, Rope):
        model = cls(**SMALL)
        built = model.build(draw(model))
        tokens = model.rows(3, torch.Generator().manual_seed(0))[:, :-1]
        sdpa = built(tokens).logits
        built.set_attn_implementation("eager")
        torch.testing.assert_close(built(tokens).logits, sdpa, rtol=0, atol=1e-4)
        assert MaskedModel(built).implementation == "eager"


class Overclaimed(Induction):
    """Says that a key without a query is planted."""

    def shuffle(self, blueprint: Blueprint, generator: torch.Generator) -> None:
        blueprint.planted[0, K, CIRCUIT_HEAD, -1] = True


class Understated(Induction):
    """Hides that an induction key matters."""

    def shuffle(self, blueprint: Blueprint, generator: torch.Generator) -> None:
        blueprint.planted[1, K, CIRCUIT_HEAD, 0] = False


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: Overclaimed(**SMALL).plant(0), "is inert"),
        (lambda: Understated(**SMALL).plant(0), "the planted units alone are at KL"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                (lambda: small("rope", position_sharpness=20.0), "pair .* is inert"),
                (lambda: small("graded", weakness=0.3), "could not be certified"),
                (lambda: small("induction", sharpness=0.1), "right at only"),
            )
        ),
        (lambda: small("induction", head_dim=8), "head_dim >= 9"),
        (lambda: small("induction", num_kv_heads=3), "multiple of"),
        (lambda: small("graded", noise_heads=3), "from 1 to 2"),
        (lambda: plant("abduction"), "induction, grouped"),
    ],
)
def test_a_wrong_claim_is_refused_in_one_line(attempt: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        attempt()
    assert "\n" not in str(error.value)


def test_recovery_of_the_truth_is_perfect_and_of_chance_is_chance(base: Planted) -> None:
    found = base.recovery(base.truth)
    assert (found.precision, found.recall, found.exact, found.missed, found.wrong) == (1, 1, True, (), ())
    assert found.kl < 1e-6
    generator = torch.Generator().manual_seed(0)
    recalls = []
    for _ in range(100):
        keep = torch.zeros_like(base.truth)
        keep[torch.randperm(len(keep), generator=generator)[: base.size]] = True
        found = base.recovery(keep)
        assert found.precision == found.recall
        assert len(found.missed) == len(found.wrong) == base.size - round(found.recall * base.size)
        recalls.append(found.recall)
    assert fmean(recalls) == pytest.approx(base.chance, abs=0.03)  # six standard errors


class Remembered(Induction):
    """Keeps what it planted, for methods that look."""

    def plant(self, *args: Any, **kwargs: Any) -> Planted:
        self.last = super().plant(*args, **kwargs)
        return self.last


class Looking(ScoringMethod):
    """Scores units by what the planted model says of them: its truth, or what single knock-outs cost."""

    def __init__(self, model: Remembered, what: str) -> None:
        super().__init__()
        self.model, self.what = model, what

    def score(self, calibration: Evaluator) -> int:
        last = self.model.last
        self._scores = last.truth.float() if self.what == "truth" else last.certificate.effect
        return 0


def validation(model: Induction, make_method: Callable[[], MaskMethod], seeds: int = 2) -> Validation:
    """A small validation of one model."""
    return Validation(
        models={"induction": model},
        make_recipe=lambda: Recipe(method=make_method(), steps=3),
        trainer=MaskTrainer(batch_size=8),
        seed=4,
        seeds=seeds,
    )


@pytest.mark.slow
def test_an_oracle_is_exact_and_single_knock_outs_fall_for_the_cancelling_pair(tmp_path: Path) -> None:
    model = Remembered(**SMALL)
    oracle = validation(model, lambda: Looking(model, "truth")).run(tmp_path, {})
    total = oracle["models"]["induction"]["summary"]
    assert (total["precision"], total["recall"], total["exact"], total["seeds"]) == (1, 1, 2, 2)
    assert total["worst_kl"] < 1e-6
    assert [run["seed"] for run in oracle["models"]["induction"]["seeds"]] == [4, 5]
    saved = json.loads((tmp_path / "validation.json").read_text())
    assert saved["status"] == "done"
    assert saved["models"]["induction"]["summary"]["precision"] == 1
    assert "| induction | 24 of 192 | 1.000 | 1.000 | 0.125 |" in (tmp_path / "table.md").read_text()

    single = validation(model, lambda: Looking(model, "effect")).run(tmp_path, {})
    total = single["models"]["induction"]["summary"]
    assert total["recall"] == pytest.approx(22 / 24)
    assert total["wrong"] == {"one of a cancelling pair": 4}
    assert "wrongly keeps one of a cancelling pair (2.0)" in (tmp_path / "table.md").read_text()


def test_what_cannot_be_validated_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tie_kv=false"):
        validation(Induction(**SMALL), partial(RandomOrder, tie_kv=True)).run(tmp_path, {})
    with pytest.raises(UserError, match="at least 1"):
        validation(Induction(**SMALL), RandomOrder, seeds=0)
    broken = validation(Induction(**SMALL | {"sharpness": 0.1}), RandomOrder)
    with pytest.raises(UserError, match="right at only"):
        broken.run(tmp_path, {})
    assert json.loads((tmp_path / "validation.json").read_text())["status"] == "failed"


@pytest.mark.parametrize("option", options("planted"))
def test_every_planted_option_fits_its_class(option: str) -> None:
    config = composed("validate", [f"planted={option}"])
    assert config.hydra.run.dir.startswith("outputs/validations/topk/2")
    expected = (
        ["induction", "grouped", "rope", "graded", "rotated", "permuted"] if option == "all" else [option]
    )
    assert list(config.planted) == expected
    for name, node in config.planted.items():
        built = configuration.build(node)
        assert built.name == name
        assert built == type(built)()  # the file and the class give the same defaults


def test_planted_options_combine() -> None:
    config = composed(
        "validate", ["planted=[induction,rope]", "planted.rope.distinct=5", "mask=hard_concrete"]
    )
    assert list(config.planted) == ["induction", "rope"]
    assert config.planted.rope.distinct == 5
    assert config.optimizer._target_ == "torch.optim.AdamW"


@pytest.mark.slow
def test_the_job_prints_seeds_and_a_table(tmp_path: Path) -> None:
    sizes = [f"planted.{name}.{key}={value}" for name in ("graded", "rope") for key, value in SMALL.items()]
    arguments = [
        "planted=[graded,rope]",
        "steps=20",
        "seeds=1",
        "trainer.batch_size=8",
        "output_dir=out",
        *sizes,
    ]
    command = [sys.executable, str(ROOT / "experiments" / "validate.py"), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "graded seed 0: kept 24 of 192, precision" in done.stdout
    assert "| rope | 18 of 144 |" in done.stdout
    record = json.loads((tmp_path / "out" / "validation.json").read_text())
    run = record["models"]["rope"]["seeds"][0]
    assert run["recall"] == pytest.approx(1 - len(run["missed"]) / 18)
    assert run["kl"] < run["empty_kl"]
    assert run["tokens"] > 20 * 8 * 9  # the finishing pass takes some too
