"""Serving a tree of results: what is shown, what is never given away, and what a notebook shows."""

from __future__ import annotations

import http.client
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from comparable_runs import write_run
from web_runs import nested_run

from mechint.analysis.saved import Run
from mechint.errors import UserError
from mechint.reporting.web import PAGE, write_page
from mechint.reporting.web.notebook import in_notebook
from mechint.reporting.web.server import last_step, make_server
from mechint.results import RunFiles
from mechint.runtime.files import write_json

SECRET = "what nobody may read"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree with a finished run, one that runs, a damaged one, a comparison, and secrets in and around it."""
    tree = tmp_path / "tree"
    write_run(tree / "done #1", [(3, 5), (2, 6)])
    write_page(RunFiles.read(tree / "done #1"))
    running = {"status": "running", "config": {"steps": 40}, "process": None}
    write_json(tree / "running" / "result.json", running)
    (tree / "running" / "metrics.jsonl").write_text('{"step": 9}\n{"step": 10}\n{"ste')
    (tree / "damaged").mkdir()
    (tree / "damaged" / "result.json").write_text("{")
    write_json(tree / "comparison" / "comparison.json", {"kind": "tree"})
    (tmp_path / "outside.txt").write_text(SECRET)
    (tmp_path / "tree-beside").mkdir()
    (tmp_path / "tree-beside" / "file.txt").write_text(SECRET)
    (tree / ".hydra").mkdir()
    (tree / ".hydra" / "config.yaml").write_text(SECRET)
    (tree / ".secret").write_text(SECRET)
    (tree / "link.txt").symlink_to(tmp_path / "outside.txt")
    (tree / "linked").symlink_to(tmp_path)
    (tree / "to hidden.txt").symlink_to(tree / ".secret")
    (tree / "loop").symlink_to(tree / "loop")
    os.mkfifo(tree / "pipe.txt")
    return tree


@pytest.fixture
def port(tree: Path) -> Iterator[int]:
    """The port of a server for the tree."""
    with make_server(tree, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def ask(
    port: int, path: str, method: str = "GET", host: str = "127.0.0.1"
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and content; the path goes out as it stands."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.putrequest(method, path, skip_host=True)
        connection.putheader("Host", f"{host}:{port}")
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def test_files_of_the_tree_are_served_as_they_are(tree: Path, port: int) -> None:
    """A page, in a sandbox; a mask file, to be saved; and only the head of it where that is asked for."""
    status, headers, content = ask(port, f"/files/done%20%231/{PAGE}")
    assert status == 200
    assert content == (tree / "done #1" / PAGE).read_bytes()
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert "sandbox allow-scripts" in headers["content-security-policy"]
    assert "allow-same-origin" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    status, headers, content = ask(port, "/files/done%20%231/final_masks.safetensors", "HEAD")
    assert (status, content) == (200, b"")
    assert headers["content-disposition"] == "attachment"
    assert int(headers["content-length"]) == (tree / "done #1" / "final_masks.safetensors").stat().st_size


@pytest.mark.parametrize(
    "path",
    [
        "/files/../outside.txt",
        "/files/%2e%2e/outside.txt",
        "/files/..%2foutside.txt",
        "/files/%2e%2e%2foutside.txt",
        "/files/done%20%231/../../outside.txt",
        "/files/..%5coutside.txt",
        "/files//etc/passwd",
        "/files/%2fetc%2fpasswd",
        "/files/../tree-beside/file.txt",
        "/files/link.txt",
        "/files/linked/outside.txt",
        "/files/to%20hidden.txt",
        "/files/.secret",
        "/files/.hydra/config.yaml",
        "/files/loop",
        "/files/pipe.txt",
        "/files/done%20%231",
        "/files/",
        "/files/%00",
        "/files/link.txt%00.html",
        "/files/" + "a" * 5000,
        "/outside.txt",
        "//etc/passwd",
        "http://127.0.0.1/files/../outside.txt",
        "/files/missing.txt",
    ],
)
def test_nothing_outside_the_tree_is_served(port: int, path: str) -> None:
    """Dots, encoded dots, links, hidden files, pipes and directories are all not found."""
    status, _, content = ask(port, path)
    assert status == 404
    assert SECRET.encode() not in content
    assert b"root:" not in content


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_written(tree: Path, port: int, method: str) -> None:
    """Every other method is refused, and the tree stays as it is."""
    before = sorted(path.name for path in tree.iterdir())
    assert ask(port, "/files/new.txt", method)[0] == 501
    assert sorted(path.name for path in tree.iterdir()) == before


def test_other_names_for_this_address_are_refused(port: int) -> None:
    """A site whose name resolves to this machine gets nothing."""
    assert ask(port, "/", host="evil.example")[0] == 403
    assert ask(port, "/runs.json", host="evil.example")[0] == 403
    assert ask(port, "/", host="localhost")[0] == 200


def test_the_index_tells_status_and_progress(tree: Path, port: int) -> None:
    """Every run and comparison is listed; one that runs says how far it is, and moves."""

    def told() -> dict[str, dict[str, Any]]:
        return {line["name"]: line for line in json.loads(ask(port, "/runs.json")[2])["runs"]}

    lines = told()
    assert {name: line["status"] for name, line in lines.items()} == {
        "comparison": "done",
        "damaged": "unreadable",
        "done #1": "done",
        "running": "running",
    }
    assert lines["done #1"]["page"] == f"/files/done%20%231/{PAGE}"
    assert lines["done #1"]["kept"] == 16
    assert lines["comparison"]["kind"] == "study"
    assert (lines["running"]["step"], lines["running"]["progress"]) == (10, 0.25)
    with (tree / "running" / "metrics.jsonl").open("a") as file:
        file.write('p": 1}\n{"step": 30}\n')
    assert told()["running"]["progress"] == 0.75
    write_json(
        tree / "running" / "result.json", {"status": "failed", "error": "UserError: no room", "config": {}}
    )
    assert (told()["running"]["status"], told()["running"]["detail"]) == ("failed", "UserError: no room")
    assert "<h1>Results below" in ask(port, "/")[2].decode()


def test_the_last_step_is_found_in_a_long_log(tmp_path: Path) -> None:
    """Only the end of a log is read; a missing one, or one without steps, has none."""
    path = tmp_path / "metrics.jsonl"
    assert last_step(path) is None
    path.write_text("".join(f'{{"step": {step}, "loss": 1.0}}\n' for step in range(5000)))
    assert last_step(path) == 4999
    path.write_text("nonsense\n[]\n1\n")
    assert last_step(path) is None


def test_a_port_or_tree_that_cannot_be_used_is_refused(tree: Path, port: int) -> None:
    """One line that says what to do."""
    for directory, number, words in (
        (tree, port, "choose another one"),
        (tree, -1, "choose"),
        (tree / "no", 0, "no directory"),
    ):
        with pytest.raises(UserError, match=words):
            make_server(directory, number)


def test_a_notebook_shows_the_page_of_a_run(tmp_path: Path) -> None:
    """IPython's own formatter gets a frame with the page in it, which cannot reach the notebook."""
    formatters = pytest.importorskip(
        "IPython.core.formatters", reason="IPython is not installed: pip install -e '.[dev]'"
    )
    run = Run(**vars(nested_run(tmp_path / 'a"><script>alert(1)</script>')))
    shown, _ = formatters.DisplayFormatter().format(run)
    assert shown["text/plain"] == repr(run)
    assert shown["text/html"] == in_notebook(run)
    assert shown["text/html"].startswith('<iframe sandbox="allow-scripts allow-downloads"')
    assert shown["text/html"].count("<") == 2
    assert "Content-Security-Policy" in shown["text/html"]


def test_a_notebook_shows_the_finding_of_a_run_that_is_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would keep megabytes else; the finding says where the page is."""
    monkeypatch.setattr("mechint.reporting.web.notebook.LARGEST", 1000)
    shown = in_notebook(nested_run(tmp_path / "<b>"))
    assert "iframe" not in shown
    assert "12 of 96" in shown
    assert "&lt;b&gt;" in shown
