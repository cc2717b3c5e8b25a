"""Rows of a CSV or JSON file as they stand there: nothing is guessed, and nothing is converted."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechint.errors import UserError, one_line
from mechint.runtime.files import parse_json

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")


@dataclass(frozen=True)
class Row:
    """One row. where: its place, for messages. fields: values by column. problem: why it has no fields to be read; told
    when one is asked for, since a file without the columns that are needed has a better reason.
    """

    where: str
    fields: dict[str, Any]
    problem: str | None = None

    def text(self, column: str) -> str:
        """A field that must be text. Raises UserError."""
        value = self.present(column)
        if not isinstance(value, str):
            raise UserError(f"{self.where}: {column!r} is {_shown(value)}, and it must be text, in quotes")
        return value

    def texts(self, column: str) -> tuple[str, ...]:
        """A field that holds one or more texts: a list of them, or one with `|` between them. Raises UserError."""
        value = self.present(column)
        if isinstance(value, str):
            return tuple(part for part in value.split("|") if part)
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise UserError(
            f"{self.where}: {column!r} is {_shown(value)}, and it must be text or a list of texts, in quotes"
        )

    def present(self, column: str) -> Any:
        """A field's value. Raises UserError where it is missing or null."""
        if self.problem is not None:
            raise UserError(f"{self.where} {self.problem}")
        value = self.fields.get(column)
        if value is None:
            problem = f"{column!r} is null" if column in self.fields else f"there is no {column!r}"
            raise UserError(f"{self.where}: {problem}; add it, or leave the row out")
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:  # JSON can name halves of characters
            raise UserError(f"{self.where}: {column!r} holds half a character ({error.reason})") from error
        return value


@dataclass(frozen=True)
class Table:
    """The rows of a file, and the names of its columns in the order in which they occur."""

    columns: tuple[str, ...]
    rows: list[Row]


def read_table(path: str) -> Table:
    """The rows of a CSV file with a header, of JSON lines, or of a JSON list. Raises UserError."""
    file = Path(path).expanduser()
    try:
        text = file.read_bytes().decode("utf-8-sig")
        table = _json(text, path) if file.suffix.lower() in JSON_SUFFIXES else _csv(text, path)
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}; give dataset.path=FILE") from error
    except UserError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as CSV or JSONL ({one_line(error, 160)})") from error
    if not table.rows:
        raise UserError(f"{path} has no prompts")
    return table


def _csv(text: str, path: str) -> Table:
    reader = csv.reader(io.StringIO(text, newline=""))
    header = next(reader, [])
    rows = []
    for values in reader:
        if not values:  # an empty line
            continue
        where = f"line {reader.line_num} of {path}"
        problem = None
        if len(values) > len(header):  # which of them is one too many cannot be told
            problem = (
                f"has {len(values)} fields, and the header has {len(header)}: put quotes around fields with commas "
                f"({one_line(', '.join(values), 80)})"
            )
        rows.append(Row(where, dict(zip(header, values, strict=False)), problem))
    return Table(tuple(header), rows)


def _json(text: str, path: str) -> Table:
    if text.lstrip().startswith("["):
        found = [(f"row {number} of {path}", content) for number, content in enumerate(parse_json(text), 1)]
    else:
        # Not splitlines: strings may hold other characters that it takes for ends of lines.
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        found = [(where := f"line {number} of {path}", _parsed(line, where)) for number, line in lines]
    for where, content in found:
        if not isinstance(content, dict):
            raise UserError(f"{where} is {_shown(content)}, and it must be a JSON object")
    columns = dict.fromkeys(column for _, content in found for column in content)
    return Table(tuple(columns), [Row(where, content) for where, content in found])


def _parsed(line: str, where: str) -> Any:
    try:
        return parse_json(line)
    except ValueError as error:
        raise UserError(
            f"{where} is not JSON ({one_line(error, 80)}); write one object in each line, or a list of them"
        ) from error


def _shown(value: object) -> str:
    return one_line(json.dumps(value, ensure_ascii=False), 80)
