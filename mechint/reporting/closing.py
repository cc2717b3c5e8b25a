"""The last lines that a run prints."""

from __future__ import annotations

from pathlib import Path

from mechint.reporting.wording import interval, measured, number
from mechint.results.result import MODELS, DatasetInfo, Metrics, Result

# To read and to look at, in this order.
PAGES = ("circuit_analysis_report.md", "report.html")


def summary_lines(result: Result, output_dir: Path) -> list[str]:
    """What a run found and where to look, for the end of its terminal output."""
    sparsity, metrics, random = result.sparsity, result.metrics, result.random_masks
    losses = ", ".join(f"{name} {measured(metrics[name].loss, metrics[name].loss_se)}" for name in MODELS)
    nested = [
        f"sparsity {point.achieved:.4f}: kept {point.kept}, loss {number(point.metrics.masked.loss)}, "
        f"KL {number(point.metrics.masked.kl)}"
        for point in result.nested or []
    ]
    chance = "" if random is None else f"; matched random masks {number(random.kl_mean, 3)}"
    verdict = result.verdict.not_learned if result.verdict else []
    return [
        *nested,
        f"kept {sparsity.kept} of {sparsity.total} units: sparsity {sparsity.achieved:.4f}, "
        f"K {sparsity.k.kept} of {sparsity.k.total}, V {sparsity.v.kept} of {sparsity.v.total}",
        f"evaluation loss in nats per token: {losses}; faithfulness "
        + (
            "undefined"
            if result.faithfulness is None
            else measured(result.faithfulness, result.faithfulness_se)
        ),
        f"KL to dense: masked {measured(metrics.masked.kl, metrics.masked.kl_se)}, complement "
        f"{measured(metrics.complement.kl, metrics.complement.kl_se)}{chance}",
        *circuit_lines(result),
        *(f"not the mask that learning arrives at: {reason}" for reason in verdict),
        *target_lines(result),
        *places(output_dir),
    ]


def target_lines(result: Result) -> list[str]:
    """What a search for the smallest mask found."""
    target = result.target
    if target is None or target.achieved is None or target.interval is None:
        return []
    low, high = target.interval
    missed = ", outside of the target" if target.told_apart else ""
    where = "evaluation data" if target.highest is None else f"{target.sequences} evaluation prompts"
    return [
        f"asked for {target.in_words}: {target.units} units reach {number(target.achieved, 3)} on {where} "
        f"(95 % interval {number(low, 3)} to {number(high, 3)}{missed}); {target.runs} masks tried"
    ]


def places(output_dir: Path) -> list[str]:
    """Where to look, as far as there is something."""
    lines = [f"report: {output_dir / name}" for name in PAGES if (output_dir / name).is_file()]
    pictures = any(path.suffix in (".png", ".pdf", ".svg") for path in output_dir.iterdir())
    return [*lines, f"figures: {output_dir}"] if pictures else lines


def circuit_lines(result: Result) -> list[str]:
    """What a run on a task found, and how its gates went."""
    circuit, verdict, lines = result.circuit, result.verdict, []
    if circuit is not None and result.task is not None:
        differences = ", ".join(
            f"{name} {number(getattr(circuit, name).logit_diff, 3)}" for name in ("dense", "empty", "masked")
        )
        found = (
            f"faithfulness {number(circuit.faithfulness, 3)}{interval(circuit.faithfulness_interval)}, "
            f"CMD {number(circuit.cmd.value, 3)}"
        )
        if not circuit.tells:
            found = "the dense model is not distinguished from the empty one, so there is no circuit to find"
        lines.append(
            f"task {result.task.name}, {circuit.ablation} ablation: logit difference {differences}; {found}"
        )
    if verdict is not None and verdict.overall is not None:
        told = ", ".join(f"{gate.gate} {'PASS' if gate.passed else 'FAIL'}" for gate in verdict.gates)
        lines.append(f"gates: {told}: {verdict.overall}")
    return lines


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
