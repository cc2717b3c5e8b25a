"""The last lines that a run prints."""

from __future__ import annotations

from pathlib import Path

from mechint.reporting.wording import number
from mechint.results.result import MODELS, DatasetInfo, Metrics, Result


def summary_lines(result: Result, output_dir: Path) -> list[str]:
    """What a run found and where to look, for the end of its terminal output."""
    sparsity, metrics = result.sparsity, result.metrics
    losses = ", ".join(
        f"{name} {number(model.loss)}"
        for name, model in (("dense", metrics.dense), ("empty", metrics.empty), ("masked", metrics.masked))
    )
    faithful = result.faithfulness
    nested = [
        f"sparsity {point.achieved:.4f}: kept {point.kept}, loss {number(point.metrics.masked.loss)}, "
        f"KL {number(point.metrics.masked.kl)}"
        for point in result.nested or []
    ]
    return [
        *nested,
        f"kept {sparsity.kept} of {sparsity.total} units: sparsity {sparsity.achieved:.4f}, "
        f"K {sparsity.k.kept} of {sparsity.k.total}, V {sparsity.v.kept} of {sparsity.v.total}",
        f"evaluation loss in nats per token: {losses}; KL {number(metrics.masked.kl)}; faithfulness "
        + ("undefined" if faithful is None else f"{faithful:.3f}"),
        f"report: {output_dir / 'circuit_analysis_report.md'}",
        f"figures: {output_dir}/*.png",
    ]


def evaluation_table(data: DatasetInfo, metrics: Metrics, faithful: float | None) -> str:
    """What a mask does on some data, one line for each of the four models."""
    columns = {"loss": "loss", "perplexity": "perplexity", "bits_per_byte": "bits/byte", "kl": "KL"}
    names = columns | {"top1_agreement": "same top token"}
    rows = [["", *names.values()]]
    rows += [[name, *(number(getattr(metrics[name], key)) for key in names)] for name in MODELS]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    data_line = f"{data.name}: {data.evaluation_tokens} evaluation tokens; loss and KL in nats per token"
    return "\n".join([data_line, *lines, f"faithfulness {number(faithful)}"])
