"""Pictures of a comparison, of a study and of circuits, drawn from plain values only."""

from mechint.comparison.figures.channels_comparison import ChannelsComparison
from mechint.comparison.figures.circuit_matrices import CircuitMatrices
from mechint.comparison.figures.delta_heatmap import DeltaHeatmap
from mechint.comparison.figures.key_findings import KeyFindings
from mechint.comparison.figures.kl_by_sparsity import KLBySparsity
from mechint.comparison.figures.overall_summary import OverallSummary
from mechint.comparison.figures.pareto import Pareto
from mechint.comparison.figures.profiles import ImportanceComparison, SparsityComparison

__all__ = [
    "ChannelsComparison",
    "CircuitMatrices",
    "DeltaHeatmap",
    "ImportanceComparison",
    "KLBySparsity",
    "KeyFindings",
    "OverallSummary",
    "Pareto",
    "SparsityComparison",
]
