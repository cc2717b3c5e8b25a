"""How rows begin, what the two sides share, and the files that people bring."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_data import BYTES, documents, load, story, text_of, write_stories
from test_data import message, write_tokens
from test_data_parts import LLAMA, words_with_end
from transformers import PreTrainedTokenizerFast

from mechint.data import HuggingFaceText, TextFiles, TokenFiles
from mechint.data.bos import added_at_beginning
from mechint.data.leakage import measure_leakage
from mechint.data.packing import even_rows, num_rows

BOS = 0
TEXTS = [f"{'abcdefghij'[i % 10] * (3 + i)} {i}" for i in range(60)]


def targets(batch: Any) -> list[int]:
    """The answers that count, row by row."""
    return batch.answers[batch.counted].tolist()


def test_rows_begin_with_the_token_that_the_tokenizer_adds() -> None:
    dataset = documents(TEXTS, sequence_length=8)
    data = load(dataset, LLAMA, vocab_size=300)
    assert added_at_beginning(LLAMA) == data.bos == (BOS,)
    for side in (data.calibration, data.evaluation):
        assert bool((side.tokens[:, 0] == BOS).all())
        assert side.counted is not None
        assert BOS not in targets(side)
        assert not bool((side.tokens[:, :2] == BOS).all(1).any())  # no row begins with two of them
    assert "every row begins with <s>, which is never counted as a predicted token" in data.notes
    assert data.evaluation_tokens == len(targets(data.evaluation))


def test_every_token_counts_at_most_once_when_rows_begin_with_bos() -> None:
    """Read in order, the counted answers are the stream without its BOS tokens."""
    dataset = documents(TEXTS, sequence_length=8, evaluation_tokens=100_000)
    stream = dataset.sides(LLAMA, 0).evaluation
    data = load(dataset, LLAMA, vocab_size=300)
    expected = [token for token in stream.ids[: 8 * len(data.evaluation)].tolist() if token != BOS]
    assert targets(data.evaluation) == expected
    assert stream.byte_counts is not None
    assert data.evaluation_bytes == int(stream.byte_counts[: 8 * len(data.evaluation)].sum())


def test_rows_without_bos_when_nobody_wants_it() -> None:
    dataset = documents(TEXTS, sequence_length=8, bos=False)
    data = load(dataset, LLAMA, vocab_size=300)
    assert data.bos == ()
    assert not bool((data.evaluation.tokens[:, 0] == BOS).all())
    assert BOS not in targets(data.evaluation)
    assert any(note.startswith("rows do not begin with <s>, although") for note in data.notes)


def test_a_tokenizer_that_adds_nothing_changes_nothing() -> None:
    texts = [story(i) for i in range(40)]
    plain = load(documents(texts, sequence_length=8))
    off = load(documents(texts, sequence_length=8, bos=False))
    assert (plain.bos, plain.evaluation.counted, plain.notes) == ((), None, off.notes)
    assert plain.evaluation_digest == off.evaluation_digest


def test_bos_on_request() -> None:
    tokenizer = words_with_end()
    tokenizer.bos_token = "<end>"
    data = load(documents(["one two three " * 90, "two " * 200], bos=True, allow_overlap=True), tokenizer)
    assert data.bos == (0,)
    assert bool((data.calibration.tokens[:, 0] == 0).all())
    assert "the tokenizer has no beginning-of-text token" in message(documents(TEXTS, bos=True))
    assert "there is no tokenizer" in message(TokenFiles(path="x", bos=True), tokenizer=None)
    assert "must be auto, true or false, not 'yes'" in message(documents(TEXTS, bos="yes"))


def test_a_beginning_of_two_tokens() -> None:
    backend = json.loads(LLAMA.backend_tokenizer.to_str())
    backend["post_processor"]["single"].insert(1, {"SpecialToken": {"id": "▁", "type_id": 0}})
    backend["post_processor"]["special_tokens"]["▁"] = {"id": "▁", "ids": [257], "tokens": ["▁"]}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=type(LLAMA.backend_tokenizer).from_str(json.dumps(backend))
    )
    data = load(documents(TEXTS, sequence_length=8), tokenizer, vocab_size=300)
    assert data.bos == (0, 257)
    assert data.calibration.tokens[:, :2].unique(dim=0).tolist() == [[0, 257]]
    assert not {0, 257} & set(targets(data.calibration))


def test_ready_tokens_begin_as_the_tokenizer_says(tmp_path: Path) -> None:
    file = write_tokens(tmp_path / "ids.bin", np.arange(4000) % 251 + 1)
    assert load(TokenFiles(path=str(file), allow_overlap=True), LLAMA, vocab_size=300).bos == (BOS,)
    assert load(TokenFiles(path=str(file), allow_overlap=True), tokenizer=None).bos == ()


@pytest.mark.parametrize("length", [5, 31, 32, 33, 64])
def test_leakage_is_the_share_of_runs(length: int) -> None:
    generator = np.random.default_rng(0)
    calibration = generator.integers(0, 4, (30, length + 1))
    evaluation = generator.integers(0, 4, (9, length + 1))
    evaluation[:4] = calibration[[3, 9, 14, 20]]
    evaluation[4, : length // 2 + 3] = calibration[1, : length // 2 + 3]
    n = min(32, length)
    there = {tuple(row[i : i + n]) for row in calibration.tolist() for i in range(length + 2 - n)}
    runs = [tuple(row[i : i + n]) in there for row in evaluation.tolist() for i in range(length + 2 - n)]
    found = measure_leakage(calibration, evaluation)
    assert (found.n, found.shared_ngrams) == (n, pytest.approx(np.mean(runs)))


def token_pair(directory: Path) -> TokenFiles:
    ids = np.random.default_rng(0).integers(0, 251, 8000)
    write_tokens(directory / "train.bin", ids)
    write_tokens(directory / "val.bin", ids[1000:3000])
    return TokenFiles(path=str(directory))


def evaluation_path(directory: Path) -> TextFiles:
    path = write_stories(directory)
    copied = "".join(map(story, range(20)))  # no document of its own, so no copy by that measure
    other = "".join(map(story, range(80, 104)))
    (directory / "val.txt").write_text(copied + other, encoding="utf-8")
    return TextFiles(path=str(path), evaluation_path=str(directory / "val.txt"), sequence_length=40)


def near_duplicates(directory: Path) -> TextFiles:
    (directory / "rows.txt").write_text(
        "<|endoftext|>".join(f"{i} {story(i % 9)}" for i in range(60)), encoding="utf-8"
    )
    return TextFiles(path=str(directory / "rows.txt"), sequence_length=40)


@pytest.mark.parametrize("make", [token_pair, evaluation_path, near_duplicates])
def test_shared_text_is_refused_or_said(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    dataset = make(tmp_path)
    assert "runs of 3" in (problem := message(dataset))
    assert "dataset.allow_overlap=true" in problem
    dataset.allow_overlap = True
    data = load(dataset)
    assert data.leakage is not None
    assert data.leakage.shared_ngrams > 0.1
    assert any("also occur in the calibration data" in note for note in data.notes)


@pytest.mark.slow
def test_different_text_is_not_refused(shared_data: Path) -> None:
    for name in ("tinystories1000", "tinyshakespeare"):
        files = TextFiles(path=str(shared_data / "text" / f"{name}.train.txt"))
        leakage = load(files, positions=256).leakage
        assert leakage is not None
        assert leakage.shared_ngrams < 0.02


IDS = np.random.default_rng(1).integers(0, 251, 6000)


def test_token_files_of_every_kind_hold_the_same_tokens(tmp_path: Path) -> None:
    files = {"flat": write_tokens(tmp_path / "flat.bin", IDS)}
    for dtype in ("uint16", "int32", "int64"):
        files[dtype] = tmp_path / f"{dtype}.npy"
        np.save(files[dtype], IDS.astype(dtype))
    files["npy named bin"] = (tmp_path / "int32.npy").rename(tmp_path / "renamed.bin")
    del files["int32"]
    for magic, dtype in ((20240520, "<u2"), (20240801, "<u4")):
        header = np.zeros(256, "<i4")
        header[:3] = magic, 1, len(IDS)
        files[dtype] = tmp_path / f"{magic}.bin"
        files[dtype].write_bytes(header.tobytes() + IDS.astype(dtype).tobytes())
    digests = {name: load(TokenFiles(path=str(file)), None).evaluation_digest for name, file in files.items()}
    wide = write_tokens(tmp_path / "wide.bin", IDS, "<i8")
    digests["int64 flat"] = load(TokenFiles(path=str(wide), dtype="int64"), None).evaluation_digest
    assert len(set(digests.values())) == 1
    assert len(digests) == 7
    for side in ("train", "val"):
        (tmp_path / "pair").mkdir(exist_ok=True)
        np.save(tmp_path / "pair" / f"{side}.npy", np.random.default_rng(len(side)).integers(0, 251, 3000))
    assert load(TokenFiles(path=str(tmp_path / "pair")), None).evaluation_tokens > 2000


def test_token_files_read_as_another_type_are_refused(tmp_path: Path) -> None:
    def problem(file: Path, **settings: Any) -> str:
        return message(TokenFiles(path=str(file), **settings), tokenizer=None)

    wide = write_tokens(tmp_path / "wide.bin", IDS, "<i8")
    assert "holds 64-bit token ids: give dataset.dtype=int64" in problem(wide)
    assert "holds 64-bit token ids: give dataset.dtype=int64" in problem(wide, dtype="uint32")
    assert "holds 32-bit token ids: give dataset.dtype=uint32" in problem(
        write_tokens(tmp_path / "b", IDS, "<i4")
    )
    assert "negative token ids" in problem(write_tokens(tmp_path / "c", IDS - 90, "<i4"), dtype="int32")
    np.save(tmp_path / "float.npy", IDS.astype(float))
    assert "an array of float64 with 1 axes" in problem(tmp_path / "float.npy")
    whole = (tmp_path / "float.npy").read_bytes()
    (tmp_path / "half.npy").write_bytes(whole[:3000])
    assert "half.npy is not a whole .npy file" in problem(tmp_path / "half.npy")
    header = np.zeros(256, "<i4")
    header[:3] = 20240520, 1, 7000
    (tmp_path / "short.bin").write_bytes(header.tobytes() + IDS.astype("<u2").tobytes())
    assert "says that it holds 7,000 tokens but has 6,000" in problem(tmp_path / "short.bin")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.txt", "rows.csv", "rows.parquet"])
def test_rows_are_not_read_as_prose(tmp_path: Path, name: str) -> None:
    rows = "\n".join(json.dumps({"text": story(i)}) for i in range(60))
    (tmp_path / name).write_text("text\nx" if name.endswith(("csv", "parquet")) else rows, encoding="utf-8")
    kind = {"csv": "csv", "parquet": "parquet"}.get(name.split(".")[1], "json")
    found = message(TextFiles(path=str(tmp_path / name)))
    assert (
        f"holds rows, not prose; read them with dataset=hf dataset.name={kind} 'dataset.data_files=" in found
    )
    prose = tmp_path / "prose.txt"
    prose.write_text("{ is a brace\n" + "<|endoftext|>".join(map(story, range(60))), encoding="utf-8")
    assert "brace" in text_of(load(TextFiles(path=str(prose), sequence_length=8)).calibration) + "brace"


def rows_file(directory: Path) -> Path:
    file = directory / "rows.jsonl"
    rows = [{"data": {"text": story(i), "id": i}, "kind": "x"} for i in range(200)]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return file


def test_nested_columns(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="needs the hub extra")
    local: dict[str, Any] = {"name": "json", "data_files": str(rows_file(tmp_path)), "sequence_length": 8}
    data = load(HuggingFaceText(**local, text_column="data.text"))
    assert set(text_of(data.evaluation)) <= set("".join(map(story, range(200))))
    assert "dataset.text_column= one of data, data.id, data.text, kind" in message(HuggingFaceText(**local))


@pytest.mark.parametrize(
    ("split", "numbers"),
    [
        ("train[:10%]", range(20)),
        ("train[10:30]", range(10, 30)),
        ("train[-20:]", range(180, 200)),
        ("train[50%:60%]+train[:5]", [*range(100, 120), *range(5)]),
    ],
)
def test_slices_of_splits(tmp_path: Path, split: str, numbers: list[int]) -> None:
    pytest.importorskip("datasets", reason="needs the hub extra")
    local: dict[str, Any] = {
        "name": "json",
        "data_files": str(rows_file(tmp_path)),
        "text_column": "data.text",
    }
    assert list(HuggingFaceText(**local, split=split)._texts()) == [story(i) for i in numbers]
    assert "is not understood" in message(HuggingFaceText(**local, split="train[a:b]"))


def test_tab_separated_columns(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="needs the hub extra")
    file = tmp_path / "rows.tsv"
    file.write_text("id\ttext\n" + "\n".join(f"{i}\t{story(i)}, yes" for i in range(9)), encoding="utf-8")
    for name in ("csv", "tsv"):
        texts = list(HuggingFaceText(name=name, data_files=str(file))._texts())
        assert texts == [f"{story(i)}, yes" for i in range(9)]


def test_batches_without_bos_are_whole() -> None:
    data = load(documents([story(i) for i in range(40)], sequence_length=8), BYTES)
    assert torch.equal(data.evaluation.tokens[:, 1:], data.evaluation.answers[:, :-1])


@pytest.mark.parametrize("bos", ["auto", False])
def test_every_evaluation_row_knows_the_document_in_which_it_begins(bos: Any) -> None:
    dataset = documents(TEXTS, sequence_length=8, bos=bos)
    stream = dataset.sides(LLAMA, 0).evaluation
    assert stream.starts is not None
    assert (stream.ids[stream.starts] == BOS).all()  # this tokenizer marks where a document begins
    data = load(dataset, LLAMA, vocab_size=300)
    numbers = (stream.ids == BOS).cumsum() - 1  # of every token
    begins = even_rows(num_rows(len(stream.ids), 8), dataset.evaluation_tokens // 8) * 8
    assert data.evaluation_documents is not None
    assert data.evaluation_documents.tolist() == numbers[begins].tolist()
    assert len(set(numbers[begins])) > 1
