"""One HTML file with everything in it: template, style, program, data and a block of numbers.

The page may load nothing and run nothing but its own program and style, whose hashes stand in its content security
policy. Text reaches it by two ways only: the template, which escapes, and JSON, which the program writes as text nodes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment
from markupsafe import Markup, escape

from mechint.errors import one_line
from mechint.reporting.templates import environment
from mechint.runtime.files import plain

# The page that every run, comparison and study leaves.
PAGE = "report.html"
ASSETS = Path(__file__).parent / "assets"

IMPORT = re.compile(r"^import \{[^}]*\} from '\./(\w+)\.js';\n", re.MULTILINE)

# Name -> array, all of one entry per channel.
Columns = Mapping[str, np.ndarray]


def page(
    template: str,
    program: str,
    context: Mapping[str, Any],
    data: Mapping[str, Any],
    columns: Columns,
    connect: str = "'none'",
) -> str:
    """The page of a template, run by assets/<program>.js.

    context: what the template may use. data: what the program gets as JSON. columns: numbers per channel, which the
    program gets as typed arrays under the same names; float32, int32, uint8 and bool. connect: whom the program may ask
    for more, as a content security policy says it.
    """
    layout, block = packed(columns)
    script, style = bundle(program), (ASSETS / "page.css").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; "
        f"connect-src {connect}; base-uri 'none'; form-action 'none'"
    )
    # Whatever reads as markup inside an inline program or style would end it.
    assert not any(mark in text for text in (script, style) for mark in ("</", "<!--"))
    return (
        _environment()
        .get_template(f"{template}.html.jinja")
        .render(
            **context,
            policy=policy,
            style=Markup(style),  # our own file
            script=Markup(script),  # our own files
            data=Markup(json_in_html({**data, "columns": layout})),
            block=Markup(block),  # base64
        )
    )


@cache
def _environment() -> Environment:
    """What renders the templates, which are compiled once in a process."""
    made = environment("mechint.reporting.web")
    made.filters |= {"sentence": sentence, "line": one_line}
    made.globals["is_number"] = is_number
    return made


def is_number(values: Iterable[Any]) -> bool:
    """Whether a column holds numbers only."""
    return all(value is None or isinstance(value, (int, float)) for value in values)


def sentence(text: object) -> Markup:
    """A sentence of our own reports, escaped, with its **strong** words and `code` as HTML has them."""
    line = str(escape(one_line(text)))
    line = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", line)
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", line))


@cache
def bundle(program: str) -> str:
    """The modules of assets/<program>.js as one: each module that is imported stands before those that import it.

    Names at the top of all modules are distinct, which a test holds.
    """
    parts: list[str] = []
    seen: set[str] = set()

    def add(name: str) -> None:
        if name in seen:
            return
        seen.add(name)
        text = (ASSETS / f"{name}.js").read_text(encoding="utf-8")
        for imported in IMPORT.findall(text):
            add(imported)
        parts.append(re.sub(r"^export ", "", IMPORT.sub("", text), flags=re.MULTILINE).strip())

    add(program)
    return "\n" + "\n\n".join(parts) + "\n"


def packed(columns: Columns) -> tuple[dict[str, Any], str]:
    """Where each column lies in the block, and the block in base64; columns of four bytes come first, for alignment."""
    layout: dict[str, Any] = {}
    parts: list[bytes] = []
    offset = 0
    for name, values in sorted(columns.items(), key=lambda item: -item[1].itemsize):
        assert values.dtype.name in ("float32", "int32", "uint8", "bool"), values.dtype
        if values.dtype == bool:  # eight to a byte, the first in the lowest bit
            content = np.packbits(values, bitorder="little").tobytes()
        else:
            content = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).tobytes()
        layout[name] = {"type": values.dtype.name, "offset": offset, "length": int(values.size)}
        parts.append(content)
        offset += len(content)
    return layout, base64.b64encode(b"".join(parts)).decode("ascii")


def json_in_html(value: Any) -> str:
    """JSON that may stand inside a script element: nothing in it ends the element or starts a comment."""
    text = json.dumps(plain(value), allow_nan=False, separators=(",", ":"))  # ASCII only
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
