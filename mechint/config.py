"""Everything that knows about Hydra and OmegaConf: schema, resolvers, building objects, errors.

The rest of the package takes plain typed values and works without Hydra.
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mechint.errors import UserError

# Hydra 1.5 drops the keyword; it is named in this one place.
VERSION_BASE = "1.3"

# Nothing outside these modules is ever built from a configuration.
ALLOWED_TARGETS = ("mechint.", "torch.optim.")

log = logging.getLogger(__name__)


@dataclass
class AnalyzeSchema:
    """Types of the root keys of `conf/analyze.yaml`; groups hold the keyword arguments of one class each."""

    checkpoint: str
    target_sparsity: float
    steps: int
    seed: int
    device: str
    dtype: str
    output_dir: str | None
    model: Any
    dataset: Any
    optimizer: Any
    sparsity_schedule: Any
    mask: Any
    objective: Any
    logger: Any
    visualizer: Any
    trainer: Any


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
    architecture: Any
    dataset: Any
    pretrainer: Any


def register() -> None:
    """Make the schemas and resolvers known to Hydra; safe to call more than once."""
    store = ConfigStore.instance()
    store.store(name="analyze_schema", node=AnalyzeSchema)
    store.store(name="pretrain_schema", node=PretrainSchema)
    OmegaConf.register_new_resolver("slug", slug, replace=True)
    OmegaConf.register_new_resolver("files", files, replace=True)
    # cached, so that the directory stays the same for the whole job once it has been made
    OmegaConf.register_new_resolver("job_directory", job_directory, replace=True, use_cache=True)


def slug(text: str) -> str:
    """A short name of a path, URL or hub id that is safe in a directory name."""
    path = Path(re.sub(r"^bundled:", "", str(text)))
    generic = {"model", "ckpt", "checkpoint", "pytorch_model"}
    name = path.stem if path.suffix in {".pt", ".pth", ".safetensors", ".gguf"} else path.name
    if name in generic and path.parent.name:
        name = path.parent.name
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._") or "model"


def job_directory(wanted: str | None, otherwise: str) -> str:
    """The directory asked for; where none was, `otherwise`, with -2, -3, ... when that exists.

    Two runs started in the same second do not share a directory.
    """
    if wanted:
        return wanted
    candidate, number = otherwise, 2
    while Path(candidate).exists():
        candidate, number = f"{otherwise}-{number}", number + 1
    return candidate


def files(pattern: str) -> str:
    """The files that match a glob, in natural order, quoted for Hydra's sweep grammar.

    Raises UserError when nothing matches, where Hydra would silently start no job at all.
    """
    names = sorted(glob(os.path.expanduser(pattern), recursive=True), key=_natural)  # noqa: PTH111, PTH207
    if not names:
        raise UserError(f"no file matches checkpoint_glob={pattern!r}; check the path, relative to {Path.cwd()}")
    return ",".join("'" + name.replace("\\", "\\\\").replace("'", "\\'") + "'" for name in names)


def _natural(name: str) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", name)
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts]


def build(node: Any, **runtime: Any) -> Any:
    """Build the object a configuration node describes; keyword arguments given here are added to the node's.

    Only classes of this package and torch's optimizers are allowed. Raises UserError for others, and for keys the class does not know.
    """
    check(node)
    return instantiate(node, **runtime, _convert_="all")


def check(node: Any, path: str = "") -> None:
    """Check every `_target_` below a node: allowed, existing, and with no unknown keyword argument."""
    if isinstance(node, ListConfig):
        for number, item in enumerate(node):
            check(item, f"{path}[{number}]")
    if not isinstance(node, DictConfig) or node._is_missing() or node._is_none():
        return
    for key in node:
        if not OmegaConf.is_missing(node, key):
            check(node[key], f"{path}.{key}" if path else str(key))
    target = node.get("_target_")
    if target is None:
        return
    if not str(target).startswith(ALLOWED_TARGETS):
        raise UserError(f"{path or 'config'}: _target_ {target} is not allowed; use a class of mechint or torch.optim")
    keywords = {str(key): None for key in node if not str(key).startswith("_")}
    try:
        inspect.signature(get_object(str(target))).bind_partial(**keywords)
    except TypeError as error:
        raise UserError(f"{path or 'config'}: {error} ({target}); see conf/ for the known keys") from error


def build_analysis(config: DictConfig) -> Any:
    """The `Analysis` that a composed `conf/analyze.yaml` describes."""
    from mechint.analysis import Analysis  # here, so that showing a configuration does not import torch

    return Analysis(
        checkpoint=config.checkpoint,
        target_sparsity=config.target_sparsity,
        steps=config.steps,
        seed=config.seed,
        device=config.device,
        dtype=config.dtype,
        loader=build(config.model),
        dataset=build(config.dataset),
        method=build(config.mask),
        objective=build(config.objective),
        make_optimizer=build(config.optimizer, _partial_=True),
        schedule=build(config.sparsity_schedule),
        trainer=build(config.trainer),
        visualizer=build(config.visualizer),
        loggers=[build(sink) for sink in config.logger.sinks.values()],
    )


def plain_config(config: DictConfig) -> dict[str, Any]:
    """The resolved configuration as plain dictionaries and lists."""
    container = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def output_directory() -> Path:
    """The directory of the current Hydra job."""
    return Path(HydraConfig.get().runtime.output_dir)


def choice(group: str) -> str:
    """Which option of a configuration group the current Hydra job uses."""
    return str(HydraConfig.get().runtime.choices.get(group))


def sweep_name() -> str | None:
    """What the runs of one multirun have in common, None in a single run."""
    return Path(HydraConfig.get().sweep.dir).name if is_sweep() else None


def is_sweep() -> bool:
    """Whether the current Hydra job is one of a multirun."""
    return HydraConfig.get().mode == RunMode.MULTIRUN


def entry(task: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """Report a user's error in a single run as one line with exit code 2; in a sweep, let Hydra go on with the others."""

    @functools.wraps(task)
    def run(config: DictConfig) -> Any:
        try:
            return task(config)
        except UserError as error:
            if is_sweep():
                raise
            fail(error)

    return run


def launch(main: Callable[[], Any]) -> None:
    """Run a Hydra main function; configuration errors become one line with exit code 2."""
    register()
    wanted_trace = "HYDRA_FULL_ERROR" in os.environ
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        main()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        if wanted_trace:
            raise
        fail(error)


def fail(error: Exception) -> None:
    """Print an error as one line and leave with exit code 2."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    print(f"error: {' '.join(lines)}", file=sys.stderr)
    raise SystemExit(2)
