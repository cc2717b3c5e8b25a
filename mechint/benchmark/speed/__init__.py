"""Cost of a mask step relative to the plain model: time, memory, and how both grow with the model."""

from mechint.benchmark.speed.benchmark import SpeedBenchmark

__all__ = ["SpeedBenchmark"]
