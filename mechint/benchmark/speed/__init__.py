"""What a mask step costs beside the plain model: time, memory, and how both grow with the model."""

from mechint.benchmark.speed.benchmark import SpeedBenchmark

__all__ = ["SpeedBenchmark"]
