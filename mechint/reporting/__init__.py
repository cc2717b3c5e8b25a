"""Figures and report of a run, made from its saved files only."""

from mechint.reporting.circuit import CircuitFigure
from mechint.reporting.circuit_pictures import CircuitDiagram, CircuitHeads, CircuitPatterns
from mechint.reporting.context import Context
from mechint.reporting.layer_importance import LayerImportance
from mechint.reporting.nested import NestedFigure
from mechint.reporting.overview import ImportanceOverview, SurvivalMap
from mechint.reporting.ranks import RankFigure
from mechint.reporting.report import write_report
from mechint.reporting.sparsity_curves import SparsityCurves
from mechint.reporting.stability import StabilityFigure
from mechint.reporting.visualizer import RunFigure, Visualizer

__all__ = [
    "CircuitDiagram",
    "CircuitFigure",
    "CircuitHeads",
    "CircuitPatterns",
    "Context",
    "ImportanceOverview",
    "LayerImportance",
    "NestedFigure",
    "RankFigure",
    "RunFigure",
    "SparsityCurves",
    "StabilityFigure",
    "SurvivalMap",
    "Visualizer",
    "write_report",
]
