"""From configuration nodes to objects, and to plain values."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from mechint.config.fitting import misfit, parameter_kinds
from mechint.errors import UserError
from mechint.results.identity import config_digest

# Nothing outside these modules is ever built from a configuration.
ALLOWED_TARGETS = ("mechint.", "torch.optim.")


def build(node: Any, **runtime: Any) -> Any:
    """Build the object a configuration node describes; keyword arguments given here are added to the node's.

    Only classes of this package and torch's optimizers are allowed. Raises UserError for others, and for keys
    that the class does not know.
    """
    check(node, str(node._get_full_key(None) or "") if isinstance(node, DictConfig) else "")
    try:
        return instantiate(node, **runtime, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        while isinstance(cause, InstantiationException):
            cause = cause.__cause__
        if isinstance(cause, UserError):  # our own words say enough
            raise cause from error
        raise


def check(node: Any, path: str = "") -> None:
    """Check every `_target_` below a node: allowed, existing, and with no unknown keyword argument."""
    if isinstance(node, ListConfig):
        for number, item in enumerate(node):
            check(item, f"{path}[{number}]")
    if not isinstance(node, DictConfig) or node._is_missing() or node._is_none():
        return
    for key in node:
        if not OmegaConf.is_missing(node, key):
            check(node[key], f"{path}.{key!s}" if path else str(key))
    target = node.get("_target_")
    if target is None:
        return
    if not str(target).startswith(ALLOWED_TARGETS):
        raise UserError(
            f"{path or 'config'}: _target_ {target} is not allowed; use a class of mechint or torch.optim"
        )
    keywords = dict.fromkeys(_keywords(node))
    try:
        made = _class(str(target))
        inspect.signature(made).bind_partial(**keywords)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{path or 'config'}: there is no class {target}; see conf/ for those there are"
        ) from error
    except TypeError as error:
        raise UserError(f"{path or 'config'}: {error} ({target}); see conf/ for the known keys") from error
    if str(target).startswith("mechint."):
        _check_kinds(node, parameter_kinds(made), path)


def _class(path: str) -> Any:
    """What a class path names; unlike Hydra's own function it does not log what it cannot find."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except AttributeError as error:
        raise ImportError(path) from error


def _keywords(node: DictConfig) -> list[str]:
    """The keys of a node that are keyword arguments."""
    return [str(key) for key in node if not str(key).startswith("_")]


def _check_kinds(node: DictConfig, kinds: dict[str, Any], path: str) -> None:
    """Raise UserError for a value that is not what the class annotates."""
    for key in _keywords(node):
        if key not in kinds or OmegaConf.is_missing(node, key):
            continue
        if expected := misfit(node[key], kinds[key]):
            value = "null" if node[key] is None else node[key]
            raise UserError(f"{path}.{key}={value} must be {expected}".lstrip("."))


def build_analysis(config: DictConfig) -> Any:
    """The `Analysis`, of one or several seeds or targets, that a composed `conf/analyze.yaml` describes."""
    # Here, so that showing a configuration does not import torch.
    from mechint.analysis.attempt import Outputs
    from mechint.analysis.preparation import Inputs
    from mechint.api import make_analysis

    target = config.target_sparsity
    return make_analysis(
        inputs=Inputs(
            checkpoint=config.checkpoint,
            loader=build(config.model),
            dataset=build(config.dataset),
            device=config.device,
            dtype=config.dtype,
        ),
        recipe=build_recipe(config),
        trainer=build(config.trainer),
        outputs=Outputs(
            visualizer=build(config.visualizer),
            loggers=[build(sink) for sink in ((config.logger or {}).get("sinks") or {}).values()],
        ),
        target_sparsity=OmegaConf.to_container(target) if isinstance(target, ListConfig) else target,
        seed=config.seed,
        seeds=config.seeds,
        stability=build(config.stability),
    )


def build_recipe(config: DictConfig) -> Any:
    """The `Recipe` of a composed configuration."""
    from mechint.learning.recipe import Recipe  # here, so that showing a configuration does not import torch

    return Recipe(
        method=build(config.mask),
        objective=build(config.objective),
        ablation=build(config.ablation),
        basis=build(config.basis),
        make_optimizer=build(config.optimizer, _partial_=True),
        schedule=build(config.sparsity_schedule),
        steps=config.steps,
    )


def plain_config(config: DictConfig, resolve: bool = True) -> dict[str, Any]:
    """The configuration as plain dictionaries and lists, resolved unless that is not possible."""
    container = OmegaConf.to_container(config, resolve=resolve, throw_on_missing=resolve)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def run_config(config: DictConfig) -> dict[str, Any]:
    """The resolved configuration of an analysis, from one that also holds Hydra's own settings."""
    config = config.copy()
    OmegaConf.set_readonly(config, False)
    OmegaConf.set_struct(config, False)
    config.pop("hydra", None)
    return plain_config(config)


def run_digest(config: DictConfig) -> str:
    """What names an analysis: see `mechint.results.identity.config_digest`.

    Reads the checkpoint's files, but does not load the model. Raises UserError where there is no checkpoint.
    """
    return config_digest(run_config(config), build(config.model).fingerprint(config.checkpoint))
