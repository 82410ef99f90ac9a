"""Metrics with 95 % confidence intervals, from the order of float64 scores alone."""

from oodbench.evaluation.auroc import auroc, delong_interval, delong_variance
from oodbench.evaluation.average_precision import aupr_in, aupr_out
from oodbench.evaluation.bootstrap import bootstrap_intervals
from oodbench.evaluation.evaluate import METRICS, METRICS_VERSION, evaluate_scores
from oodbench.evaluation.fpr95 import fpr95
from oodbench.evaluation.levels import Levels, count_nonfinite
from oodbench.evaluation.paired import SMALLEST_P, Difference, Wins, difference, holm

__all__ = [
    "METRICS",
    "METRICS_VERSION",
    "SMALLEST_P",
    "Difference",
    "Levels",
    "Wins",
    "aupr_in",
    "aupr_out",
    "auroc",
    "bootstrap_intervals",
    "count_nonfinite",
    "delong_interval",
    "delong_variance",
    "difference",
    "evaluate_scores",
    "fpr95",
    "holm",
]
