"""Runs made by hand whose pages are looked at: what they must show is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from comparable_runs import make_result

from mechint.masking.masks import LayerMask, MaskSet
from mechint.results import Result, RunFiles, save_masks
from mechint.results.diagram import CircuitDrawing, Example, HeadNode, Pattern, ReadEdge
from mechint.results.evidence import KindEvidence
from mechint.runtime.files import write_json

HEADS, WIDTH, LAYERS, SEEDS = 2, 8, 3, 4
NAME = "model.layers.{}.self_attn"


def scored_masks(
    kept: int, layers: int = LAYERS, heads: int = HEADS, width: int = WIDTH, name: str = NAME, seed: int = 0
) -> MaskSet:
    """The `kept` most important channels of a model of made-up, distinct importances."""
    total = layers * heads * width * 2
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    importance = (order.float() / max(1, total - 1)).view(layers, 2, heads, width)
    keep = (order >= total - kept).view(layers, 2, heads, width)
    return {
        name.replace("{}", str(i)): LayerMask(keep[i, 0], keep[i, 1], importance[i, 0], importance[i, 1])
        for i in range(layers)
    }


def scored_run(directory: Path, masks: MaskSet, **changes: Any) -> RunFiles:
    """A run of one seed with curves; changes: of result.json, part__key=value."""
    result = Result.parse(make_result(masks, **changes))
    history = [
        {
            "step": step,
            "loss": 3 - step / 10,
            "sparsity": step / 20,
            "scheduled_sparsity": step / 20,
            "changed_units": 20 - step,
        }
        for step in range(11)
    ]
    return RunFiles(directory, result, masks, history)


def nested_run(directory: Path, kept: tuple[int, ...] = (40, 24, 12)) -> RunFiles:
    """A run for several targets, whose own runs are in directories below it."""
    points = []
    for number, count in enumerate(kept):
        masks = scored_masks(count)
        sparsity = 1 - count / 96
        part = directory / f"sparsity_{sparsity:.3f}"
        part.mkdir(parents=True, exist_ok=True)
        content = make_result(masks, loss=1.5 + number / 4)
        write_json(part / "result.json", content)
        save_masks(masks, part, {})
        points.append(
            {
                "directory": part.name,
                "target": sparsity,
                "achieved": sparsity,
                "kept": count,
                "total": 96,
                "metrics": content["metrics"],
                "faithfulness": content["faithfulness"],
            }
        )
    return scored_run(directory, scored_masks(kept[-1]), loss=1.5 + (len(kept) - 1) / 4, nested=points)


def seeds_run(directory: Path) -> RunFiles:
    """A run of several seeds, with how often each channel is kept and what it is worth."""
    masks = scored_masks(24)
    generator = torch.Generator().manual_seed(5)
    evidence = {}
    for position, layer in enumerate(masks):
        for kind in ("k", "v"):
            keep = getattr(masks[layer], f"{kind}_mask")
            frequency = torch.where(
                keep, torch.ones(1), torch.randint(0, SEEDS, keep.shape, generator=generator) / SEEDS
            )
            rise = torch.where(keep, torch.rand(keep.shape, generator=generator), torch.nan)
            unit = torch.arange(keep.numel()).view(keep.shape) + (2 * position + (kind == "v")) * keep.numel()
            known = {"frequency": frequency, "necessity": rise, "necessity_error": rise / 10, "unit": unit}
            rest = {name: rise for name in KindEvidence.__dataclass_fields__ if name not in known}
            evidence[layer, kind] = KindEvidence(**known, **rest)
    stability = {
        "seeds": list(range(SEEDS)),
        "iou": {"mean": 0.5, "min": 0.4, "max": 0.6, "chance": 0.2},
        "frequency_histogram": [40, 20, 10, 10, 16],
        "frequency_histogram_chance": [40.0, 30.0, 16.0, 8.0, 2.0],
        "single": {"kl": [1.0] * SEEDS, "loss": [2.0] * SEEDS, "kl_mean": 1.0},
        "consensus": {"kl": 0.9, "loss": 1.9, "units": 24, "unanimous_units": 16},
    }
    run = scored_run(directory, masks, stability=stability)
    return RunFiles(directory, run.result, masks, [], evidence)


TOKENS = ["When", " Mary", " and", "\n", " gave"]


def attention_rows(tokens: int, seed: int) -> list[list[float]]:
    """Weights [T][T] of which every row adds up to 1, as files have them."""
    scores = torch.randn(tokens, tokens, generator=torch.Generator().manual_seed(seed))
    seen = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    weights: list[list[float]] = scores.masked_fill(~seen, -torch.inf).softmax(-1).tolist()
    return [[round(weight, 4) for weight in row] for row in weights]


def circuit_drawing(
    masks: MaskSet, tokens: list[str] = TOKENS, prompts: int = 2, heads: int = 2
) -> CircuitDrawing:
    """Every head with kept channels, arrows of each kind, and some heads' attention on some prompts."""
    counts = {
        (layer, head): (int(mask.k_mask[head].sum()), int(mask.v_mask[head].sum()))
        for layer, mask in enumerate(masks.values())
        for head in range(len(mask.k_mask))
    }
    return CircuitDrawing(
        nodes=[
            HeadNode(layer=layer, head=head, k_kept=k, v_kept=v)
            for (layer, head), (k, v) in counts.items()
            if k or v
        ],
        edges=[
            ReadEdge(source=(0, 1), target=(1, 0), kind="q", score=0.3125),
            ReadEdge(source=(0, 0), target=(2, 1), kind="k", score=0.25),
            ReadEdge(source=(1, 0), target=(2, 0), kind="v", score=0.125),
        ],
        chance=0.0625,
        examples=[
            Example(
                tokens=[*tokens, f"<{number}>"],
                patterns=[
                    Pattern(
                        layer=layer,
                        query_head=3,
                        dense=attention_rows(len(tokens) + 1, 10 * number + layer),
                        masked=attention_rows(len(tokens) + 1, 100 + 10 * number + layer),
                    )
                    for layer in range(1, heads + 1)
                ],
            )
            for number in range(prompts)
        ],
        notes=["a note on the drawing"],
    )


def task_run(directory: Path) -> RunFiles:
    """A run on a task: a circuit with its curve, a drawing of its heads, and gates."""
    masks = scored_masks(40)

    def point(kept: int, faithfulness: float) -> dict[str, Any]:
        ends = [faithfulness - 0.1, faithfulness + 0.1]
        return {
            "share": kept / 96,
            "kept": kept,
            "kl": 0.5,
            "accuracy": 0.75,
            "logit_diff": 2.0,
            "faithfulness": faithfulness,
            "faithfulness_interval": ends,
            "completeness": 1 - faithfulness,
            "completeness_interval": [0.0, 1.0],
        }

    circuit = {
        "prompts": 12,
        "ablation": "counterfactual",
        "faithfulness": 0.875,
        "completeness": 0.125,
        "masked": {"logit_diff": 3.25, "accuracy": 0.75, "kl": 0.5, "kl_median": 0.25, "kl_p95": 1.5},
        "ablations": [{"ablation": "zero", "faithfulness": 0.5}, {"ablation": "counterfactual"}],
        "curve": [point(0, 0.0), point(5, 0.25), point(40, 0.875), point(96, 1.0)],
        "minimality": {"parts": 9, "tested": 3, "prompts": 4, "needed": 2, "harmful": 1},
    }
    gates = [
        {"gate": "faithfulness >= 0.8", "value": 0.875, "passed": True},
        {"gate": "seed_iou >= 0.7", "value": None, "passed": False},
    ]
    run = scored_run(
        directory,
        masks,
        task={
            "name": "ioi",
            "prompts": {"evaluation": 12},
            "example": {"clean": "When Mary", "right": " Mary"},
        },
        circuit=circuit,
        verdict={"overall": "NO_GO", "gates": gates},
    )
    return replace(run, drawing=circuit_drawing(masks))
