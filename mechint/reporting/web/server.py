"""Serves a tree of results on this machine: an index of its runs with their progress, and their files, read only.

Whoever can reach the port is not trusted with more than a reader needs: nothing outside the tree is served, nothing
hidden, nothing that another site could read through this address, and pages run in a sandbox of their own.
"""

from __future__ import annotations

import json
import logging
import os
import stat
from collections.abc import Iterator
from functools import lru_cache, partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from mechint.errors import UserError, one_line
from mechint.reporting.web.page import PAGE, page
from mechint.results.find import SKIPPED, natural
from mechint.results.result import RESULT, Result, UnreadableResult
from mechint.runtime.files import parse_json, plain

log = logging.getLogger(__name__)

ADDRESS = "127.0.0.1"
FILES = "/files/"
COMPARISON = "comparison.json"
# What a browser may show; everything else is saved. Pages of the tree are ours only as far as anybody knows.
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".pdf": "application/pdf",
    ".md": "text/plain; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
    ".log": "text/plain; charset=utf-8",
    ".json": "application/json",
    ".jsonl": "text/plain; charset=utf-8",
    ".csv": "text/csv; charset=utf-8",
    ".yaml": "text/plain; charset=utf-8",
}
SANDBOX = "sandbox allow-scripts allow-downloads; frame-ancestors 'none'"
# The end of metrics.jsonl in which its last line is looked for.
TAIL = 16_384
BLOCK = 65_536


def make_server(root: Path, port: int = 8000) -> ThreadingHTTPServer:
    """A server for the tree below `root`; port 0 takes a free one.

    Raises UserError where there is no directory, and where the port is taken.
    """
    if not root.is_dir():
        raise UserError(f"there is no directory {root}; give the output directory of a run or of a sweep")
    try:
        server = ThreadingHTTPServer((ADDRESS, port), partial(Handler, root.resolve()))
    except (OSError, OverflowError) as error:
        raise UserError(
            f"port={port} cannot be used ({one_line(error)}); choose another one, or 0 for any"
        ) from error
    server.daemon_threads = True
    return server


def serve(root: Path, port: int = 8000) -> None:
    """Serve until interrupted."""
    with make_server(root, port) as server:
        log.info("serving %s at http://%s:%d/ until Ctrl-C", root, ADDRESS, server.server_address[1])
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            log.info("stopped")


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD; every other method is refused by the base class."""

    server_version = "mechint"
    sys_version = ""
    timeout = 30  # a connection that says nothing is dropped

    def __init__(self, root: Path, *arguments: Any) -> None:
        self.root = root
        super().__init__(*arguments)

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> None:
        # A page of another site that names this address by its own name would else be let in by the browser.
        if self.headers.get("Host", "").rsplit(":", 1)[0] not in (ADDRESS, "localhost"):
            self.send_error(HTTPStatus.FORBIDDEN, "ask for 127.0.0.1")
            return
        path = urlsplit(self.path).path
        if path == "/":
            self._send(index_page(self.root).encode("utf-8"), TYPES[".html"], "frame-ancestors 'none'")
        elif path == "/runs.json":
            told = {"runs": list(runs_of(self.root))}
            self._send(json.dumps(plain(told)).encode("utf-8"), TYPES[".json"])
        elif path.startswith(FILES) and (found := inside(self.root, unquote(path[len(FILES) :]))):
            self._send_file(found)
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def _send(self, content: bytes, kind: str, policy: str = "default-src 'none'; sandbox") -> None:
        self._head(kind, len(content), policy)
        if self.command == "GET":
            self.wfile.write(content)

    def _send_file(self, path: Path) -> None:
        try:
            file = path.open("rb")
        except OSError:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        with file:
            kind = TYPES.get(path.suffix.lower(), "application/octet-stream")
            length = os.fstat(file.fileno()).st_size
            self._head(kind, length, SANDBOX)
            while self.command == "GET" and length > 0 and (block := file.read(min(BLOCK, length))):
                self.wfile.write(block)
                length -= len(block)

    def _head(self, kind: str, length: int, policy: str) -> None:
        self.send_response(HTTPStatus.OK)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(length),
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cache-Control": "no-store",
        }.items():
            self.send_header(name, value)
        if kind == "application/octet-stream":
            self.send_header("Content-Disposition", "attachment")
        self.end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Into the log instead of on the terminal, on one line whatever was asked for."""
        log.debug("%s", one_line(format % arguments))


def inside(root: Path, name: str) -> Path | None:
    """The plain file of this name below `root`, whatever links and dots say; None where it is hidden or missing."""
    parts = name.split("/")
    if any(part in ("", ".", "..") or part.startswith(".") or "\\" in part or "\0" in part for part in parts):
        return None
    try:
        path = root.joinpath(*parts).resolve(strict=True)
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        return path if not hidden and stat.S_ISREG(path.stat().st_mode) else None
    except (OSError, ValueError, RuntimeError):  # not there, outside, or a link to itself
        return None


def index_page(root: Path) -> str:
    """The page that lists every run and comparison below `root`."""
    runs = list(runs_of(root))
    context = {"title": f"Results below {root.name}", "root": root, "runs": runs}
    return page("index", "index", context, {"kind": "index", "runs": plain(runs)}, {}, connect="'self'")


def runs_of(root: Path) -> Iterator[dict[str, Any]]:
    """A line for everything below `root` that has a result, by name: what it is, how far it is, and its page."""
    for directory, files in sorted(_walk(root), key=lambda found: natural(str(found[0]))):
        name = "." if directory == root else directory.relative_to(root).as_posix()
        report = (directory / PAGE).relative_to(root).as_posix() if PAGE in files else None
        line = {"name": name, "page": report and FILES + quote(report)}
        yield line | (run_line(directory) if RESULT in files else comparison_line(directory))


def _walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    for directory, below, files in os.walk(root):
        below[:] = [name for name in below if not name.startswith(".") and name not in SKIPPED]
        if RESULT in files or COMPARISON in files:
            yield Path(directory), files


def run_line(directory: Path) -> dict[str, Any]:
    """What result.json and the log of steps say of a run."""
    try:
        state = (directory / RESULT).stat()
        result = _read(directory, state.st_mtime_ns, state.st_size)
    except (OSError, UnreadableResult) as error:
        return {"kind": "run", "status": "unreadable", "detail": one_line(error, 200)}
    status = result.true_status
    steps = result.config.get("steps")
    step = last_step(directory / "metrics.jsonl") if status == "running" else None
    known = step is not None and isinstance(steps, int) and steps > 0
    return {
        "kind": "run",
        "status": status,
        "detail": one_line(result.error or "", 200),
        "model": result.checkpoint.label if result.checkpoint.source else "",
        "method": result.mask.method or "",
        "kept": result.sparsity.kept if status == "done" else None,
        "total": result.sparsity.total if status == "done" else None,
        "kl": result.metrics.masked.kl,
        "faithfulness": result.faithfulness,
        "step": step,
        "steps": steps if isinstance(steps, int) else None,
        "progress": min(1.0, (step or 0) / steps) if known and isinstance(steps, int) else None,
    }


@lru_cache(maxsize=10_000)
def _read(directory: Path, changed: int, size: int) -> Result:
    """The result of a run as it was at a time; a large tree is asked for every other second."""
    return Result.read(directory)


def comparison_line(directory: Path) -> dict[str, Any]:
    """What comparison.json says."""
    try:
        content = parse_json((directory / COMPARISON).read_text(encoding="utf-8"))
        kind = {"variants": "comparison", "tree": "study"}.get(str(content.get("kind")), "comparison")
    except (OSError, ValueError, AttributeError) as error:
        return {"kind": "comparison", "status": "unreadable", "detail": one_line(error, 200)}
    return {"kind": kind, "status": "done", "detail": ""}


def last_step(path: Path) -> int | None:
    """The step of the last whole line of a log of steps; None where there is none yet."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            step = parse_json(line)["step"]
        except (ValueError, TypeError, KeyError):  # cut short, by the window or by a writer that is not done
            continue
        return step if isinstance(step, int) else None
    return None
