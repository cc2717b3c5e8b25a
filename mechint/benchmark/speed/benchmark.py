"""Time and memory of a mask step relative to a plain step, measured side by side."""

from __future__ import annotations

import gc
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

from mechint.analysis.describing import now, package_versions
from mechint.benchmark.speed.meters import alternate, extra_bytes
from mechint.benchmark.speed.models import make_model, step_flops
from mechint.benchmark.speed.steps import Steps
from mechint.benchmark.speed.table import machine, table
from mechint.errors import UserError
from mechint.runtime.device import pick_device
from mechint.runtime.files import write_atomically, write_json

Record = dict[str, Any]


@dataclass(kw_only=True)
class SpeedBenchmark:
    """Alternates plain and masked steps in this process and prints their ratios.

    models: checkpoints, or names of `mechint.benchmark.speed.models.SHAPES`. batch_size, sequence_length: B and T.
    repeats: how often all steps are repeated. threads: of the CPU. peak_tflops: what the device can do in this
    dtype, for the share of it that is used. compile: also measure steps that go through torch.compile.
    """

    models: list[str] = field(default_factory=lambda: ["smollm2_135m", "bundled:baseline", "bundled:llama"])
    batch_size: int = 4
    sequence_length: int = 256
    repeats: int = 5
    threads: int = 1
    device: str = "auto"
    dtype: str = "auto"
    peak_tflops: float | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        if min(self.batch_size, self.sequence_length, self.repeats, self.threads, len(self.models)) < 1:
            raise UserError(
                "what.models, batch_size, sequence_length, repeats and threads must be at least 1 each"
            )

    def run(self, output_dir: Path, config: Record) -> Record:
        """Measure every model, leave `benchmark.json` and `speed.md`, and return what is in the first."""
        device = pick_device(self.device)
        threads = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            rows = [row for name in self.models for row in self._model(name, device)]
        finally:
            torch.set_num_threads(threads)
        record = {
            "config": config,
            "machine": machine(device, self.threads),
            "finished": now(),
            "versions": package_versions(),
            "rows": rows,
        }
        write_json(output_dir / "benchmark.json", record)
        with write_atomically(output_dir / "speed.md") as path:
            path.write_text(table(record), encoding="utf-8")
        return record

    def table(self, record: Record) -> str:
        """What was measured, as Markdown."""
        return table(record)

    def _model(self, name: str, device: torch.device) -> list[Record]:
        model = make_model(name, device, self.dtype)
        steps = Steps(model, self.batch_size, self.sequence_length, self.compile)
        seconds = alternate(steps.all, self.repeats, device)
        beside = None if device.type == "cuda" else steps.beside_the_model(self.repeats)
        bytes_ = {step: extra_bytes(function, device) for step, function in steps.all.items()}
        flops = step_flops(model, self.batch_size, self.sequence_length)
        tokens = self.batch_size * self.sequence_length
        rows = []
        for step, values in seconds.items():
            ratios = [value / plain for value, plain in zip(values, seconds["plain"], strict=True)]
            peak, plain_peak = bytes_[step], bytes_["plain"]
            rows.append(
                {
                    "model": name,
                    "dtype": str(model.dtype).removeprefix("torch."),
                    "step": step,
                    "seconds": spread(values),
                    "ratio": spread(ratios),
                    "tokens_per_second": tokens / median(values),
                    "used_of_peak": self.peak_tflops and flops / median(values) / (1e12 * self.peak_tflops),
                    "peak_bytes": peak,
                    "peak_ratio": peak / plain_peak if peak is not None and plain_peak else None,
                    "beside_the_model_ms": spread(beside) if beside and step == "nll" else None,
                }
            )
        del model, steps
        gc.collect()
        return rows


def spread(values: list[float]) -> Record:
    """Median, least and greatest."""
    return {"median": median(values), "least": min(values), "greatest": max(values)}
