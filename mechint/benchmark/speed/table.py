"""The measurements as one table."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch

Record = dict[str, Any]


def machine(device: torch.device, threads: int) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or 'CPU'}, {threads} thread{'s' if threads > 1 else ''}"


def table(record: Record) -> str:
    """What was measured, as Markdown."""
    where = f"{record['machine']}, torch {record['versions']['torch']}, {record['finished'][:10]}"
    lines = [
        f"{where}; median (least to greatest)",
        "",
        "| model | step | seconds | times plain | beside the model, ms | tokens/s | used of peak | peak memory, MiB "
        "| times plain |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in record["rows"]:
        used, peak, peak_ratio = (row[key] for key in ("used_of_peak", "peak_bytes", "peak_ratio"))
        cells = [
            f"{row['model']}, {row['dtype']}",
            row["step"],
            _range(row["seconds"], 3),
            _range(row["ratio"], 2),
            "-" if row["beside_the_model_ms"] is None else _range(row["beside_the_model_ms"], 1),
            f"{row['tokens_per_second']:,.0f}",
            "-" if used is None else f"{100 * used:.0f} %",
            "-" if peak is None else f"{peak / 2**20:,.0f}",
            "-" if peak_ratio is None else f"{peak_ratio:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _range(values: Record, digits: int) -> str:
    median_, least, greatest = (f"{values[key]:.{digits}f}" for key in ("median", "least", "greatest"))
    return f"{median_} ({least} to {greatest})"
