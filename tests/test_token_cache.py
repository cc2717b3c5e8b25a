"""A text is tokenised once, whoever asks for its tokens again, and nothing depends on the cache being there."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from small_data import BYTES

from mechint.data import token_cache
from mechint.data.packing import TokenStream
from mechint.data.python_docs import PythonDocs
from mechint.data.splits import Document
from mechint.data.tokenise import DocumentEncoder

PAIR = [Document.of("one two"), Document.of("three")]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("MECHINT_CACHE", str(tmp_path))
    return tmp_path / "tokens"


def entries(cache: Path) -> list[Path]:
    return sorted(cache.iterdir())


def never(*_: object) -> TokenStream:
    raise AssertionError("this is tokenised already")


def test_the_second_reader_tokenises_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = DocumentEncoder(BYTES).stream(PAIR, 99)
    monkeypatch.setattr(DocumentEncoder, "encode", never)
    read = DocumentEncoder(BYTES).stream(PAIR, 99)
    assert isinstance(read.ids, np.memmap)
    assert read.ids.tolist() == made.ids.tolist() == list(b"one twothree")
    assert read.byte_counts is not None
    assert read.byte_counts.tolist() == [1] * 12
    assert read.starts is not None
    assert made.starts is not None
    assert read.starts.tolist() == made.starts.tolist() == [0, 7]


def test_whatever_changes_the_tokens_has_an_entry_of_its_own(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for documents, enough in [(PAIR, 99), (PAIR, 7), (PAIR[::-1], 99), ([Document.of("one twothree")], 99)]:
        DocumentEncoder(BYTES).stream(documents, enough)
    assert len(entries(cache)) == 4
    named = [Document.of("one two", "a name"), Document.of("three", "another")]
    DocumentEncoder(BYTES).stream(named, 99)  # the same texts
    assert len(entries(cache)) == 4
    monkeypatch.setattr(DocumentEncoder, "_identity", lambda self: b"another tokenizer")
    DocumentEncoder(BYTES).stream(PAIR, 99)
    assert len(entries(cache)) == 5


def test_a_run_has_the_same_tokens_from_the_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(seed: int) -> str:
        data = PythonDocs(calibration_tokens=2560).load(BYTES, "bytes", 256, None, seed)
        return f"{data.evaluation_digest} {data.evaluation_bytes} {data.calibration.rows().sum()}"

    made = load(0)
    assert load(0) == made
    monkeypatch.setenv("MECHINT_CACHE", "")
    assert load(0) == made
    assert load(1) != made


@pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY\x01\x00"])
def test_damaged_entries_are_made_again(cache: Path, content: bytes) -> None:
    DocumentEncoder(BYTES).stream(PAIR, 99)
    (entries(cache)[0] / "ids.npy").write_bytes(content)
    assert DocumentEncoder(BYTES).stream(PAIR, 99).ids.tolist() == list(b"one twothree")
    assert isinstance(DocumentEncoder(BYTES).stream(PAIR, 99).ids, np.memmap)


def test_a_cache_that_cannot_be_written_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MECHINT_CACHE", str(tmp_path / "file"))
    assert DocumentEncoder(BYTES).stream(PAIR, 99).ids.tolist() == list(b"one twothree")


def test_many_at_once_get_the_same(cache: Path) -> None:
    def make(_: int) -> list[int]:
        return DocumentEncoder(BYTES).stream(PAIR, 99).ids.tolist()

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(make, range(32)))
    assert all(ids == list(b"one twothree") for ids in found)
    assert [sorted(path.name for path in entry.iterdir()) for entry in entries(cache)] == [
        ["byte_counts.npy", "ids.npy", "starts.npy"]
    ]


def test_old_entries_make_room(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_cache, "CAPACITY", 1000)
    for number in range(4):  # each takes 2 * (128 + 4 * 20) bytes
        ids = np.full(20, number)
        token_cache.cached([bytes([number])], lambda ids=ids: TokenStream(ids, ids))
        token_cache.cached([b"\x00"], lambda: TokenStream(np.zeros(20), np.zeros(20)))  # used all the time
    assert len(entries(cache)) == 2
    first = token_cache.cached([b"\x00"], never)
    assert not first.ids.any()
