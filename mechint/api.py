"""The functions for use from Python; they do what the experiments do, without Hydra.

from mechint import analyze, compare_variants, evaluate, load_run
from mechint.data import TextFiles

run = analyze("bundled:baseline", "results/baseline", target_sparsity=0.9)
run = analyze(model, "results/mine", tokenizer=tokenizer)   # objects of transformers in memory, left as they are
run = load_run("results/baseline")                    # the same, later
with run.masked_model() as masked:
    print(masked.generate("Once upon a time"), masked.loss("Once upon a time there was a fox."))
print(evaluate(run, TextFiles(path="other.txt")).metrics.masked.kl)
run.channels_frame().groupby(["layer", "kind"])["kept"].mean()
compare_variants({"Baseline": "results/baseline", "K=V^T": "results/transposed"}, "comparison")
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from mechint.analysis import Controls, Stability
from mechint.analysis.attempt import Outputs, RunOptions
from mechint.analysis.between import between
from mechint.analysis.goals import Kind
from mechint.analysis.preparation import Inputs
from mechint.analysis.saved import Evaluation, Run
from mechint.analysis.search import TargetSearch
from mechint.analysis.seeds import SeedStudy
from mechint.analysis.single import Analysis
from mechint.analysis.targets import NestedTargets, parse_targets
from mechint.checkpoints import CheckpointLoader, ModelInMemory
from mechint.circuits import CircuitStudy
from mechint.circuits.gates import parse_gates
from mechint.comparison.compare import Directories, read_comparison
from mechint.comparison.comparison import Comparison, ComparisonFigure
from mechint.comparison.figures import (
    ChannelsComparison,
    CircuitMatrices,
    DeltaHeatmap,
    ImportanceComparison,
    KeyFindings,
    OverallSummary,
    SparsityComparison,
)
from mechint.comparison.job import Output, leave_circuits, leave_comparison
from mechint.data import Dataset, PythonDocs
from mechint.errors import UserError
from mechint.learning import MaskTrainer, Recipe
from mechint.loggers import Logger, WandbLogger
from mechint.masking.ablation import ZERO, Ablation
from mechint.methods import ChannelBasis, TopK
from mechint.methods.bases import BasisMethod
from mechint.methods.method import MakeOptimizer, MaskMethod
from mechint.methods.schedules import Schedule
from mechint.metrics import KL, Metric
from mechint.reporting import (
    CircuitDiagram,
    CircuitFigure,
    CircuitHeads,
    CircuitPatterns,
    ImportanceOverview,
    LayerImportance,
    NestedFigure,
    RankFigure,
    RunFigure,
    SparsityCurves,
    StabilityFigure,
    SurvivalMap,
    Visualizer,
)
from mechint.results import RunFiles
from mechint.results.between import Between

log = logging.getLogger(__name__)


def analyze(
    checkpoint: str | Path | nn.Module = "bundled:baseline",
    output_dir: str | Path = "outputs/runs/python",
    *,
    tokenizer: PreTrainedTokenizerBase | str | None = None,
    target_sparsity: float | str | Sequence[float] | None = None,
    target_faithfulness: float | None = None,
    target_kl: float | None = None,
    steps: int = 500,
    seed: int = 0,
    seeds: int = 1,
    device: str = "auto",
    dtype: str = "auto",
    loader: CheckpointLoader | None = None,
    dataset: Dataset | None = None,
    method: MaskMethod | None = None,
    objective: Metric = KL,
    ablation: Ablation = ZERO,
    basis: BasisMethod | None = None,
    make_optimizer: MakeOptimizer | None = None,
    schedule: Schedule | None = None,
    trainer: MaskTrainer | None = None,
    visualizer: Visualizer | None = None,
    stability: Stability | None = None,
    controls: Controls | None = None,
    circuit: CircuitStudy | None = None,
    gates: Sequence[str] = (),
    rival_of: str | Path | None = None,
    loggers: Sequence[Logger] = (),
    resume: bool = True,
) -> Run:
    """Learn and measure a mask for a checkpoint, leave every file of a run in `output_dir`, return the run.

    checkpoint: what `checkpoint=` names on the command line, or a language model of transformers in memory, which stays
    as it is. tokenizer: the model's tokenizer, or a directory or hub id of one to use instead of the checkpoint's own.
    With `seeds` above 1, runs from as many seeds are in seed_<n>/ below it, and the run is their consensus. With
    several target sparsities, nested runs are in sparsity_<target>/, and the run has the highest target's mask. With
    `target_faithfulness` or `target_kl` instead, the smallest mask that reaches it is searched; without any target
    `target_sparsity` is 0.95.
    Whatever is None is as in conf/analyze.yaml and conf/mask. A finished run of the same settings in `output_dir` is
    returned as it is unless `resume` is False. Raises UserError for errors that you can fix.
    """
    recipe = Recipe(
        method=method or TopK(),
        objective=objective,
        ablation=ablation,
        basis=basis or ChannelBasis(),
        make_optimizer=make_optimizer,
        schedule=schedule,
        steps=steps,
    )
    checkpoint, loader = _source(checkpoint, tokenizer, loader)
    inputs = Inputs(
        checkpoint=checkpoint,
        loader=loader,
        dataset=dataset or PythonDocs(evaluation_tokens=20_480, evaluation_fraction=0.12),
        device=device,
        dtype=dtype,
    )
    settings: dict[str, Any] = {
        "inputs": inputs,
        "recipe": recipe,
        "trainer": trainer or MaskTrainer(learning_rate_decay=0.1),
        "outputs": Outputs(visualizer=visualizer or Visualizer(run_figures()), loggers=list(loggers)),
        "target_sparsity": target_sparsity,
        "target_faithfulness": target_faithfulness,
        "target_kl": target_kl,
        "seed": seed,
        "seeds": seeds,
        "stability": stability or Stability(),
        "controls": controls or Controls(),
        "circuit": circuit or CircuitStudy(),
        "gates": [gate.wording for gate in parse_gates(gates)],
        "rival_of": None if rival_of is None else str(rival_of),
    }
    make_analysis(**settings).run(Path(output_dir), describe_settings(settings), RunOptions(resume=resume))
    return Run.read(output_dir)


def _source(
    checkpoint: str | Path | nn.Module,
    tokenizer: PreTrainedTokenizerBase | str | None,
    loader: CheckpointLoader | None,
) -> tuple[str, CheckpointLoader]:
    """A checkpoint's name and what loads it. Raises UserError for arguments that contradict each other."""
    if not isinstance(checkpoint, str | Path):
        if loader is not None:
            raise UserError("checkpoint is a model in memory, which no loader loads; leave out loader=")
        in_memory = ModelInMemory(checkpoint, tokenizer)
        return in_memory.source, in_memory
    if tokenizer is None:
        return str(checkpoint), loader or CheckpointLoader()
    if loader is not None or not isinstance(tokenizer, str | Path):
        raise UserError(
            "for a checkpoint on disk, give tokenizer= as a directory or hub id, or a loader with one"
        )
    return str(checkpoint), CheckpointLoader(tokenizer=str(tokenizer))


def run_figures() -> list[RunFigure]:
    """All figures of a run, as in conf/visualizer/default.yaml."""
    return [
        ImportanceOverview(),
        LayerImportance(),
        SparsityCurves(),
        StabilityFigure(),
        NestedFigure(),
        CircuitFigure(),
        CircuitHeads(),
        CircuitPatterns(),
        CircuitDiagram(),
        SurvivalMap(),
        RankFigure(),
    ]


def load_run(directory: str | Path) -> Run:
    """A finished run, from the files in its directory.

    Raises UserError where there is none, where it did not finish, and where its files are damaged.
    """
    return Run.read(directory)


def evaluate(
    run: Run | str | Path,
    dataset: Dataset | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    batch_size: int = 8,
    loader: CheckpointLoader | None = None,
) -> Evaluation:
    """What a run's mask does on other data: the dense, empty, masked and complement model on its evaluation side.

    run: or its directory. dataset: None is the run's own. batch_size: sequences that go through the model at once.
    loader: None as in the run; `ModelInMemory(model, tokenizer)` where the run's model was an object in memory.
    Raises UserError where the run's checkpoint or data are not there any more, or have changed.
    """
    found = run if isinstance(run, Run) else Run.read(run)
    return found.evaluate(dataset, device, dtype, batch_size, loader)


def compare_circuits(
    runs: Mapping[str, Run | str | Path],
    output_dir: str | Path | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
) -> Between:
    """What the masks of several runs of one checkpoint share, and what each does on the others' data.

    runs: name -> a run, or its directory; names are free. output_dir: where tables, the figure and comparison.json go;
    None: nowhere. Raises UserError for errors that you can fix, such as runs of different models.
    """
    output = None if output_dir is None else Output(directory=Path(output_dir))
    found = between(runs, device, dtype)
    if output is not None:
        leave_circuits(found, [CircuitMatrices()], output)
    return found


Runnable = Analysis | SeedStudy | NestedTargets | TargetSearch


def make_analysis(
    *,
    inputs: Inputs,
    recipe: Recipe,
    trainer: MaskTrainer,
    outputs: Outputs,
    target_sparsity: Any = None,
    target_faithfulness: float | None = None,
    target_kl: float | None = None,
    seed: int = 0,
    seeds: int = 1,
    stability: Stability | None = None,
    controls: Controls | None = None,
    circuit: CircuitStudy | None = None,
    gates: Any = (),
    rival_of: str | None = None,
) -> Runnable:
    """The analysis for one target or several sparsities, from one seed or several.

    Raises UserError for targets that contradict each other, and for several sparsities from several seeds.
    """
    given = {
        "target_sparsity": target_sparsity,
        "target_faithfulness": target_faithfulness,
        "target_kl": target_kl,
    }
    wanted = [f"{name}={value}" for name, value in given.items() if value is not None]
    if len(wanted) > 1:
        raise UserError(f"{' and '.join(wanted)}: give one target, and leave the others out")
    parse_gates(gates)  # now, before anything is computed; they are judged by the configuration's wording
    stability = stability or Stability()
    targets = parse_targets(target_sparsity)
    if len(targets) > 1 and seeds != 1:
        raise UserError(
            f"seeds={seeds} and {len(targets)} values of target_sparsity in one run are not supported; "
            "use -m with one of them, e.g. -m seed=0,1,2"
        )
    analysis = Analysis(
        inputs=inputs,
        recipe=recipe,
        trainer=trainer,
        outputs=outputs,
        target_sparsity=targets[-1],
        seed=seed,
        controls=controls or Controls(),
        circuit=circuit,
        rival_of=None if rival_of is None else RunFiles.read(rival_of),
    )
    several = target_faithfulness is not None or target_kl is not None or len(targets) > 1
    if several and circuit is not None and circuit.paraphrase_iou:
        raise UserError(
            "circuit.paraphrase_iou=true learns the one mask of a target_sparsity a second time; give one number for it"
        )
    if target_faithfulness is not None or target_kl is not None:
        if seeds != 1:
            raise UserError(f"a search from seeds={seeds} is not supported; use -m with seed=0,1,2")
        kind: Kind = "kl" if target_kl is not None else "faithfulness"
        return TargetSearch(
            analysis=analysis, kind=kind, value=float(target_kl or target_faithfulness or 0.0)
        )
    if len(targets) > 1:
        return NestedTargets(analysis=analysis, targets=targets)
    if seeds != 1:
        return SeedStudy(analysis=analysis, seeds=seeds, stability=stability)
    if stability != Stability():
        log.warning("stability.* has no effect: it tests what several seeds agree on, and seeds=1")
    if analysis.controls.permutations != Controls.permutations and not recipe.basis.proofs:
        log.warning("controls.permutations has no effect: neither seeds= nor basis.proofs=true asks for it")
    return analysis


def compare_variants(
    variant_dirs: Mapping[str, Directories],
    output_dir: str | Path,
    project_name: str | None = None,
    use_wandb: bool = False,
    *,
    baseline: str | None = None,
    figures: Sequence[ComparisonFigure] | None = None,
    dpi: int = 150,
) -> Comparison:
    """Compare two or more variants; leave figures, findings and report in `output_dir`.

    variant_dirs: name -> a run's directory, one with several runs that differ in the seed, or a list of
    those; names are free. project_name: the W&B project, used with `use_wandb`; None: WANDB_PROJECT, or "mechint".
    baseline: what all others are compared with; None: the first. figures: None draws all. Raises UserError for errors
    that you can fix.
    """
    comparison = read_comparison(variant_dirs, baseline)
    places = {name: _described(place) for name, place in variant_dirs.items()}
    output = Output(
        directory=Path(output_dir),
        loggers=[WandbLogger(project=project_name)] if use_wandb else [],
        config={"variants": places, "baseline": comparison.baseline},
        dpi=dpi,
    )
    leave_comparison(comparison, comparison_figures() if figures is None else figures, output)
    return comparison


def comparison_figures() -> list[ComparisonFigure]:
    """All figures of a comparison, as in conf/compare.yaml."""
    return [
        OverallSummary(),
        DeltaHeatmap(),
        KeyFindings(),
        SparsityComparison(),
        ImportanceComparison(),
        ChannelsComparison(),
    ]


# The names under which conf/analyze.yaml knows what an Analysis is made of.
CONFIG_KEYS = {
    "loader": "model",
    "method": "mask",
    "make_optimizer": "optimizer",
    "schedule": "sparsity_schedule",
    "loggers": "logger",
}


# Settings that are groups of others.
GROUPS = ("inputs", "recipe", "outputs")


def describe_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration to record: plain values, with objects as {_target_: class, their settings}."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= vars(value) if name in GROUPS else {name: value}
    return {CONFIG_KEYS.get(name, name): _described(value) for name, value in flat.items()}


def _described(value: Any) -> Any:
    if isinstance(value, functools.partial):
        keywords = {key: _described(item) for key, item in value.keywords.items()}
        return {"_target_": _class_path(value.func), **keywords}
    if isinstance(value, (list, tuple)):
        return [_described(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "__qualname__"):  # a class or a function
        return {"_target_": _class_path(value)}
    # A method that was used before has more attributes than its settings.
    names = [field.name for field in fields(value)] if is_dataclass(value) else list(vars(value))
    settings = {name: getattr(value, name) for name in names if not name.startswith("_")}
    return {"_target_": _class_path(type(value)), **{key: _described(item) for key, item in settings.items()}}


def _class_path(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"
