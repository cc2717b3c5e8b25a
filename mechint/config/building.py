"""From configuration nodes to objects, and to plain values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra import compose
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from mechint.config.checking import check, check_keys, nothing_to_build
from mechint.errors import UserError
from mechint.results.identity import config_digest


def build(node: Any, **runtime: Any) -> Any:
    """Build the object a configuration node describes; keyword arguments given here are added to the node's.

    Only classes of this package and torch's optimizers are allowed. Raises UserError for others, for keys that the
    class does not know, and for a node that names no class.
    """
    path = str(node._get_full_key(None) or "") if isinstance(node, DictConfig) else ""
    check(node, path)
    if not isinstance(node, DictConfig) or node.get("_target_") is None:
        raise nothing_to_build(path, node)
    try:
        return instantiate(node, **runtime, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        while isinstance(cause, InstantiationException):
            cause = cause.__cause__
        if isinstance(cause, UserError):  # our own words say enough
            raise cause from error
        raise


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
        target_faithfulness=config.target_faithfulness,
        target_kl=config.target_kl,
        seed=config.seed,
        seeds=config.seeds,
        stability=build(config.stability),
        controls=build(config.controls),
        circuit=build(config.circuit),
        rival_of=config.rival_of,
        gates=OmegaConf.to_container(config.gates) if isinstance(config.gates, ListConfig) else config.gates,
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


def compose_analysis(overrides: Sequence[str]) -> tuple[Any, dict[str, Any]]:
    """The `Analysis` of conf/analyze.yaml under overrides, composed inside another job, and its plain configuration."""
    config = compose("analyze", list(overrides))
    check_keys(config)
    return build_analysis(config), plain_config(config)


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
