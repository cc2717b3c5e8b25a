"""Each dataset, from its source to calibration and evaluation rows, and what it says when that fails."""

import inspect
import json
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from small_data import documents, load, story, text_of, write_stories

import mechint.data
from mechint.data import HuggingFaceText, PythonDocs, TextFiles, TokenData, TokenFiles
from mechint.data.dataset import Dataset
from mechint.data.splits import Document
from mechint.errors import UserError

CONF = Path(__file__).parents[1] / "conf" / "dataset"


def test_python_docs_holds_out_the_same_topics() -> None:
    split = PythonDocs().document_split()
    held_out = {document.digest for document in split.evaluation}
    # On every Python version; names that hash below 120 of 1000.
    assert {Document.of("", name).digest for name in ("exceptions", "execmodel", "binary")} <= held_out
    paragraphs = [
        {" ".join(paragraph.split()) for document in side for paragraph in document.text.split("\n\n")}
        for side in split[:2]
    ]
    assert max(map(len, paragraphs[0] & paragraphs[1])) <= 40
    data = load(PythonDocs(), positions=256)
    assert (data.name, data.tokenizer) == ("python_docs", "the tokenizer")
    assert data.calibration_tokens == 131_072


def test_text_file_directory_and_glob(tmp_path: Path) -> None:
    whole = load(TextFiles(path=str(write_stories(tmp_path)), sequence_length=8))
    assert (whole.name, len(whole.evaluation) > 0) == ("text-stories.txt", True)
    folder = tmp_path / "folder" / "deep"
    folder.mkdir(parents=True)
    for number in range(60):
        (folder / f"part{number}.md").write_bytes(b"\xef\xbb\xbf" + f"\n{story(number)}\n".encode())
    (folder / "ignored.bin").write_bytes(b"\xff")
    (folder / ".hidden.txt").write_bytes(b"\xff")
    below = load(TextFiles(path=str(tmp_path / "folder"), sequence_length=8))
    matched = load(TextFiles(path=str(tmp_path / "**" / "part*.md"), sequence_length=8))
    assert whole.evaluation_digest == below.evaluation_digest == matched.evaluation_digest
    documents = TextFiles(path=str(folder), evaluation_fraction=0.001).document_split()
    assert [document.text[1] for document in documents.calibration] == sorted(
        document.text[1] for document in documents.calibration
    )


def test_text_without_separator_is_one_document(tmp_path: Path) -> None:
    path = str(write_stories(tmp_path))
    data = load(TextFiles(path=path, document_separator=None, sequence_length=8))
    assert "<" in text_of(data.evaluation)
    assert data.notes[0].startswith("one document")


def test_evaluation_path(tmp_path: Path) -> None:
    path = write_stories(tmp_path)
    held_out = tmp_path / "val.txt"
    held_out.write_text("<|endoftext|>".join(map(story, [3, 70, 71])), encoding="utf-8")
    dataset = TextFiles(
        path=str(path), evaluation_path=str(held_out), sequence_length=8, evaluation_fraction=0.2
    )
    data = load(dataset)
    assert set(text_of(data.evaluation)) <= set(story(3) + story(70) + story(71))
    assert not set(text_of(data.calibration)) & set(text_of(data.evaluation))
    assert data.notes[0] == "1 calibration documents left out: they are evaluation documents too"
    assert data.notes[1].startswith("dataset.evaluation_fraction has no effect")


def write_tokens(file: Path, ids: np.ndarray, dtype: str = "<u2") -> Path:
    file.parent.mkdir(exist_ok=True)
    ids.astype(dtype).tofile(file)
    return file


def test_token_directory_and_file(tmp_path: Path) -> None:
    ids = np.arange(4000) % 251
    write_tokens(tmp_path / "pair" / "train.bin", ids * 3 % 251)
    write_tokens(tmp_path / "pair" / "val.bin", ids[:500] + 1)
    pair = load(TokenFiles(path=str(tmp_path / "pair"), evaluation_tokens=128), tokenizer=None)
    assert (pair.name, pair.evaluation_bytes) == ("tokens-pair", None)
    assert pair.evaluation.tokens[:, 0].tolist() == [1, 193]  # rows 0 and 3 of 7
    assert pair.calibration.rows().min() == 0
    single = write_tokens(tmp_path / "all.bin", np.arange(100_000), "<u4")
    data = load(TokenFiles(path=str(single), dtype="uint32"), tokenizer=None, vocab_size=100_000)
    assert data.calibration.rows().max() < 90_000 <= data.evaluation.rows().min()
    assert data.notes[0] == "one file: the last 10 % of its tokens is for evaluation"


def test_shakespeare_tokens(shared_data: Path) -> None:
    data = load(TokenFiles(path=str(shared_data / "tokens" / "shakespeare_char")), None, vocab_size=65)
    assert (data.calibration_tokens, data.evaluation_tokens) == (131_072, 65_536)


@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_local_files_stream_like_text(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("datasets", reason="needs the hub extra")
    texts = [f"\n{story(number)}\n" for number in range(60)]
    file = tmp_path / f"stories.{kind}"
    if kind == "json":
        file.write_text(
            "\n".join(json.dumps({"body": text}) for text in [*texts, None, " "]), encoding="utf-8"
        )
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({"body": texts}), file)
    streamed = load(HuggingFaceText(name=kind, data_files=str(file), text_column="body", sequence_length=8))
    whole = load(TextFiles(path=str(write_stories(tmp_path)), sequence_length=8))
    assert streamed.evaluation_digest == whole.evaluation_digest
    assert streamed.name == f"hf-{kind}"


class Endless(HuggingFaceText):
    """A data set that never ends, and counts what is read of it."""

    def _rows(self):
        for self.read in count():
            yield {"text": story(self.read % 300)}


def test_stream_stops_when_both_sides_are_full() -> None:
    sizes: dict[str, Any] = {"sequence_length": 8, "evaluation_tokens": 960}
    small, large = Endless(calibration_tokens=80, **sizes), Endless(calibration_tokens=30_000, **sizes)
    first, second = load(small), load(large)
    assert small.read < 200  # 960 tokens are 8 documents of 120 bytes, one document in ten
    assert 250 < large.read < 600
    assert (first.evaluation_tokens, first.calibration_tokens) == (960, 80)
    assert second.calibration_tokens == 30_000
    assert first.evaluation_digest == second.evaluation_digest
    assert first.notes == (f"the first {small.read + 1:,} documents of the stream, in stored order",)


def message(dataset: Dataset, **arguments) -> str:
    with pytest.raises(UserError) as error:
        load(dataset, **arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("content", "settings", "expected"),
    [
        (b"", {}, "file.txt is empty"),
        (b" \n", {}, "file.txt is empty"),
        (b"abc\xff", {}, "file.txt is not UTF-8 text (byte 3)"),
        (b"a" * 50, {}, "evaluation side of dataset text-file.txt has only 5 tokens"),
        (b"a" * 900, {"sequence_length": 65}, "more than the 64 positions"),
        (b"a" * 900, {"sequence_length": "long"}, "whole number of at least 1, not 'long'"),
        (b"a" * 900, {"sequence_length": 0}, "whole number of at least 1, not 0"),
        (b"a" * 900, {"evaluation_tokens": 63}, "less than one sequence of 64"),
        (b"a" * 900, {"evaluation_fraction": 1.0}, "between 0 and 1, not 1.0"),
        (b"a" * 900, {"path": "nowhere/*.txt"}, "no file, directory or glob nowhere/*.txt"),
        (b"a" * 900, {"path": None}, "give dataset.path="),
    ],
)
def test_bad_text(tmp_path: Path, content: bytes, settings: dict[str, Any], expected: str) -> None:
    file = tmp_path / "file.txt"
    file.write_bytes(content)
    keys: dict[str, Any] = {"path": str(file)} | settings
    assert expected in message(TextFiles(**keys))


def test_bad_text_paths(tmp_path: Path) -> None:
    assert "no .txt, .text, .md, .rst file below" in message(TextFiles(path=str(tmp_path)))
    file = write_stories(tmp_path)
    overlap = "also in dataset.path"
    assert overlap in message(TextFiles(path=str(file), evaluation_path=str(file)))
    part = tmp_path / "part.txt"
    part.write_text(file.read_text(encoding="utf-8")[-1500:], encoding="utf-8")
    settings: dict[str, Any] = {"evaluation_path": str(part), "document_separator": None}
    assert overlap in message(TextFiles(path=str(file), **settings))


def test_tokenizer_and_checkpoint_must_fit(tmp_path: Path) -> None:
    dataset = TextFiles(path=str(write_stories(tmp_path)), sequence_length=8)
    assert "model.tokenizer=" in message(dataset, tokenizer=None)
    assert "vocabulary has only 100 entries" in message(dataset, vocab_size=100)


def test_bad_token_files(tmp_path: Path) -> None:
    def problem(path: Path, **settings: Any) -> str:
        return message(TokenFiles(path=str(path), **settings), tokenizer=None)

    ids = np.arange(4000) % 251
    file = write_tokens(tmp_path / "ids.bin", ids)
    assert "dataset.dtype=uint16" in problem(file, dtype="uint32")
    assert "must be one of uint16, uint32" in problem(file, dtype="uint8")
    assert "dataset.dtype=uint32" in problem(write_tokens(tmp_path / "wide.bin", ids, "<u4"))
    assert "dataset.dtype=uint32" in problem(write_tokens(tmp_path / "large.bin", ids + 256))
    (tmp_path / "odd.bin").write_bytes(b"abc")
    assert "3 bytes are no whole number of uint16 tokens" in problem(tmp_path / "odd.bin")
    (tmp_path / "empty.bin").write_bytes(b"")
    assert "it is empty" in problem(tmp_path / "empty.bin")
    assert "has no train.bin and val.bin, but empty.bin, ids.bin" in problem(tmp_path)
    (tmp_path / "nothing").mkdir()
    assert "train.bin (No such file" in problem(tmp_path / "nothing")
    assert "only 5 tokens" in problem(write_tokens(tmp_path / "short.bin", ids[:50]))
    assert "give dataset.path=" in message(TokenFiles(), tokenizer=None)


def test_bad_hugging_face_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets", reason="needs the hub extra")
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps({"id": i, "text": story(i)}) for i in range(9)), encoding="utf-8")
    local: dict[str, Any] = {"name": "json", "data_files": str(file)}
    assert "no column 'body': give dataset.text_column= one of id, text" in message(
        HuggingFaceText(**local, text_column="body")
    )
    assert "holds int, not text" in message(HuggingFaceText(**local, text_column="id"))
    assert "Bad split: nope" in message(HuggingFaceText(**local, split="nope"))
    assert "cannot read dataset json" in message(HuggingFaceText(name="json", data_files=f"{file}.gone"))
    assert "give dataset.name=" in message(HuggingFaceText())
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    assert "pip install -e '.[hub]'" in message(HuggingFaceText(**local))


@pytest.mark.parametrize("option", ["fineweb_edu", "hf", "python_docs", "text", "tokens"])
def test_options_are_keyword_arguments(option: str) -> None:
    node = yaml.safe_load((CONF / f"{option}.yaml").read_text(encoding="utf-8"))
    target = getattr(mechint.data, node.pop("_target_").removeprefix("mechint.data."))
    defaults = {name: p.default for name, p in inspect.signature(target).parameters.items()}
    assert node.keys() == defaults.keys()
    changed = {"name", "config_name"} if option == "fineweb_edu" else set()
    assert {key for key in node if node[key] != defaults[key]} == changed
    assert isinstance(target(**node), Dataset)


def test_token_data_is_what_the_pipeline_reads() -> None:
    data = load(documents([story(i) for i in range(20)], sequence_length=8))
    assert isinstance(data, TokenData)
    assert str(data.calibration.tokens.dtype) == str(data.evaluation.tokens.dtype) == "torch.int64"
    assert len(data.evaluation_digest) == 64
