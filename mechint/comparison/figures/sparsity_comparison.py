"""Where in the model the variants remove channels."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from mechint.comparison.comparison import Comparison
from mechint.comparison.figures.facts import several_runs
from mechint.comparison.figures.layer_profiles import WIDTH, Profile, body_height, draw_profiles
from mechint.comparison.figures.sheet import comparison_header, new_sheet
from mechint.reporting.style import ACCENT, figure_style, save

PROFILES = (
    Profile("K and V together", lambda layer: layer.sparsity),
    Profile("K channels", lambda layer: layer.k_sparsity, ACCENT["K"]),
    Profile("V channels", lambda layer: layer.v_sparsity, ACCENT["V"]),
)


class SparsityComparison:
    """sparsity_comparison.png: fraction of channels removed per layer, each variant beside the baseline."""

    filename: ClassVar[str] = "sparsity_comparison.png"

    def draw(self, comparison: Comparison, directory: Path, dpi: int) -> list[Path]:
        """Draw the figure into `directory` and return its path."""
        title = "Where channels are removed: sparsity per layer"
        notes = ["Line: mean over runs; band: from the lowest to the highest run."]
        with figure_style():
            header = comparison_header(
                comparison, title, WIDTH, notes * several_runs(comparison), shares(comparison)
            )
            figure, body = new_sheet(header, body_height(comparison))
            panels = draw_profiles(body, comparison, PROFILES, "removed")
            percent_axis(panels[0], comparison)
            return [save(figure, directory / self.filename, dpi)]


def shares(comparison: Comparison) -> dict[str, str]:
    """What share of its K and of its V channels each variant removes."""
    return {
        variant.name: f"removes {100 * variant.k_sparsity.mean:.1f} % of K, {100 * variant.v_sparsity.mean:.1f} % of V"
        for variant in comparison.variants
    }


def percent_axis(axes: Axes, comparison: Comparison) -> None:
    """Up to 100 %, from the highest of a few round numbers that leaves every value in sight."""
    values = [
        profile.value(layer).low
        for variant in comparison.variants
        for layer in variant.layers
        for profile in PROFILES
    ]
    bottom = max(start for start in (0.0, 0.5, 0.8, 0.9) if start == 0 or start <= min(values))
    room = 0.02 * (1 - bottom)
    axes.set_ylim(bottom - room, 1 + room)
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(PercentFormatter(1, 0, " %"))
