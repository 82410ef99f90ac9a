"""Area under the ROC curve, with DeLong's interval."""

from math import exp, log, sqrt
from statistics import NormalDist

import numpy as np

from oodbench.evaluation.levels import Levels
from oodbench.evaluation.unseen import unseen_interval

__all__ = ["auroc", "delong_interval", "delong_variance"]


def auroc(levels: Levels) -> float:
    """P(score_out > score_in) + P(score_out = score_in) / 2 over all pairs; a positive is an OOD image."""
    below = np.cumsum(levels.inside)
    wins = 2 * np.dot(levels.outside, below) - np.dot(levels.outside, levels.inside)  # twice the count: an integer
    return float(wins / (2 * levels.n_in * levels.n_out))


def delong_variance(levels: Levels) -> float:
    """DeLong's variance of the AUROC; NaN where one kind has a single image.

    The structural component of an image is the share of the other kind that it beats, ties counting half. Cumulated
    counts give it for all images at once, as the midranks of Sun and Xu do.

    References:
        Comparing the areas under two or more correlated receiver operating characteristic curves
            (DeLong, DeLong and Clarke-Pearson, Biometrics 1988)
        Fast implementation of DeLong's algorithm (Sun and Xu, IEEE Signal Processing Letters 2014)
    """
    n, m = levels.n_in, levels.n_out
    if min(n, m) < 2:
        return float("nan")
    area = auroc(levels)
    of_outs = (np.cumsum(levels.inside) - levels.inside / 2) / n
    of_ins = (m - np.cumsum(levels.outside) + levels.outside / 2) / m
    variance_outs = np.dot(levels.outside, (of_outs - area) ** 2) / (m - 1)
    variance_ins = np.dot(levels.inside, (of_ins - area) ** 2) / (n - 1)
    return float(variance_outs / m + variance_ins / n)


def delong_interval(levels: Levels, confidence: float = 0.95) -> tuple[float, float]:
    """(low, high) of the AUROC: DeLong's normal interval on the logit scale, so that it stays inside (0, 1).

    At an AUROC of 0 or 1, or where the variance vanishes (constant scores) or is unknown (a single image), that
    interval has no width; `unseen_interval` with min(n, m) images takes its place. Close to them it is too narrow: at
    0.999 it held the truth in 92 % of samples of 1,000 and 1,000 normal scores, in 88 % of 997 and 126.
    """
    area, variance = auroc(levels), delong_variance(levels)
    if area in (0.0, 1.0) or not variance > 0:
        return unseen_interval(area, min(levels.n_in, levels.n_out), confidence)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre, half = log(area / (1 - area)), z * sqrt(variance) / (area * (1 - area))
    return _expit(centre - half), _expit(centre + half)


def _expit(x: float) -> float:
    return 1 / (1 + exp(-x)) if x >= 0 else exp(x) / (1 + exp(x))
