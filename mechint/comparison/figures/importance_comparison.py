"""How important the variants' channels are, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from mechint.comparison.comparison import Comparison
from mechint.comparison.figures.facts import several_runs
from mechint.comparison.figures.layer_profiles import WIDTH, Profile, body_height, draw_profiles
from mechint.comparison.figures.sheet import comparison_header, new_sheet
from mechint.reporting.style import ACCENT, figure_style, save

PROFILES = (
    Profile("K and V together", lambda layer: layer.importance),
    Profile("K channels", lambda layer: layer.k_importance, ACCENT["K"]),
    Profile("V channels", lambda layer: layer.v_importance, ACCENT["V"]),
)


class ImportanceComparison:
    """importance_comparison.png: mean importance of a layer's channels, each variant beside the baseline."""

    filename: ClassVar[str] = "importance_comparison.png"

    def draw(self, comparison: Comparison, directory: Path, dpi: int) -> list[Path]:
        """Draw the figure into `directory` and return its path."""
        title = "Which layers matter: mean importance per layer"
        notes = [
            "Importance is scaled to [0, 1] within a run: compare the shapes of lines, not their heights."
        ]
        if several_runs(comparison):
            notes.append("Line: mean over runs; band: from the lowest to the highest run.")
        with figure_style():
            figure, body = new_sheet(
                comparison_header(comparison, title, WIDTH, notes), body_height(comparison)
            )
            panels = draw_profiles(body, comparison, PROFILES, "mean importance")
            panels[0].margins(y=0.08)
            panels[0].set_ylim(bottom=0)
            return [save(figure, directory / self.filename, dpi)]
