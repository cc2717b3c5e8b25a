"""Splits, rows, tokens and their bytes: what every dataset is made of."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_data import BYTES, documents, load, story, text_of
from tiers import rest_slow
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mechint.data import TextFiles
from mechint.data.packing import cut_rows, even_rows, num_rows, seeded_rows
from mechint.data.splits import Document, split_documents
from mechint.data.tokenise import DocumentEncoder


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=40), st.integers(0, 5))
def test_sides_share_no_text(numbers: list[int], seed: int) -> None:
    dataset = documents([story(number) for number in numbers], sequence_length=8)
    data, again = load(dataset, seed=seed), load(dataset, seed=seed)
    other = load(documents(dataset.texts[::-1], sequence_length=8), seed=seed + 1)
    assert not set(text_of(data.calibration)) & set(text_of(data.evaluation))
    assert text_of(data.calibration)
    assert text_of(data.evaluation)
    assert data.calibration.tokens.equal(again.calibration.tokens)
    assert data.evaluation.tokens.equal(again.evaluation.tokens)
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
    assert not first.calibration.tokens.equal(second.calibration.tokens)
    assert first.evaluation.tokens.equal(second.evaluation.tokens)


def test_one_document_is_cut_near_its_end() -> None:
    text = "".join(chr(0x4E00 + i) for i in range(1000))
    data = load(documents([text], sequence_length=8))
    assert min(text_of(data.evaluation)) == text[900]
    assert max(text_of(data.calibration)) < text[900]
    assert "one document: the last 10 % of its text is for evaluation" in data.notes


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
    assert data.calibration.rows().shape == (700 // 64, 65)
    assert data.calibration_tokens == 640
    assert data.evaluation_tokens == 64 * len(data.evaluation)
    assert data.notes == (f"only {data.evaluation_tokens:,} of 100,000 evaluation tokens are available",)
    assert load(documents([story(i) for i in range(200)]), positions=None).calibration.length == 256


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """Letters, byte fallback, a prepended space and <s> at the start, as in Llama 2."""
    pieces = ["<s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghij"]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.decoder = decoders.ByteFallback()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="j")


LLAMA = sentencepiece_like()


def words_with_end() -> PreTrainedTokenizerFast:
    """Words only, an end-of-text token that is not added by itself, no bytes and no merges."""
    vocabulary = {"<end>": 0, "<unk>": 1, "one": 2, "two": 3, "three": 4}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", unk_token="<unk>")


def test_special_tokens_between_documents() -> None:
    pair = [Document.of("one two"), Document.of("three")]
    assert DocumentEncoder(words_with_end()).stream(pair, 99).ids.tolist() == [2, 3, 0, 4]
    assert DocumentEncoder(BYTES).stream(pair, 99).ids.tolist() == list(b"one twothree")
    with_start = DocumentEncoder(LLAMA).stream([Document.of("a"), Document.of("b")], 99)
    assert with_start.ids.tolist() == [0, 257, 258, 0, 257, 259]
    assert DocumentEncoder(BYTES).stream(pair, 7).ids.tolist() == list(b"one two")


def test_bytes_per_token() -> None:
    def counts(tokenizer, text: str) -> list[int]:
        stream = DocumentEncoder(tokenizer).encode(Document.of(text))
        assert stream.byte_counts is not None
        return stream.byte_counts.tolist()

    assert counts(BYTES, "é😀 a") == [1] * 8
    # <s>, the prepended space (which is placed on the a), a, three bytes, a space, b
    assert counts(LLAMA, "a中 b") == [0, 1, 0, 1, 1, 1, 1, 1]
    # <s>, the prepended space (which is placed on the line end), a line end, b
    assert counts(LLAMA, "\nb") == [0, 0, 1, 1]
    # The space counts with the word after it.
    assert counts(words_with_end(), "one  é two") == [3, 4, 4]
    assert counts(words_with_end(), " ") == []


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.text(min_size=1))
def test_bytes_add_up(text: str) -> None:
    for tokenizer in BYTES, LLAMA:
        counts = DocumentEncoder(tokenizer).encode(Document.of(text)).byte_counts
        assert counts is not None
        assert counts.sum() == len(text.encode())


@pytest.mark.slow
def test_gpt2_bytes_per_token(shared_data: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared_data / "tokenizers" / "gpt2")
    text = "Hé 😀 lo  \n\n wörld<|endoftext|>中"
    stream = DocumentEncoder(tokenizer).encode(Document.of(text))
    assert tokenizer.convert_ids_to_tokens(stream.ids[2:4].tolist()) == ["ĠðŁĺ", "Ģ"]
    assert stream.byte_counts is not None
    assert stream.byte_counts[:4].tolist() == [1, 2, 4, 1]
    assert stream.byte_counts.sum() == len(text.encode())


@pytest.mark.parametrize(
    "tokenizer", rest_slow(["models/stories260k", "tokenizers/gpt2"], ["models/stories260k"])
)
def test_bytes_of_stories(shared_data: Path, tokenizer: str) -> None:
    files = TextFiles(path=str(shared_data / "text" / "tinystories1000.val.txt"), calibration_tokens=512)
    loaded = AutoTokenizer.from_pretrained(shared_data / tokenizer)
    data = load(files, loaded, vocab_size=len(loaded), positions=512)
    counted = (
        data.evaluation.answers
        if data.evaluation.counted is None
        else data.evaluation.answers[data.evaluation.counted]
    )
    text = loaded.decode(counted.flatten(), skip_special_tokens=True)
    stories = len(files.document_split().evaluation)
    # Decoded at once, the stream shows a space for each story's prepended one, except the first.
    prepended = stories - 1 if loaded.bos_token == "<s>" else 0
    assert data.evaluation_bytes == len(text.encode()) - prepended
    same_tokens = load(files, loaded, vocab_size=len(loaded), positions=512, seed=7)
    assert same_tokens.evaluation_digest == data.evaluation_digest


def test_bytes_are_unknown_without_offsets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(BYTES), "is_fast", False)
    data = load(documents([story(i) for i in range(20)], sequence_length=8))
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
