"""Documents from text files."""

import glob
import json
import re
from dataclasses import dataclass
from pathlib import Path

from mechint.data.dataset import safe_title
from mechint.data.splits import Document, DocumentSplit, split_as_given, split_documents
from mechint.data.text_dataset import TextDataset
from mechint.data.tokenise import DocumentEncoder
from mechint.errors import UserError

SUFFIXES = (".txt", ".text", ".md", ".rst")

# Files of rows, which must not be read as prose, and the option that reads them.
ROWS = {
    **dict.fromkeys((".jsonl", ".json", ".ndjson"), "json"),
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
}


# How files begin that are no text as they are, and what makes text of them.
NO_TEXT = {
    b"\x1f\x8b": "compressed: unpack it first (gunzip -k)",
    b"\x28\xb5\x2f\xfd": "compressed: unpack it first (zstd -d)",
    b"BZh": "compressed: unpack it first (bunzip2 -k)",
    b"\xfd7zXZ": "compressed: unpack it first (xz -dk)",
    b"PK\x03\x04": "a zip archive: unpack it first (unzip)",
    b"%PDF-": "a PDF: take its text out first (pdftotext)",
    b"\xff\xfe": "UTF-16: convert it (iconv -f utf-16 -t utf-8)",
    b"\xfe\xff": "UTF-16: convert it (iconv -f utf-16 -t utf-8)",
}

# The beginning of a JSON array of objects.
JSON_ARRAY = re.compile(r'\s*\[\s*\{\s*"')

LONGEST_LINES = 1 << 16  # characters at the beginning that are looked at


@dataclass(kw_only=True)
class TextFiles(TextDataset):
    """UTF-8 text files.

    path: a file, a directory (all text files below it) or a glob.
    evaluation_path: the same for the evaluation data; None = a part of `path` is held out.
    document_separator: what separates the documents of a file; None = a file is one document.
    """

    path: str | None = None
    evaluation_path: str | None = None
    document_separator: str | None = "<|endoftext|>"

    @property
    def title(self) -> str:
        return safe_title("text", Path(self.path or "").name)

    def document_split(self, encoder: DocumentEncoder | None = None) -> DocumentSplit:
        """Hold out documents of `path`, or take those of `evaluation_path`."""
        if self.path is None:
            raise UserError("dataset=text needs a file, a directory or a glob: give dataset.path=...")
        documents = self._documents(self.path)
        if self.evaluation_path is None:
            return split_documents(documents, self.evaluation_fraction)
        split = split_as_given(documents, self._documents(self.evaluation_path))
        if self.evaluation_fraction == TextFiles.evaluation_fraction:
            return split
        note = "dataset.evaluation_fraction has no effect: dataset.evaluation_path is given"
        return split._replace(notes=(*split.notes, note))

    def _documents(self, path: str) -> list[Document]:
        """All documents below a path. Raises UserError if there is none."""
        texts = [text for file in text_files(path) for text in self._texts(read_text(file))]
        documents = [Document.of(text) for text in texts if text.strip()]
        if not documents:
            raise UserError(f"{path} is empty: give a path with text in it")
        return documents

    def _texts(self, text: str) -> list[str]:
        return text.split(self.document_separator) if self.document_separator else [text]


def text_files(path: str) -> list[Path]:
    """The files that a path means, in natural order (part2 before part10). Raises UserError if none."""
    root = Path(path).expanduser()
    if root.is_file():
        return [root]
    if root.is_dir():
        found = [file for file in root.rglob("*") if file.suffix.lower() in SUFFIXES and _visible(file, root)]
        problem = f"no {', '.join(SUFFIXES)} file below {path}: name the files with a glob"
        rows = next((file for file in sorted(root.rglob("*")) if file.suffix.lower() in ROWS), None)
        if rows is not None:
            problem = f"{path} holds rows, not prose; {_read_rows(rows, rows.parent / f'*{rows.suffix}')}"
    else:
        # Path.glob takes no absolute patterns.
        found = [Path(name) for name in glob.glob(str(root), recursive=True)]  # noqa: PTH207
        problem = f"no file, directory or glob {path} (seen from {Path.cwd()}): give another path"
    files = sorted((file for file in found if file.is_file()), key=_natural)
    if not files:
        raise UserError(problem)
    return files


def read_text(file: Path) -> str:
    """The text of a UTF-8 file, line ends of Windows like all others. Raises UserError if it is no text, or rows."""
    kind = ROWS.get(file.suffix.lower())
    try:
        content = file.read_bytes() if kind is None else b""
        for start, what in NO_TEXT.items():
            if content.startswith(start):
                raise UserError(f"{file} is {what}, and give what comes out")
        if (place := content.find(0)) >= 0:
            raise UserError(f"{file} is not text (byte {place} is zero); give another path")
        text = content.decode("utf-8").removeprefix("\ufeff").replace("\r\n", "\n")
        if kind or _is_json_lines(text):
            raise UserError(f"{file} holds rows, not prose; {_read_rows(file, file)}")
        return text
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} is not UTF-8 text (byte {error.start}): convert it, for example with iconv -t utf-8"
        ) from None
    except OSError as error:
        raise UserError(f"cannot read {file} ({error.strerror}): give a readable path") from None


def _read_rows(file: Path, files: Path) -> str:
    """How files of rows are read, for one of them and a glob of all."""
    kind = ROWS.get(file.suffix.lower(), "json")
    return f"read them with dataset=hf dataset.name={kind} 'dataset.data_files={files}' dataset.text_column=COLUMN"


def _is_json_lines(text: str) -> bool:
    """Whether the first lines are JSON objects, or an array of them begins."""
    if JSON_ARRAY.match(text):
        return True
    lines = [line for line in text[:LONGEST_LINES].splitlines()[:3] if line.strip()]
    if not lines or not all(line.lstrip().startswith("{") for line in lines):
        return False
    try:
        return all(isinstance(json.loads(line), dict) for line in lines)
    except ValueError:
        return False


def _visible(file: Path, root: Path) -> bool:
    return not any(part.startswith(".") for part in file.relative_to(root).parts)


def _natural(file: Path) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", str(file))]
