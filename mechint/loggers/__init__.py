"""Loggers: where the numbers, figures and masks of a run are recorded."""

from mechint.loggers.group import LoggerGroup
from mechint.loggers.jsonl_logger import JsonlLogger
from mechint.loggers.logger import Logger, RunInfo
from mechint.loggers.progress import Progress
from mechint.loggers.tensorboard_logger import TensorboardLogger
from mechint.loggers.wandb_logger import WandbLogger

__all__ = [
    "JsonlLogger",
    "Logger",
    "LoggerGroup",
    "Progress",
    "RunInfo",
    "TensorboardLogger",
    "WandbLogger",
]
