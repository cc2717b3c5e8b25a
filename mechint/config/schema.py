"""The root keys of each experiment with their types, and what interpolations may call."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from mechint.config import naming
from mechint.config.building import run_digest
from mechint.config.help import program_help
from mechint.results.directories import job_name
from mechint.results.result import RESULT

# Hydra 1.5 drops the keyword; it is named in this one place.
VERSION_BASE = "1.3"

# Marks a key that holds what an object is built from.
PART = {"part": True}


@dataclass
class AnalyzeSchema:
    """Types of the root keys of `conf/analyze.yaml`; groups hold the keyword arguments of one class each."""

    checkpoint: str
    target_sparsity: Any  # a number, a list of them, or a range first:last:step
    target_faithfulness: float | None
    target_kl: float | None
    steps: int
    seed: int
    seeds: int
    device: str
    dtype: str
    output_dir: str | None
    resume: bool
    rival_of: str | None
    gates: Any  # a list of conditions, e.g. "faithfulness >= 0.9"
    model: Any = field(metadata=PART)
    dataset: Any = field(metadata=PART)
    optimizer: Any = field(metadata=PART)
    sparsity_schedule: Any = field(metadata=PART)
    mask: Any = field(metadata=PART)
    objective: Any = field(metadata=PART)
    ablation: Any = field(metadata=PART)
    basis: Any = field(metadata=PART)
    visualizer: Any = field(metadata=PART)
    trainer: Any = field(metadata=PART)
    stability: Any = field(metadata=PART)
    controls: Any = field(metadata=PART)
    circuit: Any = field(metadata=PART)
    logger: Any = None  # logger=[] chooses none
    checkpoint_glob: str | None = None  # sweep=checkpoints


@dataclass
class PretrainSchema:
    """Types of the root keys of `conf/pretrain.yaml`."""

    name: str
    positions: int
    steps: int
    seed: int
    device: str
    tokenizer: str | None
    output_dir: str | None
    architecture: Any = field(metadata=PART)
    dataset: Any = field(metadata=PART)
    pretrainer: Any = field(metadata=PART)


@dataclass
class CompareSchema:
    """Types of the root keys of `conf/compare.yaml`. variants: {name: directory or list of them}, or a YAML file."""

    variants: Any
    baseline: str | None
    tree: str | None
    circuits: Any  # as variants, with one run each
    device: str
    dtype: str
    output_dir: str | None
    dpi: int
    variant_figures: list[Any]
    tree_figures: list[Any]
    circuit_figures: list[Any]
    logger: Any = None  # logger=[] chooses none


@dataclass
class VisualizeSchema:
    """Types of the root keys of `conf/visualize.yaml`."""

    run: str | None
    tree: str | None
    output_dir: str | None
    serve: bool
    port: int
    visualizer: Any = field(metadata=PART)


@dataclass
class EvaluateSchema:
    """Types of the root keys of `conf/evaluate.yaml`."""

    run: str | None
    device: str
    dtype: str
    batch_size: int
    output_dir: str | None
    dataset: Any = None  # the run's own


@dataclass
class ValidateSchema:
    """Types of the root keys of `conf/validate.yaml`. planted: {name: keyword arguments of a planted model}."""

    planted: Any = field(metadata=PART)
    steps: int
    seed: int
    seeds: int
    output_dir: str | None
    optimizer: Any = field(metadata=PART)
    sparsity_schedule: Any = field(metadata=PART)
    mask: Any = field(metadata=PART)
    objective: Any = field(metadata=PART)
    ablation: Any = field(metadata=PART)
    basis: Any = field(metadata=PART)
    trainer: Any = field(metadata=PART)


@dataclass
class BenchmarkSchema:
    """Types of the root keys of `conf/benchmark.yaml`. what: keyword arguments of the class that measures."""

    what: Any = field(metadata=PART)
    output_dir: str | None


def register(about: str = "") -> None:
    """Make the schemas and resolvers known to Hydra; safe to call more than once.

    about: what the program is for, as its --help begins.
    """
    store = ConfigStore.instance()
    store.store(name="analyze_schema", node=AnalyzeSchema)
    store.store(name="pretrain_schema", node=PretrainSchema)
    store.store(name="benchmark_schema", node=BenchmarkSchema)
    store.store(name="compare_schema", node=CompareSchema)
    store.store(name="evaluate_schema", node=EvaluateSchema)
    store.store(name="validate_schema", node=ValidateSchema)
    store.store(name="visualize_schema", node=VisualizeSchema)
    OmegaConf.register_new_resolver("slug", naming.slug, replace=True)
    OmegaConf.register_new_resolver("files", naming.files, replace=True)
    # cached, so that a directory stays the same for the whole job once it has been made
    OmegaConf.register_new_resolver("job_directory", naming.job_directory, replace=True, use_cache=True)
    OmegaConf.register_new_resolver("job_name", _job_name, replace=True)
    OmegaConf.register_new_resolver(
        "program_help", lambda *, _root_: program_help(about, _root_), replace=True
    )


def _job_name(sweep: str, number: int, *, _root_: DictConfig) -> str:
    """The directory of a sweep's job: its number, unless its run, or another one, is in the sweep already."""
    directory, digest = Path(sweep), None
    if directory.is_dir() and any(directory.rglob(RESULT)):
        # What is wrong with a configuration stops its own job, which also says so, and not the sweep.
        with suppress(Exception):
            digest = run_digest(_root_)
    return job_name(directory, number, digest)
