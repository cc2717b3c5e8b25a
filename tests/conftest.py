"""Tiny models and data that every test file may use; nothing is downloaded."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

# Before anything imports wandb, transformers or torch: no test reaches the network or fights for cores.
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MECHINT_CACHE"] = ""  # what tests tokenise is not kept

import pytest

if TYPE_CHECKING:  # the process that only hands the tests out to others need not import torch
    import torch

    from mechint.masking import MaskedModel

ROOT = Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    """Where slow tests are left out, properties are tried on fewer random examples, unless a test says on how many."""
    hands_out = config.getoption("numprocesses", None) and not hasattr(config, "workerinput")
    if config.option.markexpr == "not slow" and not hands_out:
        from hypothesis import settings

        settings.register_profile("quick", max_examples=25)
        settings.load_profile("quick")


def pytest_collection_finish() -> None:
    """What is imported stays: the collections that every run asks for need not look through it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real models and texts that lie beside the project on some machines."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"no real models and texts at {path}")
    return path


@pytest.fixture(scope="session")
def make_masked() -> Callable[[str], MaskedModel]:
    """A tiny random model of an architecture, ready to be masked."""
    from architectures import tiny_model

    from mechint.masking import MaskedModel

    return lambda name: MaskedModel(tiny_model(name))


@pytest.fixture(scope="session")
def tokens() -> torch.Tensor:
    """Token ids [B, T] within every tiny model's vocabulary."""
    import torch

    return torch.randint(3, 97, (2, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def byte_model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint directory: a tiny random Llama that reads bytes."""
    from architectures import tiny_model

    from mechint.data.byte_tokenizer import byte_tokenizer

    directory = tmp_path_factory.mktemp("checkpoints") / "tiny_bytes"
    tiny_model("llama", vocab_size=256).save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return directory
