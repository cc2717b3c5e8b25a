"""The last lines that a run prints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def summary_lines(record: Mapping[str, Any], output_dir: Path) -> list[str]:
    """What a run found and where to look, for the end of its terminal output."""
    sparsity, metrics = record["sparsity"], record["metrics"]
    losses = ", ".join(f"{name} {metrics[name]['loss']:.4f}" for name in ("dense", "empty", "masked"))
    faithful = record["faithfulness"]
    nested = [
        f"sparsity {point['achieved']:.4f}: kept {point['kept']}, loss {point['metrics']['masked']['loss']:.4f}, "
        f"KL {point['metrics']['masked']['kl']:.4f}"
        for point in record.get("nested") or []
    ]
    return [
        *nested,
        f"kept {sparsity['kept']} of {sparsity['total']} units: sparsity {sparsity['achieved']:.4f}, "
        f"K {sparsity['k']['kept']} of {sparsity['k']['total']}, V {sparsity['v']['kept']} of {sparsity['v']['total']}",
        f"evaluation loss in nats per token: {losses}; KL {metrics['masked']['kl']:.4f}; faithfulness "
        + ("undefined" if faithful is None else f"{faithful:.3f}"),
        f"report: {output_dir / 'circuit_analysis_report.md'}",
        f"figures: {output_dir}/*.png",
    ]
