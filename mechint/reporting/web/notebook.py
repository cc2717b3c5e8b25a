"""A run as a notebook shows it."""

from __future__ import annotations

from markupsafe import Markup, escape

from mechint.reporting.context import Context
from mechint.reporting.finding import finding
from mechint.reporting.web.page import PAGE, sentence
from mechint.reporting.web.run_page import run_page
from mechint.results.run_files import RunFiles

# Characters; a notebook keeps what it shows, and is opened as a whole.
LARGEST = 2_000_000


def in_notebook(run: RunFiles) -> str:
    """The page of a run in a frame that cannot reach the notebook; of a large one only the finding."""
    text = run_page(run)
    if len(text) > LARGEST:
        told = sentence(finding(Context(run)))
        return Markup("<p>{}</p><p>{} has every channel.</p>").format(told, run.directory / PAGE)
    return (
        f'<iframe sandbox="allow-scripts allow-downloads" title="Report of the run in {escape(run.directory)}" '
        f'width="100%" height="640" frameborder="0" srcdoc="{escape(text)}"></iframe>'
    )
