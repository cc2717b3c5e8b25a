"""What makes two runs the same run: the configuration that decides their numbers, and its digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from mechint.runtime.files import plain

# Keys that say where results go and how they are shown, not what is computed.
PRESENTATION_KEYS = frozenset(
    {"output_dir", "logger", "visualizer", "resume", "checkpoint_glob", "trainer.save_every"}
)

# Keys about several seeds; they have no effect for one.
STABILITY_KEYS = frozenset({"seeds", "stability"})


def deciding(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without keys that change no number: where results go, how they are shown.

    For a single seed there is nothing to say about several, so that it is the same run with or without those keys.
    """
    return _without(config, PRESENTATION_KEYS | (STABILITY_KEYS if config.get("seeds", 1) == 1 else set()))


def _without(config: Mapping[str, Any], keys: frozenset[str], path: str = "") -> dict[str, Any]:
    return {
        key: _without(value, keys, f"{path}{key}.") if isinstance(value, Mapping) else value
        for key, value in config.items()
        if f"{path}{key}" not in keys
    }


def config_digest(config: Mapping[str, Any], checkpoint_fingerprint: str) -> str:
    """Digest of everything that decides a run's numbers: its configuration and the checkpoint it read.

    The checkpoint's path is left out: the same checkpoint under another name gives the same digest.
    """
    content = deciding(config)
    text = json.dumps(plain({**content, "checkpoint": checkpoint_fingerprint}), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
