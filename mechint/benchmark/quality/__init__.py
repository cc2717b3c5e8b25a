"""Mask methods compared: what is run, what it cost, tables and figures."""

from mechint.benchmark.quality.quality import QualityBenchmark

__all__ = ["QualityBenchmark"]
