"""Figures and report of a run, made from its saved files only."""

from mechint.reporting.circuit import CircuitFigure
from mechint.reporting.importance_overview import ImportanceOverview
from mechint.reporting.layer_importance import LayerImportance
from mechint.reporting.nested import NestedFigure
from mechint.reporting.report import write_report
from mechint.reporting.sparsity_curves import SparsityCurves
from mechint.reporting.stability import StabilityFigure
from mechint.reporting.visualizer import RunFigure, Visualizer

__all__ = [
    "CircuitFigure",
    "ImportanceOverview",
    "LayerImportance",
    "NestedFigure",
    "RunFigure",
    "SparsityCurves",
    "StabilityFigure",
    "Visualizer",
    "write_report",
]
