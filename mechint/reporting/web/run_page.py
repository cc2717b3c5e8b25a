"""report.html of a run: what it found, and every channel to look at."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mechint.reporting.context import Context
from mechint.reporting.report import told
from mechint.reporting.web.channels import Array, columns_of, layout, measured_points
from mechint.reporting.web.circuit import circuit_data
from mechint.reporting.web.page import PAGE, page
from mechint.results.result import MODELS
from mechint.results.run_files import RunFiles
from mechint.runtime.files import read_text, write_atomically

# Logged quantities that the page draws over the steps, in this order.
LOGGED = ("loss", "sparsity", "scheduled_sparsity", "temperature", "changed_units")
# Points of a curve; more than a screen has columns says nothing.
MOST_POINTS = 1000


def write_page(run: RunFiles) -> Path:
    """Write report.html into the run's directory."""
    path = run.directory / PAGE
    with write_atomically(path) as temporary:
        temporary.write_text(run_page(run), encoding="utf-8")
    return path


def run_page(run: RunFiles) -> str:
    """The page of a run, from its files alone."""
    context, columns = Context(run), columns_of(run)
    return page("run", "run", context_of(context), data_of(context, columns), columns)


def context_of(context: Context) -> dict[str, Any]:
    """What the template may use: what the Markdown report tells, and what only a page has room for."""
    run, result = context.run, context.result
    return {
        **told(context, []),
        "title": f"{run.model_name}: K and V {context.noun}s that matter",
        "run": run,
        "errors": any(model.loss_se is not None for model in result.metrics.values()),
        "heads": list(heads_of(run)),
        "settings": list(flattened(result.config)),
        "command": command(run),
    }


def data_of(context: Context, columns: Mapping[str, Array]) -> dict[str, Any]:
    """What the program gets; counts are units unless they say channels."""
    run, result = context.run, context.result
    return {
        "kind": "run",
        "title": run.model_name,
        "noun": context.noun,
        "layers": layout(run),
        "seeds": len(result.stability.seeds) if result.stability else 0,
        "units": {"kept": result.sparsity.kept, "total": result.sparsity.total, "name": result.mask.unit},
        "measured": measured_points(run, columns) if run.measured else [],
        "ladder": context.is_ladder,
        "losses": {name: result.metrics[name].loss for name in MODELS},
        "curves": curves(run),
        "objective": result.mask.objective,
        "target": result.sparsity.target,
        "cards": cards(run),
        "circuit": circuit_data(context),
    }


def cards(run: RunFiles) -> dict[str, Any]:
    """What single units do, by the name that the page gives to a channel; empty where that was not looked at.

    Of every unit: lists of texts by title, and contexts by title, each with the text before a token, the token and the
    number there.
    """
    return {
        f"{unit.kind}.{unit.layer}.{unit.head}.{unit.channel}": {
            "tokens": {
                "Promotes": [f"{one.token!r} {one.weight:+.3g}" for one in unit.promotes],
                "Suppresses": [f"{one.token!r} {one.weight:+.3g}" for one in unit.suppresses],
                "Pairs with the largest terms": [
                    f"{one.query!r} attends to {one.key!r}: {one.term:+.3g} nats" for one in unit.matches
                ],
            },
            "contexts": {
                title: [[one.before, one.token, one.value] for one in contexts]
                for title, contexts in (
                    ("Where the key is large", unit.keys),
                    ("Where queries for it are large", unit.queries),
                    ("Where the value is large", unit.values),
                )
            },
            "mean": unit.mean,
            "sd": unit.sd,
            "mean_share": unit.mean_share,
            "bias_share": unit.bias_share,
        }
        for unit in (run.meanings.units if run.meanings else [])
    }


def heads_of(run: RunFiles) -> Iterator[dict[str, Any]]:
    """A line for every KV head: channels kept and mean importance, K and V."""
    for layer in run.layers:
        mask = run.masks[layer.name]
        for head in range(len(mask.k_mask)):
            k, v = mask.k_mask[head], mask.v_mask[head]
            yield {
                "layer": layer.index,
                "head": head,
                "k_kept": int(k.sum()),
                "k_total": k.numel(),
                "v_kept": int(v.sum()),
                "v_total": v.numel(),
                "k_importance": float(mask.k_importance[head].mean()),
                "v_importance": float(mask.v_importance[head].mean()),
            }


def curves(run: RunFiles) -> dict[str, list[float | None]]:
    """What was logged while the mask was learned, by name; empty where a method takes no steps."""
    every = max(1, len(run.history) // MOST_POINTS)
    lines = run.history[::every]
    found = {name: [_finite(line.get(name)) for line in lines] for name in ("step", *LOGGED)}
    return {name: values for name, values in found.items() if any(value is not None for value in values)}


def _finite(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and np.isfinite(value) else None


def flattened(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting by its dotted name."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def command(run: RunFiles) -> str | None:
    """The command line that made the run; None where none was recorded."""
    try:
        given = yaml.safe_load(read_text(run.directory / ".hydra" / "overrides.yaml"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    if not isinstance(given, list) or not all(isinstance(item, str) for item in given):
        return None
    return shlex.join(["python", "experiments/analyze.py", *given])
