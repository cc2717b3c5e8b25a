"""A run in Jupyter: a notebook that is executed shows the run's page."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest
from web_runs import scored_masks, scored_run

from mechint.reporting.web import run_page
from mechint.results import RunFiles, save_masks

nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: pip install -e '.[dev]'")
nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed: pip install -e '.[dev]'")
pytest.importorskip("ipykernel", reason="ipykernel is not installed: pip install -e '.[dev]'")


@pytest.mark.slow
def test_the_last_line_of_a_cell_shows_the_run(tmp_path: Path) -> None:
    """The output is the page in a frame that may only run its own program, and one line where there is no HTML."""
    run = scored_run(tmp_path / "<run>", scored_masks(24))
    run.directory.mkdir()
    run.result.write(run.directory)
    save_masks(run.masks, run.directory, {})
    cells = ["from mechint import load_run", f"load_run({str(run.directory)!r})"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, timeout=240, startup_timeout=240, kernel_name="python3").execute(
        cwd=str(tmp_path)
    )
    nbformat.validate(notebook)
    (shown,) = notebook.cells[1].outputs
    assert shown.output_type == "execute_result"
    assert shown.data["text/plain"].startswith(f"Run('{run.directory}', model=")
    (frame,) = re.findall(r"<iframe ([^>]*)></iframe>", shown.data["text/html"])
    attributes = dict(re.findall(r'([\w-]+)="([^"]*)"', frame))
    assert attributes["sandbox"] == "allow-scripts allow-downloads"
    assert html.unescape(attributes["srcdoc"]) == run_page(RunFiles.read(run.directory))
