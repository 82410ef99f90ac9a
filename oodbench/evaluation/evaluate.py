"""All metrics of one detector on one pair."""

from collections.abc import Callable
from typing import Any

import numpy as np

from oodbench.evaluation.auroc import auroc, delong_interval
from oodbench.evaluation.average_precision import aupr_in, aupr_out
from oodbench.evaluation.bootstrap import bootstrap_intervals
from oodbench.evaluation.fpr95 import fpr95
from oodbench.evaluation.levels import Levels

__all__ = ["METRICS", "METRICS_VERSION", "evaluate_scores"]

METRICS = {"auroc": "AUROC", "aupr_in": "AUPR-in", "aupr_out": "AUPR-out", "fpr95": "FPR95"}
"""The keys of a record's metrics, and how they are written."""

METRICS_VERSION = 2
"""Raised when the same scores come to give other metrics: those in earlier records are not taken over then."""

_BOOTSTRAPPED: dict[str, Callable[[Levels], np.ndarray]] = {"aupr_in": aupr_in, "aupr_out": aupr_out, "fpr95": fpr95}
# An image drawn twice counts itself among those before it. Where few rank well, as in an inversion, what that adds to
# the precision is more than its spread: without correction hardly a 95 % interval would hold the truth.
_BIASED = ("aupr_in", "aupr_out")


def evaluate_scores(score_in: Any, score_out: Any, *, seed: int = 0) -> dict[str, dict[str, float]]:
    """AUROC, AUPR-in, AUPR-out and FPR95, each as {"value", "low", "high"} with a 95 % interval.

    Takes in-distribution scores (n,) and out-of-distribution scores (m,), larger = more out-of-distribution. Only
    their order counts. NaN ranks worst for the detector (see `placed`); report `count_nonfinite` beside the result.
    AUROC has DeLong's interval, the others a stratified bootstrap of 1,000 resamples drawn with `seed`. Raises
    `OodbenchError` for empty scores or scores that are not one number an image.
    """
    levels = Levels.of(score_in, score_out)
    low, high = delong_interval(levels)
    result = {"auroc": {"value": auroc(levels), "low": low, "high": high}}
    for name, (low, high) in bootstrap_intervals(_BOOTSTRAPPED, levels, seed=seed, biased=_BIASED).items():
        result[name] = {"value": float(_BOOTSTRAPPED[name](levels)), "low": low, "high": high}
    return result
