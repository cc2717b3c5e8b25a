"""Draws the figures that its configuration lists, and writes the report."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from matplotlib.figure import Figure

from mechint.errors import UserError
from mechint.reporting.context import Context
from mechint.reporting.report import write_report
from mechint.reporting.style import FORMATS, figure_style, save
from mechint.reporting.web import write_page
from mechint.results.run_files import RunFiles

log = logging.getLogger(__name__)


# Below, figures cannot be read; above, one of a large model takes gigabytes.
LEAST_DPI, MOST_DPI = 20, 600


def require_dpi(dpi: object, name: str) -> None:
    """Raise UserError for dots per inch with which nothing can be drawn."""
    if isinstance(dpi, bool) or not isinstance(dpi, int) or not LEAST_DPI <= dpi <= MOST_DPI:
        raise UserError(f"{name}={dpi} must be a whole number from {LEAST_DPI} to {MOST_DPI}, e.g. 150")


class RunFigure(Protocol):
    """One kind of picture of a run."""

    def draw(self, context: Context) -> Iterator[tuple[str, Figure]]:
        """The picture or pictures, each under the name of its file without the suffix; none where there is none."""
        ...


class Visualizer:
    """Turns a run's files into figures and a report; neither model nor data is needed.

    figures: objects with `draw(context)`; a new one is one class and one line in conf/visualizer/. dpi: dots per inch
    of PNG files, and of what is drawn as an image in others. format: png, pdf or svg.
    """

    def __init__(self, figures: Sequence[RunFigure], dpi: int = 150, format: str = "png") -> None:
        require_dpi(dpi, "visualizer.dpi")
        if format not in FORMATS:
            raise UserError(f"visualizer.format={format} is not known; use one of {', '.join(FORMATS)}")
        self.figures, self.dpi, self.format = list(figures), dpi, format

    def draw(self, run: RunFiles) -> list[Path]:
        """Write every figure and then the report that links them; return their paths, the report last."""
        context, drawn = Context(run), []
        with figure_style():
            for figure in self.figures:
                for stem, picture in figure.draw(context):
                    drawn.append(save(picture, run.directory / f"{stem}.{self.format}", self.dpi))
        return [*drawn, write_page(run), write_report(context, drawn)]

    def draw_if_room(self, run: RunFiles) -> list[Path]:
        """As `draw`; where the disk is full the numbers are worth more than figures, and a note says what happened."""
        try:
            return self.draw(run)
        except OSError as error:
            reason = error.strerror or error
            log.warning("not all figures could be written (%s); visualize.py draws them later", reason)
            run.result.add_notes(f"figures are missing: {reason}")
            return []
