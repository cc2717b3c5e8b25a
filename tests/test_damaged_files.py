"""Every format we read, with bytes changed or cut off: refused in one line or read, never a traceback or a hang."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_data import BYTES
from tiny_checkpoints import CPU, nanogpt_weights, save_llama, save_nanogpt, tiny_llama, write_gguf

from mechint import analyze
from mechint.checkpoints import CheckpointLoader
from mechint.data import PythonDocs, TextFiles, TokenFiles
from mechint.errors import UserError
from mechint.imports.leank import read_leank
from mechint.imports.old_results import read_old_run
from mechint.learning.resume import SavedStates
from mechint.methods import TopK
from mechint.reporting import LayerImportance, Visualizer
from mechint.reporting.redrawing import redraw_run
from mechint.results import load_masks, save_masks
from mechint.runtime.memory import held_bytes, peak_bytes


def checkpoint(path: Path) -> None:
    CheckpointLoader().load(str(path), CPU, "auto")


def text(path: Path) -> None:
    TextFiles(path=str(path), sequence_length=8, calibration_tokens=64, evaluation_tokens=64).load(
        BYTES, "bytes", 256, 64, 0
    )


def token_file(path: Path) -> None:
    TokenFiles(path=str(path), sequence_length=8, calibration_tokens=64, evaluation_tokens=64).load(
        None, "none", 300, 64, 0
    )


def states(path: Path) -> None:
    SavedStates(path.parents[1], "digest").newest()


def drawn(path: Path) -> None:
    redraw_run(path.parent, Visualizer([]), path.parent / "again")


def make_states(path: Path) -> None:
    SavedStates(path.parents[1], "digest").save(
        3, {"parts": {"scores": torch.zeros(4)}, "list": [1, 2.0, "x"]}
    )


def make_run(path: Path) -> None:
    data = PythonDocs(sequence_length=32, calibration_tokens=512, evaluation_tokens=256)
    model = save_llama(path.parents[1] / "model")
    analyze(
        str(model),
        path.parent,
        steps=2,
        dataset=data,
        method=TopK(finishing_trials=0),
        visualizer=Visualizer([]),
    )


FORMATS: dict[str, tuple[str, Callable[[Path], Any], Callable[[Path], None]]] = {
    "nanoGPT .pt": ("m.pt", lambda path: save_nanogpt(path, nanogpt_weights(bias=False)), checkpoint),
    "config.json": (
        "config.json",
        lambda path: save_llama(path.parent),
        lambda path: checkpoint(path.parent),
    ),
    "weights .safetensors": (
        "model.safetensors",
        lambda path: save_llama(path.parent),
        lambda path: checkpoint(path.parent),
    ),
    "weights .bin": (
        "pytorch_model.bin",
        lambda path: (
            save_llama(path.parent),
            (path.parent / "model.safetensors").unlink(),
            torch.save(tiny_llama().state_dict(), path),
        ),
        lambda path: checkpoint(path.parent),
    ),
    "tokenizer.json": (
        "tokenizer.json",
        lambda path: save_llama(path.parent),
        lambda path: checkpoint(path.parent),
    ),
    ".gguf": ("m.gguf", lambda path: write_gguf(path, tiny_llama(vocab_size=258)), checkpoint),
    "text": ("t.txt", lambda path: path.write_text("ein kurzer Text für alle " * 20), text),
    "tokens": ("t.bin", lambda path: path.write_bytes(bytes([7, 0, 9, 1]) * 200), token_file),
    "saved state": (".resume/step_000000003.pt", make_states, states),
    "masks .pt": ("final_masks.pt", make_run, load_masks),
    "masks .safetensors": ("final_masks.safetensors", make_run, load_masks),
    "result.json": ("result.json", make_run, drawn),
    "metrics.jsonl": ("metrics.jsonl", make_run, drawn),
    "old masks": (
        "final_masks.pt",
        lambda path: torch.save(
            {"transformer.h.0.attn": dict.fromkeys(("mask", "importance"), torch.ones(2, 4))}, path
        ),
        lambda path: read_old_run(path.parent),
    ),
    "LeanK masks": ("m.pth", lambda path: torch.save([torch.ones(2, 4) for _ in range(3)], path), read_leank),
}


QUICK = ("tokenizer.json", "text", "tokens", "saved state", "old masks", "LeanK masks")

# What the allocator may take from the system at a time, whatever for.
ALLOCATOR_BYTES = 2**24


@st.composite
def damages(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """A few bytes changed, a piece cut off the end, or taken out, or doubled."""
    kind = draw(st.sampled_from(["flip", "flip", "flip", "cut", "without", "twice"]))
    places = draw(st.lists(st.floats(0, 0.9999), min_size=1, max_size=4))
    value = draw(st.integers(1, 255))

    def damage(content: bytes) -> bytes:
        at = [int(place * len(content)) for place in places]
        changed = bytearray(content)
        for place in at:
            changed[place] ^= value
        start, end = min(at), max(at) + 1
        choices = {"cut": content[:start], "without": content[:start] + content[end:]}
        return {"flip": bytes(changed), "twice": content[:end] + content[start:], **choices}[kind]

    return damage


Honest = Callable[[str], Path]


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Honest:
    """Makes an undamaged example of a format, once."""

    @functools.cache
    def example(name: str) -> Path:
        file, make, _ = FORMATS[name]
        path = tmp_path_factory.mktemp("honest") / "run" / file
        path.parent.mkdir(parents=True)
        make(path)
        return path

    return example


@pytest.fixture(scope="module")
def bytes_for(honest: Honest) -> Callable[[str], int]:
    """The memory that reading the undamaged example of a format takes."""
    known: dict[str, int] = {}

    def measure(name: str) -> int:
        if name not in known:
            FORMATS[name][2](honest(name))  # what is imported or made only once does not count
            known[name] = read_within(FORMATS[name][2], honest(name))[1]
        return known[name]

    return measure


def read_within(read: Callable[[Path], None], path: Path) -> tuple[str | None, int]:
    """What is said of a file that is refused, and the bytes of memory that it took to find out."""
    said: list[str] = []

    def work() -> None:
        try:
            read(path)
        except UserError as error:
            said.append(str(error))

    before, peak = held_bytes(CPU), peak_bytes(work, CPU)
    return (said or [None])[0], 0 if before is None or peak is None else peak - before


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in FORMATS]
)
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(damage=damages())
def test_damaged_files_are_refused_plainly(
    name: str,
    damage: Callable[[bytes], bytes],
    honest: Honest,
    bytes_for: Callable[[str], int],
    tmp_path: Path,
) -> None:
    allowed = 2 * bytes_for(name) + ALLOCATOR_BYTES
    good = honest(name)
    base = next(parent for parent in good.parents if parent.name == "run")
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    shutil.copytree(base, tmp_path / "run")
    path = tmp_path / "run" / good.relative_to(base)
    path.write_bytes(damage(good.read_bytes()))
    message, taken = read_within(FORMATS[name][2], path)
    assert taken <= allowed
    assert message is None or (len(message) > 20 and "\n" not in message)
    assert not (tmp_path / "run" / "again" / "result.json").exists()


@pytest.mark.slow
def test_a_name_from_a_file_never_leads_out_of_the_directory(tmp_path: Path) -> None:
    """The layers' names become names of figures."""
    directory = tmp_path / "deep" / "run"
    make_run(directory / "result.json")
    result = json.loads((directory / "result.json").read_text())
    masks = load_masks(directory / "final_masks.pt")
    for layer in result["layers"]:
        masks[f"../../evil/{layer['name']}"] = masks.pop(layer["name"])
        layer["name"] = f"../../evil/{layer['name']}"
    save_masks(masks, directory, {})
    (directory / "result.json").write_text(json.dumps(result))
    before = {path for path in tmp_path.rglob("*") if directory not in path.parents}
    written = redraw_run(directory, Visualizer([LayerImportance()]))
    assert {path for path in tmp_path.rglob("*") if directory not in path.parents} == before
    assert all(path.resolve().parent == directory.resolve() for path in written)


def test_links_in_a_run_directory_lead_nowhere(tmp_path: Path) -> None:
    """Files are replaced by name: what a planted link points to is neither read as ours nor written."""
    directory, outside = tmp_path / "deep" / "run", tmp_path / "outside"
    directory.mkdir(parents=True)
    outside.mkdir()
    names = ("metrics.jsonl", "final_masks.pt", "circuit_analysis_report.md")
    for name in names:
        (outside / name).write_text("mine")
        (directory / name).symlink_to(outside / name)
    with pytest.raises(UserError, match="holds files of another program"):
        make_run(directory / "result.json")
    (directory / "final_masks.pt").unlink()
    make_run(directory / "result.json")
    assert [(outside / name).read_text() for name in names] == ["mine"] * 3
    assert not any(path.is_symlink() for path in directory.iterdir())
