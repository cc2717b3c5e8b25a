"""Text and token files -> calibration and evaluation rows."""

import inspect
import json
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import mechint.data
from mechint.data import HuggingFaceText, PythonDocs, TextDataset, TextFiles, TokenData, TokenFiles
from mechint.data.byte_tokenizer import byte_tokenizer
from mechint.data.dataset import Dataset
from mechint.data.packing import cut_rows, even_rows, num_rows, seeded_rows
from mechint.data.splits import Document, DocumentSplit, split_documents
from mechint.data.tokenise import DocumentEncoder
from mechint.errors import UserError

CONF = Path(__file__).parents[1] / "conf" / "dataset"
BYTES = byte_tokenizer()


class Documents(TextDataset):
    """Documents given in a test."""

    texts: list[str]

    @property
    def title(self) -> str:
        return "documents"

    def document_split(self, encoder: DocumentEncoder) -> DocumentSplit:  # noqa: ARG002
        return split_documents(map(Document.of, self.texts), self.evaluation_fraction)


def documents(texts: list[str], **settings: Any) -> Documents:
    dataset = Documents(**settings)
    dataset.texts = texts
    return dataset


def load(
    dataset: Dataset,
    tokenizer: Any = BYTES,
    *,
    vocab_size: int = 256,
    positions: int | None = 64,
    seed: int = 0,
):
    return dataset.load(tokenizer, "the tokenizer", vocab_size, positions, seed)


def text_of(rows) -> str:
    """What can be read in rows of bytes, row by row, as neighbours may come from anywhere."""
    return "".join(bytes(row).decode(errors="ignore") for row in rows.tolist())


def story(number: int, length: int = 40) -> str:
    """A document of characters (3 bytes each) that no other document has, none of them twice."""
    return "".join(chr(0x4E00 + 64 * number + place) for place in range(length))


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """Letters, byte fallback, a prepended space and <s> at the start, as in Llama 2."""
    pieces = ["<s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghij"]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.decoder = decoders.ByteFallback()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="j")


def words_with_end() -> PreTrainedTokenizerFast:
    """Words only, an end-of-text token that is not added by itself, no bytes and no merges."""
    vocabulary = {"<end>": 0, "<unk>": 1, "one": 2, "two": 3, "three": 4}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", unk_token="<unk>")


# --- splits -----------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=40), st.integers(0, 5))
def test_sides_share_no_text(numbers: list[int], seed: int) -> None:
    dataset = documents([story(number) for number in numbers], sequence_length=8)
    data, again = load(dataset, seed=seed), load(dataset, seed=seed)
    other = load(documents(dataset.texts[::-1], sequence_length=8), seed=seed + 1)
    assert not set(text_of(data.calibration)) & set(text_of(data.evaluation))
    assert text_of(data.calibration)
    assert text_of(data.evaluation)
    assert data.calibration.equal(again.calibration)
    assert data.evaluation.equal(again.evaluation)
    assert data.evaluation_digest == again.evaluation_digest == other.evaluation_digest
    assert data.evaluation_bytes == data.evaluation_tokens  # one byte a token


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.text(min_size=1), min_size=2, max_size=40), st.sampled_from([0.001, 0.1, 0.5, 0.999]))
def test_every_document_is_on_one_side(texts: list[str], fraction: float) -> None:
    given_documents = [Document.of(text) for text in texts]
    distinct = {document.digest for document in given_documents if document.text.strip()}
    if len(distinct) < 2:
        return
    split = split_documents(given_documents, fraction)
    learn, measure = ({document.digest for document in side} for side in split[:2])
    assert learn
    assert measure
    assert not learn & measure
    assert learn | measure == distinct


def test_share_of_held_out_documents() -> None:
    held_out = sum(Document.of(f"document {i}").held_out(0.1) for i in range(5000))
    assert 400 < held_out < 600


def test_seed_changes_calibration_rows_only() -> None:
    dataset = documents([story(number) for number in range(100)], sequence_length=8, calibration_tokens=80)
    first, second = load(dataset, seed=0), load(dataset, seed=1)
    assert not first.calibration.equal(second.calibration)
    assert first.evaluation.equal(second.evaluation)


def test_one_document_is_cut_near_its_end() -> None:
    text = "".join(chr(0x4E00 + i) for i in range(1000))
    data = load(documents([text], sequence_length=8))
    assert min(text_of(data.evaluation)) == text[900]
    assert max(text_of(data.calibration)) < text[900]
    assert "one document: the last 10 % of its text is the evaluation side" in data.notes


def test_long_documents_are_read_only_as_far_as_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mechint.data.splits.LONGEST_PIECE", 100)
    encoded = []
    encode = DocumentEncoder._encode
    monkeypatch.setattr(
        DocumentEncoder, "_encode", lambda self, text: encoded.append(text) or encode(self, text)
    )
    sizes = {"sequence_length": 8, "calibration_tokens": 80, "evaluation_tokens": 80}
    load(documents(["".join(map(chr, range(0x4E00, 0x9E00)))], **sizes))
    assert len(encoded) == 4  # 20480 characters, but 2 pieces of 300 bytes are 4 times what a side needs
    assert max(map(len, encoded)) == 100


# --- rows -------------------------------------------------------------------------------------------------


def test_every_target_is_predicted_once() -> None:
    stream = np.arange(43)
    rows = cut_rows(stream, even_rows(num_rows(43, 6), 100), 6)
    assert rows.shape == (7, 7)
    assert rows[:, 1:].flatten().tolist() == list(range(1, 43))
    assert rows[1:, 0].tolist() == rows[:-1, -1].tolist()


def test_choice_of_rows() -> None:
    assert even_rows(10, 4).tolist() == [0, 2, 5, 7]
    chosen = seeded_rows(10, 4, seed=3).tolist()
    assert len(set(chosen)) == 4
    assert max(chosen) < 10
    assert sorted(seeded_rows(10, 40, seed=3)) == list(range(10))


def test_sizes_and_shortage() -> None:
    data = load(documents([story(i) for i in range(200)], calibration_tokens=700, evaluation_tokens=100_000))
    assert data.calibration.shape == (700 // 64, 65)
    assert data.calibration_tokens == 640
    assert data.evaluation_tokens == 64 * len(data.evaluation)
    assert data.notes == (f"only {data.evaluation_tokens:,} of 100,000 evaluation tokens are available",)
    assert load(documents([story(i) for i in range(200)]), positions=None).calibration.shape[1] == 257


# --- tokenising -------------------------------------------------------------------------------------------


def test_special_tokens_between_documents() -> None:
    pair = [Document.of("one two"), Document.of("three")]
    assert DocumentEncoder(words_with_end()).stream(pair, 99).ids.tolist() == [2, 3, 0, 4]
    assert DocumentEncoder(BYTES).stream(pair, 99).ids.tolist() == list(b"one twothree")
    with_start = DocumentEncoder(sentencepiece_like()).stream([Document.of("a"), Document.of("b")], 99)
    assert with_start.ids.tolist() == [0, 257, 258, 0, 257, 259]
    assert DocumentEncoder(BYTES).stream(pair, 7).ids.tolist() == list(b"one two")


def test_bytes_per_token() -> None:
    def counts(tokenizer, text: str) -> list[int]:
        stream = DocumentEncoder(tokenizer).encode(Document.of(text))
        assert stream.byte_counts is not None
        return stream.byte_counts.tolist()

    assert counts(BYTES, "é😀 a") == [1] * 8
    # <s>, the prepended space (which is placed on the a), a, three bytes, a space, b
    assert counts(sentencepiece_like(), "a中 b") == [0, 1, 0, 1, 1, 1, 1, 1]
    # The space counts with the word after it.
    assert counts(words_with_end(), "one  é two") == [3, 4, 4]


def test_gpt2_bytes_per_token(shared_data: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared_data / "tokenizers" / "gpt2")
    text = "Hé 😀 lo  \n\n wörld<|endoftext|>中"
    stream = DocumentEncoder(tokenizer).encode(Document.of(text))
    assert tokenizer.convert_ids_to_tokens(stream.ids[2:4].tolist()) == ["ĠðŁĺ", "Ģ"]
    assert stream.byte_counts is not None
    assert stream.byte_counts[:4].tolist() == [1, 2, 4, 1]
    assert stream.byte_counts.sum() == len(text.encode())


@pytest.mark.parametrize("tokenizer", ["models/stories260k", "tokenizers/gpt2"])
def test_bytes_of_stories(shared_data: Path, tokenizer: str) -> None:
    files = TextFiles(path=str(shared_data / "text" / "tinystories1000.val.txt"), evaluation_fraction=0.5)
    loaded = AutoTokenizer.from_pretrained(shared_data / tokenizer)
    data = load(files, loaded, vocab_size=len(loaded), positions=512)
    text = loaded.decode(data.evaluation[:, 1:].flatten(), skip_special_tokens=True)
    stories = len(files.document_split().evaluation)
    # Decoding the stream at once shows a space for each story's prepended one.
    assert data.evaluation_bytes is not None
    assert 0 <= len(text.encode()) - data.evaluation_bytes <= stories
    same_tokens = load(files, loaded, vocab_size=len(loaded), positions=512, seed=7)
    assert same_tokens.evaluation_digest == data.evaluation_digest


def test_bytes_are_unknown_without_offsets(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = byte_tokenizer()
    monkeypatch.setattr(type(slow), "is_fast", False)
    data = load(documents([story(i) for i in range(20)], sequence_length=8), slow)
    assert data.evaluation_bytes is None
    assert any(note.startswith("bits per byte are unknown") for note in data.notes)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.text())
def test_byte_tokenizer_spells_bytes(text: str) -> None:
    ids = BYTES(text)["input_ids"]
    assert ids == list(text.encode())
    assert BYTES.decode(ids) == text


def test_byte_tokenizer_reloads(tmp_path: Path) -> None:
    BYTES.save_pretrained(tmp_path)
    text = "".join(map(chr, range(0x800))) + " 😀 a . b\r\n"
    assert set(range(256)) - set(text.encode()) == {*range(0xE0, 0xF0), *range(0xF1, 0x100), 0xC0, 0xC1}
    for loaded in AutoTokenizer.from_pretrained(tmp_path), PreTrainedTokenizerFast.from_pretrained(tmp_path):
        assert loaded(text)["input_ids"] == list(text.encode())
        assert loaded.decode(list(text.encode())) == text
        assert len(loaded) == 256
        assert loaded.decode(list(range(256))).startswith("\0")
        assert sorted(loaded.convert_tokens_to_ids(loaded.convert_ids_to_tokens(range(256)))) == [*range(256)]


# --- the datasets -----------------------------------------------------------------------------------------


def write_stories(directory: Path) -> Path:
    file = directory / "stories.txt"
    file.write_text("<|endoftext|>".join(f"\n{story(number)}\n" for number in range(60)), encoding="utf-8")
    return file


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
    write_tokens(tmp_path / "pair" / "train.bin", ids)
    write_tokens(tmp_path / "pair" / "val.bin", ids[:500] + 1)
    pair = load(TokenFiles(path=str(tmp_path / "pair"), evaluation_tokens=128), tokenizer=None)
    assert (pair.name, pair.evaluation_bytes) == ("tokens-pair", None)
    assert pair.evaluation[:, 0].tolist() == [1, 193]  # rows 0 and 3 of 7
    assert pair.calibration.min() == 0
    single = write_tokens(tmp_path / "all.bin", np.arange(100_000), "<u4")
    data = load(TokenFiles(path=str(single), dtype="uint32"), tokenizer=None, vocab_size=100_000)
    assert data.calibration.max() < 90_000 <= data.evaluation.min()
    assert data.notes[0] == "one file: the last 10 % of its tokens is the evaluation side"


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


# --- errors -----------------------------------------------------------------------------------------------


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
    assert expected in message(TextFiles(**({"path": str(file)} | settings)))


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
    assert "train.bin (No such file" in problem(tmp_path)
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


# --- configuration ----------------------------------------------------------------------------------------


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
    assert str(data.calibration.dtype) == str(data.evaluation.dtype) == "torch.int64"
    assert len(data.evaluation_digest) == 64
