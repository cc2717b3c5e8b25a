"""Files that people bring: read right, or refused with what makes them readable."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_data import BYTES, load, story, text_of
from test_data import message

from mechint.data import HuggingFaceText, TextFiles, TokenFiles

STORIES = [story(number) for number in range(60)]
PROSE = "".join(f"{number} green bottles, {number**3} on the wall.\n" for number in range(400))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (gzip.compress(PROSE.encode()), "is compressed: unpack it first (gunzip -k)"),
        (b"\x28\xb5\x2f\xfd\x04\x00" + bytes(50), "is compressed: unpack it first (zstd -d)"),
        (b"PK\x03\x04" + bytes(50), "is a zip archive: unpack it first"),
        (PROSE.encode("utf-16"), "is UTF-16: convert it (iconv -f utf-16 -t utf-8)"),
        (b"%PDF-1.4\nstream\n" * 90, "is a PDF: take its text out first (pdftotext)"),
        (b"one\0two" * 90, "is not text (byte 3 is zero)"),
        ("Köln ".encode("latin-1") * 900, "is not UTF-8 text (byte 1)"),
        (
            json.dumps([{"text": PROSE}]).encode(),
            "holds rows, not prose; read them with dataset=hf dataset.name=json",
        ),
    ],
    ids=["gzip", "zstd", "zip", "utf-16", "pdf", "binary", "latin-1", "json array"],
)
def test_files_that_are_no_text_are_refused_with_what_makes_text_of_them(
    tmp_path: Path, content: bytes, expected: str
) -> None:
    file = tmp_path / "brought.txt"
    file.write_bytes(content)
    assert expected in message(TextFiles(path=str(file)))


def test_line_ends_of_windows_give_the_same_tokens(tmp_path: Path) -> None:
    digests = []
    for name, ends in (("unix", "\n"), ("windows", "\r\n")):
        file = tmp_path / f"{name}.txt"
        file.write_bytes(PROSE.replace("\n", ends).encode())
        data = load(TextFiles(path=str(file), sequence_length=32, evaluation_tokens=512, allow_overlap=True))
        digests.append(data.evaluation_digest)
        assert "\r" not in text_of(data.calibration)
    assert digests[0] == digests[1]


def test_a_directory_of_rows_names_what_reads_them(tmp_path: Path) -> None:
    (tmp_path / "part.jsonl").write_text('{"text": "a"}\n')
    expected = f"read them with dataset=hf dataset.name=json 'dataset.data_files={tmp_path}/*.jsonl'"
    assert expected in message(TextFiles(path=str(tmp_path)))


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (lambda file: torch.save({"ids": [1, 2, 3]}, file), "is an archive (.npz, .pt or .zip)"),
        (lambda file: torch.save(torch.arange(900), file), "is an archive (.npz, .pt or .zip)"),
        (lambda file: file.write_bytes(gzip.compress(bytes(900))), "is compressed"),
        (lambda file: file.write_text(PROSE), "is text (for dataset=text)"),
        (lambda file: file.write_text("Straße " * 900, encoding="utf-8"), "is text (for dataset=text)"),
    ],
    ids=["archive", "pt", "gzip", "ascii", "utf-8"],
)
def test_other_files_are_not_read_as_tokens(tmp_path: Path, write, expected: str) -> None:
    """Pairs of letters are token ids that a large vocabulary has."""
    write(tmp_path / "ids.bin")
    assert expected in message(TokenFiles(path=str(tmp_path / "ids.bin")), tokenizer=None)


def test_tokens_are_never_taken_for_text(tmp_path: Path) -> None:
    for vocabulary, dtype in ((65, np.uint16), (50257, np.uint16), (100_000, np.uint32)):
        ids = np.random.default_rng(0).integers(0, vocabulary, 4000).astype(dtype)
        ids.tofile(tmp_path / "ids.bin")
        source = TokenFiles(path=str(tmp_path / "ids.bin"), dtype=np.dtype(dtype).name)
        assert source.sides(None, 0).calibration.ids.tolist() == ids[:3600].tolist()


def test_a_directory_of_token_files_with_other_names(tmp_path: Path) -> None:
    np.arange(900, dtype=np.uint16).tofile(tmp_path / "fineweb_train_000001.bin")
    expected = "has no train.bin and val.bin, but fineweb_train_000001.bin: give one file"
    assert expected in message(TokenFiles(path=str(tmp_path)), tokenizer=None)


@pytest.mark.parametrize("several", [False, True])
def test_what_save_to_disk_left_is_read(tmp_path: Path, several: bool) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the extra mechint[hub]")
    saved = datasets.Dataset.from_dict({"text": [None, *STORIES]})
    (datasets.DatasetDict({"validation": saved}) if several else saved).save_to_disk(tmp_path / "saved")
    found = HuggingFaceText(
        name=str(tmp_path / "saved"),
        split="validation[:50%]" if several else "train[:50%]",
        sequence_length=8,
    )
    assert list(found._texts()) == STORIES[:29]
    if several:
        wrong = HuggingFaceText(name=str(tmp_path / "saved"), split="train", sequence_length=8)
        assert "has no split 'train': give dataset.split= one of validation" in message(
            wrong, tokenizer=BYTES
        )


def test_files_and_directories_in_place_of_a_data_set_s_name(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl.gz"
    file.write_bytes(gzip.compress(b'{"text": "a"}'))
    expected = f"is a file: give dataset.name=json 'dataset.data_files={file}'"
    assert expected in message(HuggingFaceText(name=str(file)), tokenizer=BYTES)
    expected = f"is a directory: give dataset.name={tmp_path} without data_files"
    assert expected in message(HuggingFaceText(name="json", data_files=str(tmp_path)), tokenizer=BYTES)
