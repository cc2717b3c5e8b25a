"""What the page of a run on a task gets to draw its circuit from."""

from __future__ import annotations

from typing import Any

from mechint.reporting.context import Context
from mechint.results.circuit import CircuitPoint
from mechint.results.diagram import CircuitDrawing, Example

SCORES = ("faithfulness", "completeness")
PARTS = 10_000  # as many as the files have digits for


def circuit_data(context: Context) -> dict[str, Any] | None:
    """Curve, heads, edges and attention of the circuit; None for runs without a task."""
    result = context.result
    if result.task is None:
        return None
    drawing = context.run.drawing or CircuitDrawing()
    heads = {layer.index: len(context.run.masks[layer.name].k_mask) for layer in context.layers}
    # A file of another run may have been put here: the page draws what this model has.
    nodes = [(node.layer, node.head) for node in drawing.nodes if node.head < heads.get(node.layer, 0)]
    return {
        "curve": [curve_point(point) for point in result.circuit.curve] if result.circuit else [],
        "nodes": nodes,
        "edges": [
            [*edge.source, *edge.target, edge.kind, edge.score]
            for edge in drawing.edges
            if edge.source in nodes and edge.target in nodes
        ],
        "chance": drawing.chance,
        "examples": [example_data(example) for example in drawing.examples],
    }


def curve_point(point: CircuitPoint) -> dict[str, Any]:
    """A circuit of the curve: its size, and both scores with their intervals."""
    found: dict[str, Any] = {"share": point.share, "kept": point.kept}
    for name in SCORES:
        low, high = getattr(point, f"{name}_interval") or (None, None)
        found[name] = {"y": getattr(point, name), "low": low, "high": high}
    return found


def example_data(example: Example) -> dict[str, Any]:
    """One prompt's tokens and patterns; a token attends to itself and to earlier ones, and rows end there."""
    return {
        "tokens": example.tokens,
        "patterns": [
            {
                "layer": one.layer,
                "head": one.query_head,
                "dense": triangle(one.dense),
                "masked": triangle(one.masked),
            }
            for one in example.patterns
        ],
    }


def triangle(rows: list[list[float]]) -> list[list[int]]:
    """Rows of attention [T][T] up to the token itself, in parts of PARTS, which take less room than fractions."""
    return [[round(PARTS * weight) for weight in row[: number + 1]] for number, row in enumerate(rows)]
