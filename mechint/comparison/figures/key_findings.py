"""The findings in short, as a card of text."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from mechint.comparison.comparison import Comparison
from mechint.comparison.figures.page import LEADING, MARGIN, POINTS, comparison_page, wrapped
from mechint.comparison.findings import in_short
from mechint.errors import one_line
from mechint.reporting.style import INK, figure_style, save

WIDTH, SIZE, INDENT = 7.2, 9.0, 12.0  # inches, points, points


class KeyFindings:
    """key_findings.png: the sentences that key_findings.txt begins with."""

    filename: ClassVar[str] = "key_findings.png"

    def draw(self, comparison: Comparison, directory: Path, dpi: int) -> list[Path]:
        """Draw the figure into `directory` and return its path."""
        room = WIDTH * POINTS - 2 * MARGIN - INDENT
        lines = []
        for sentence in map(one_line, in_short(comparison)):
            lines += [
                ("•" * (not number), words) for number, words in enumerate(wrapped(sentence, SIZE, room))
            ]
        height = SIZE * LEADING * len(lines) + 2 * MARGIN
        others = comparison.others
        who = others[0].name if len(others) == 1 else f"{len(others)} variants"
        title = f"Key findings: {who} against {comparison.baseline}"
        with figure_style():
            figure, body = comparison_page(comparison, (WIDTH, height / POINTS), title)
            for number, (bullet, words) in enumerate(lines):
                up = 1 - (MARGIN / 2 + number * SIZE * LEADING) / height
                for right, piece in ((MARGIN, bullet), (MARGIN + INDENT, words)):
                    body.text(right / (WIDTH * POINTS), up, piece, va="top", size=SIZE, color=INK)
            return [save(figure, directory / self.filename, dpi)]
