"""What a basis has to show: each number against an independent computation, and on models whose answer is known."""

from __future__ import annotations

import math
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import tiny_model
from scipy.linalg import subspace_angles
from transformers import PreTrainedModel

from mechint import analyze, evaluate
from mechint.analysis import Controls, Stability
from mechint.analysis.null import permuted_weights
from mechint.analysis.proofs import DRAWS, carried, share_inside, spans_of_weights, subspace_agreement
from mechint.checkpoints import CheckpointLoader
from mechint.data import TextFiles
from mechint.data.byte_tokenizer import byte_tokenizer
from mechint.errors import UserError
from mechint.learning import MaskTrainer
from mechint.masking import MaskedModel
from mechint.masking.basis import Basis, Maps, Where
from mechint.masking.masks import flat_keep
from mechint.masking.sites import in_basis
from mechint.methods import LearnedBasis, PrincipalBasis, TopK
from mechint.reporting import Visualizer
from mechint.reporting.certainty import proofs_in_words
from mechint.results import Result, RunFiles
from mechint.results.mask_files import load_basis
from mechint.results.sequences import load_sequences

RANK = 3  # of the deficient heads below, whose width is 8


def deficient(name: str, kind: str, vocab_size: int = 97) -> PreTrainedModel:
    """A tiny model whose middle layer has a first KV head with weights of rank RANK."""
    model = tiny_model(name, vocab_size=vocab_size)
    projection = getattr(model.get_submodule("model.layers.1.self_attn"), f"{kind}_proj")
    generator = torch.Generator().manual_seed(5)
    factors = [torch.randn(size, generator=generator) for size in ((8, RANK), (RANK, 32))]
    with torch.no_grad():
        projection.weight[:8] = 0.5 * factors[0] @ factors[1]
    return model


def random_basis(masked: MaskedModel, keys: Where, seed: int = 0) -> Basis:
    """An invertible map for every head and kind."""
    generator = torch.Generator().manual_seed(seed)
    maps = []
    for position, kind in masked.space.slices:
        layer = masked.space.layers[position]
        shape = (layer.num_kv_heads, layer.width(kind), layer.width(kind))
        read = torch.eye(shape[-1]) + 0.3 * torch.randn(shape, generator=generator)
        maps.append(Maps(read, torch.linalg.inv(read.double()).float()))
    return Basis.fixed(("random", "random"), keys, maps)


@pytest.mark.parametrize("keys", ["before_rope", "after_rope"])
@pytest.mark.parametrize(("name", "bias"), [("llama", 0), ("qwen2", 1), ("qwen3", 0)])
def test_spans_are_those_of_the_weights(name: str, bias: int, keys: Where) -> None:
    """Before the rotation W_K spans what its rank says, with a bias one more; values do so wherever the keys are."""
    for kind in ("k", "v"):
        model = deficient(name, kind)
        masked = MaskedModel(model)
        if bias:
            with torch.no_grad():
                getattr(model.get_submodule("model.layers.1.self_attn"), f"{kind}_proj").bias.fill_(0.3)
        spans = spans_of_weights(masked, keys)
        assert {
            span.shape[1] for (position, _), heads in spans.items() for span in heads if position != 1
        } == {8}
        found = spans[1, kind][0]  # type: ignore[index]
        if kind == "k" and keys == "after_rope":
            assert found.shape[1] > RANK + bias  # what the rotation makes of it
            continue
        assert found.shape[1] == RANK + bias
        if name == "llama":
            weight = (
                getattr(model.get_submodule("model.layers.1.self_attn"), f"{kind}_proj").weight[:8].double()
            )
            assert share_inside(found, weight.mT) == pytest.approx(np.ones(32), abs=1e-5)


def test_a_direction_outside_of_what_the_weights_carry_is_seen() -> None:
    masked = MaskedModel(deficient("llama", "v"))
    view = in_basis(masked, random_basis(masked, "before_rope"))
    keep = torch.ones(masked.space.num_channels, dtype=torch.bool)
    found = carried(view, keep)
    assert (found.deficient, found.of_heads, found.directions) == (1, 12, len(keep))
    assert 0 < found.outside <= 8
    part = next(one for one in found.heads if (one.layer, one.kind) == (1, "v"))
    assert part.rank == [RANK, 8]
    weight = masked.model.get_submodule("model.layers.1.self_attn").v_proj.weight[:8].double()  # type: ignore[union-attr, operator, index]
    left, _, _ = torch.linalg.svd(weight)
    write = view.basis.of(masked.space, 1, "v").write[0].double()  # type: ignore[union-attr]
    shares = (write @ left[:, :RANK]).norm(dim=1) / write.norm(dim=1)
    assert part.lowest[0] == pytest.approx(float(shares.min()), abs=1e-5)
    assert part.mean[0] == pytest.approx(float(shares.mean()), abs=1e-5)
    assert part.lowest[1] == pytest.approx(1, abs=1e-5)


def test_subspaces_are_compared_by_their_principal_angles() -> None:
    masked = MaskedModel(tiny_model("llama"))
    space, seeds = masked.space, 3
    generator = torch.Generator().manual_seed(1)
    bases = [random_basis(masked, "before_rope", seed) for seed in range(seeds)]
    keeps = [torch.rand(space.num_channels, generator=generator) > 0.5 for _ in range(seeds)]
    space.view(keeps[0], 0, "k")[1] = False  # a head of which one seed keeps nothing
    found = subspace_agreement(space, bases, keeps, generator)
    assert (found.pairs, found.draws) == (3, DRAWS)
    everything: list[tuple[float, float]] = []
    for number, (position, kind) in enumerate(space.slices):
        for head in range(2):
            cosines: list[float] = []
            chance: list[float] = []
            for a, b in combinations(range(seeds), 2):
                one, other = (
                    bases[i].maps[number].write[head][space.view(keeps[i], position, kind)[head]].T.double()
                    for i in (a, b)
                )
                if one.shape[1] and other.shape[1]:
                    angles = subspace_angles(one.numpy(), other.numpy())
                    cosines += (np.cos(angles) ** 2).tolist()
                    chance += [max(one.shape[1], other.shape[1]) / 8] * len(angles)
            part = found.heads[number]
            assert (part.layer, part.kind) == (position, kind)
            assert part.cosine2[head] == pytest.approx(np.mean(cosines))
            assert part.random[head] == pytest.approx(np.mean(chance))
            everything += list(zip(cosines, chance, strict=True))
    means = np.mean(everything, axis=0)
    assert (found.cosine2, found.random) == (pytest.approx(means[0]), pytest.approx(means[1]))
    same = subspace_agreement(space, [bases[0]] * 2, [keeps[1]] * 2, generator)
    assert same.cosine2 == pytest.approx(1)
    assert same.chance is not None
    assert same.chance < 0.9


def test_random_subspaces_have_the_cosine_that_is_stated() -> None:
    """max(r, s) / C for the mean over min(r, s) angles."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(300):
        one, other = (torch.linalg.qr(torch.randn(8, rank, generator=generator))[0] for rank in (3, 5))
        found.append(float((one.T @ other).square().sum()) / 3)
    assert np.mean(found) == pytest.approx(5 / 8, abs=0.02)


# --- runs


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two texts that share nothing."""
    directory = tmp_path_factory.mktemp("texts")
    paths = {name: directory / f"{name}.txt" for name in ("first", "second")}
    paths["first"].write_text(
        "\n<|endoftext|>\n".join(
            f"{n} green bottles hanging on the wall, and {n * n} more" for n in range(300)
        )
    )
    paths["second"].write_text(
        "\n<|endoftext|>\n".join(f"Of {n} sheep {n // 3} were black." for n in range(300))
    )
    return paths


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that reads bytes, one of whose value heads has weights of rank RANK."""
    directory = tmp_path_factory.mktemp("checkpoints") / "deficient"
    deficient("llama", "v", vocab_size=256).save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def settings(texts: dict[str, Path], checkpoint: Path) -> dict[str, Any]:
    """Arguments of a small analysis in a learned basis."""
    return {
        "checkpoint": str(checkpoint),
        "target_sparsity": 0.5,
        "steps": 12,
        "dataset": TextFiles(
            path=str(texts["first"]), sequence_length=16, calibration_tokens=1024, evaluation_tokens=512
        ),
        "method": TopK(finishing_trials=0),
        "trainer": MaskTrainer(batch_size=4),
        "visualizer": Visualizer([]),
        "controls": Controls(random_masks=3, permutations=2),
    }


@pytest.fixture(scope="module")
def proved(
    settings: dict[str, Any], texts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> RunFiles:
    """A run that shows all that one seed can show."""
    basis = LearnedBasis(proofs=True, second_text=str(texts["second"]), learning_rate=0.05)
    return analyze(output_dir=tmp_path_factory.mktemp("proved") / "run", basis=basis, **settings)


@pytest.mark.slow
def test_directions_that_the_weights_do_not_carry_are_never_kept(proved: RunFiles) -> None:
    found = proved.result.proofs.carried  # type: ignore[union-attr]
    assert found is not None
    assert found.deficient == 1
    assert found.directions == proved.result.channels.kept
    assert (found.outside, found.tolerance) == (0, 1e-3)
    assert found.lowest > 1 - 1e-3
    part = next(one for one in found.heads if (one.layer, one.kind) == (1, "v"))
    assert part.rank == [RANK, 8]
    assert 0 < part.kept[0] <= RANK


@pytest.mark.slow
def test_a_second_text_is_measured_as_any_other(proved: RunFiles, texts: dict[str, Path]) -> None:
    transfer = proved.result.proofs.transfer  # type: ignore[union-attr]
    assert transfer is not None
    assert (transfer.text, transfer.tokens, transfer.sequences) == ("text-second.txt", 512, 32)
    other = TextFiles(
        path=str(texts["second"]),
        evaluation_fraction=0.5,
        sequence_length=16,
        calibration_tokens=16,
        evaluation_tokens=512,
    )
    again = evaluate(proved.directory, other)
    assert again.dataset.evaluation_digest == transfer.evaluation_digest
    for name in ("dense", "empty", "masked", "complement"):
        assert transfer.metrics[name].kl == pytest.approx(again.metrics[name].kl, rel=1e-4, abs=1e-7)
    assert transfer.faithfulness == pytest.approx(again.faithfulness, rel=1e-3)
    assert transfer.shared_ngrams == 0
    assert transfer.random_masks is not None
    assert transfer.random_masks.kl_mean > transfer.random_masks.kl_of_mask


@pytest.mark.slow
def test_permuted_models_are_measured_by_themselves(proved: RunFiles, checkpoint: Path) -> None:
    null = proved.result.proofs.null  # type: ignore[union-attr]
    assert null is not None
    assert [one.seed for one in null.permutations] == [0, 1]
    loaded = CheckpointLoader().load(str(checkpoint), torch.device("cpu"), "float32")
    data = TextFiles(**{**vars(dataset_of(proved)), "evaluation_tokens": 512}).load(
        loaded.tokenizer, loaded.name, loaded.vocab_size, loaded.max_positions, 0
    )
    gaps = []
    for one in null.permutations:
        with permuted_weights(loaded.model, one.seed), torch.no_grad():
            logits = loaded.model(data.evaluation.tokens).logits
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), data.evaluation.answers.flatten(), reduction="none"
        )
        assert one.loss.dense == pytest.approx(float(loss.mean()), rel=1e-4)
        assert one.gain == pytest.approx(one.loss.empty - one.loss.dense)
        assert one.kl_recovered == pytest.approx(1 - one.kl / one.kl_empty)
        assert one.informative == (one.gain > 2 * one.gain_se)
        gaps.append(one.gain)
    assert null.gain == pytest.approx(np.mean(gaps))
    assert null.kl_recovered_sd == pytest.approx(
        np.std([one.kl_recovered for one in null.permutations], ddof=1)
    )
    assert null.informative == (null.gain > 2 * null.gain_se)
    metrics = proved.result.metrics
    assert null.difference == pytest.approx(1 - metrics.masked.kl / metrics.empty.kl - null.kl_recovered)
    assert null.interval is None  # one run of the model itself


def dataset_of(run: RunFiles) -> TextFiles:
    """The run's dataset, from its record."""
    recorded = {key: value for key, value in run.result.config["dataset"].items() if key != "_target_"}
    return TextFiles(**recorded)


@pytest.mark.slow
def test_every_fact_is_there_for_the_report_and_every_gap_is_named(
    proved: RunFiles, settings: dict[str, Any], tmp_path: Path
) -> None:
    sentences = proofs_in_words(proved.result.proofs, None)  # type: ignore[arg-type]
    for words in ("permuted", "Second text, nothing learned or fitted there", "Weights: of"):
        assert sum(words in sentence for sentence in sentences) == 1, words
    report = (proved.directory / "circuit_analysis_report.md").read_text()
    assert all(sentence.split(":")[0] in report for sentence in sentences)
    assert [line.split(":")[0] for line in proved.result.proofs.missing] == [  # type: ignore[union-attr]
        "whether seeds keep the same subspaces"
    ]
    bare = analyze(output_dir=tmp_path / "bare", basis=PrincipalBasis(), **settings).result
    assert bare.proofs is not None
    assert (bare.proofs.null, bare.proofs.transfer, bare.proofs.subspaces) == (None, None, None)
    assert len(bare.proofs.missing) == 3
    assert "basis.proofs=true, which takes as long as 2 more runs of this" in bare.proofs.missing[1]
    assert "basis.second_text" in bare.proofs.missing[2]
    plain = analyze(output_dir=tmp_path / "plain", **settings).result
    assert plain.proofs is None


@pytest.mark.parametrize(
    ("name", "words"), [("nowhere.txt", "cannot be used: no file"), ("first", "measured on anyway")]
)
def test_a_second_text_that_is_none_is_refused_before_anything_is_learned(
    name: str, words: str, settings: dict[str, Any], texts: dict[str, Path], tmp_path: Path
) -> None:
    changes: dict[str, Any] = {}
    if name in texts:  # the same documents are held out of the same file
        changes = {"dataset": TextFiles(**{**vars(settings["dataset"]), "evaluation_fraction": 0.5})}
    basis = PrincipalBasis(second_text=str(texts.get(name, tmp_path / name)))
    with pytest.raises(UserError, match=words) as error:
        analyze(output_dir=tmp_path / "run", basis=basis, **{**settings, **changes})
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "metrics.jsonl").read_text()


@pytest.fixture(scope="module")
def seeds(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> RunFiles:
    """Three seeds in a learned basis."""
    return analyze(
        output_dir=tmp_path_factory.mktemp("seeds") / "run",
        basis=LearnedBasis(proofs=True),
        seeds=3,
        stability=Stability(subset_draws=3, tokens=64),
        **settings,
    )


@pytest.mark.slow
def test_seeds_show_their_subspaces_and_learn_on_permuted_models_once(seeds: RunFiles) -> None:
    proofs, stability = seeds.result.proofs, seeds.result.stability
    assert any("directions of the first seed" in note for note in seeds.result.notes)
    assert proofs is not None
    assert proofs.missing == ["transfer to a second text: name one with basis.second_text"]
    assert stability is not None
    assert stability.null is not None
    assert proofs.null is None
    assert len(stability.null.permutations) == 2
    assert stability.null.interval is not None
    low, high = stability.null.interval
    assert low < stability.null.difference < high
    children = [RunFiles.read(path) for path in sorted(seeds.directory.glob("seed_*"))]
    assert all(child.result.proofs.null is None for child in children)  # type: ignore[union-attr]
    masked = MaskedModel(tiny_model("llama", vocab_size=256))
    bases = [load_basis(masked.space, child.directory) for child in children]
    keeps = [flat_keep(masked.space, child.masks) for child in children]
    again = subspace_agreement(masked.space, bases, keeps, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    assert proofs.subspaces == again
    assert any(sentence.startswith("Seeds: the subspaces") for sentence in proofs_in_words(proofs, None))
    assert seeds.result.random_masks is not None
    assert seeds.result.random_masks.count == 3
    names = [part.name for part in seeds.result.cost.parts]
    assert len(set(names)) == len(names)
    assert {"necessity", "random subsets", "random masks", "permuted models", "subspaces"} <= set(names)


@pytest.mark.slow
def test_every_evaluation_number_has_its_error(seeds: RunFiles, proved: RunFiles) -> None:
    for run in (seeds, proved):
        content = run.result.as_json()
        content.pop("config")
        lacking = [path for path in numbers(content) if not has_error(content, path)]
        assert lacking == []


# Numbers on evaluation data, by name.
NAMED = {
    *(
        "loss",
        "kl",
        "perplexity",
        "bits_per_byte",
        "top1_agreement",
        "faithfulness",
        "kl_recovered",
        "kl_empty",
    ),
    *("loss_degradation_percent", "masked_kl", "soft_kl", "gap", "gain", "kl_mean", "kl_of_mask", "kl_gain"),
    *("faithfulness_mean", "faithfulness_of_mask", "achieved_faithfulness"),
}


def numbers(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where numbers on evaluation data are in a result."""
    if isinstance(content, dict):
        own = [
            (*path, name)
            for name, value in content.items()
            if name in NAMED and value is not None and not isinstance(value, dict)
        ]
        return own + [found for name, value in content.items() for found in numbers(value, (*path, name))]
    if isinstance(content, list):
        return [found for number, value in enumerate(content) for found in numbers(value, (*path, number))]
    return []


def has_error(content: Any, path: tuple[Any, ...]) -> bool:
    """Whether a number has a standard error, or a standard deviation over what it is the mean of."""
    *places, name = path
    for place in places:
        content = content[place]
    if places and places[-1] == "random_masks" and name in ("kl", "faithfulness"):
        return True  # of each random mask; their mean has one
    errors = content.get(f"{name}_se", content.get(f"{name}_sd"))
    if name == "kl_mean" and "kl_sd" in content:
        errors = content["kl_sd"]
    if "permutations" in content and name in ("kl_empty", "gain"):
        errors = content["permutations"][0][f"{name}_se"]
    everything = errors if isinstance(errors, list) else [errors]
    return all(error is not None and math.isfinite(error) and error >= 0 for error in everything)


@pytest.mark.slow
def test_errors_are_those_of_a_mean_over_documents(proved: RunFiles) -> None:
    """Against the linear approximation: the sums of each document's deviations, whose sizes differ a little."""
    sequences = load_sequences(proved.directory)
    assert sequences is not None
    documents = sequences["documents"].numpy()
    assert len(np.unique(documents)) < len(documents)
    for number, name in enumerate(("dense", "empty", "masked", "complement")):
        values = sequences["kl"][number].numpy()
        sums = [(values - values.mean())[documents == one].sum() for one in np.unique(documents)]
        expected = np.sqrt(np.square(sums).sum()) / len(values)
        assert proved.result.metrics[name].kl_se == pytest.approx(expected, rel=0.1, abs=1e-12)


@pytest.mark.slow
def test_several_targets_carry_the_proofs_of_their_last_mask(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    run = analyze(
        output_dir=tmp_path / "nested",
        basis=PrincipalBasis(proofs=True),
        **{**settings, "target_sparsity": [0.5, 0.75], "steps": 4},
    )
    proofs = run.result.proofs
    assert proofs is not None
    assert proofs.null is None
    assert "ask for it in a run for one target" in proofs.missing[0]
    assert proofs.carried is not None
    last = Result.read(tmp_path / "nested" / "sparsity_0.75")
    assert last.proofs is not None
    assert proofs.carried == last.proofs.carried
    for point in run.result.nested or []:
        assert point.faithfulness_se is not None
        assert point.loss_degradation_percent_se is not None
        assert point.metrics.masked.kl_se is not None
        assert point.random_masks is not None
