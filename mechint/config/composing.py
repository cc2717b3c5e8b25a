"""Other configurations than the job's own, composed inside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra import compose

from mechint.config.building import build_analysis, plain_config


def compose_analysis(overrides: Sequence[str]) -> tuple[Any, dict[str, Any]]:
    """The `Analysis` of conf/analyze.yaml under overrides, and its configuration in plain values."""
    config = compose("analyze", list(overrides))
    return build_analysis(config), plain_config(config)
