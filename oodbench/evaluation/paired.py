"""Tests between AUROCs that were measured on the same images."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import erfc, exp, log, log1p, sqrt
from statistics import NormalDist
from typing import Any

import numpy as np

from oodbench.errors import OodbenchError
from oodbench.evaluation.levels import placed
from oodbench.evaluation.unseen import unseen_share

__all__ = ["SMALLEST_P", "Difference", "Wins", "difference", "holm"]

SMALLEST_P = 1e-300
"""p-values below this are given as this: an upper bound, since doubles end soon after and p is never 0."""


@dataclass(frozen=True)
class Wins:
    """Twice the number of images of the other kind that an image beats, ties counting one: exact integers.

    Divided by twice the size of the other kind they are DeLong's structural components. An out-of-distribution image
    beats those with smaller scores, an in-distribution image those with larger ones.
    """

    ins: np.ndarray  # int64 (n,), each 0 ... 2 m
    outs: np.ndarray  # int64 (m,), each 0 ... 2 n

    @classmethod
    def of(cls, score_in: Any, score_out: Any) -> "Wins":
        """Of scores (n,) and (m,), larger = more out-of-distribution, as `placed` ranks them.

        Cumulated counts give all of them at once, as the midranks of Sun and Xu (2014) do.
        """
        level_in, level_out = placed(score_in, score_out)
        size = max(level_in.max(), level_out.max()) + 1
        inside, outside = np.bincount(level_in, minlength=size), np.bincount(level_out, minlength=size)
        below = 2 * np.cumsum(inside) - inside
        above = 2 * (len(level_out) - np.cumsum(outside)) + outside
        return cls(above[level_in], below[level_out])

    @property
    def auroc(self) -> float:
        """The share of pairs of images that are in the right order."""
        return float(self.outs.sum() / (2 * len(self.ins) * len(self.outs)))


@dataclass(frozen=True)
class Difference:
    """AUROC of one score less that of another, on the same images."""

    value: float
    low: float
    high: float
    z: float | None  # None where `bounded`
    p: float  # two-sided, of no difference; at least `SMALLEST_P`
    bounded: bool  # the sample has no variance: interval and p are bounds that hold for any distribution


def difference(a: Wins, b: Wins, confidence: float = 0.95) -> Difference:
    """AUROC(a) - AUROC(b) with DeLong's z test and its interval, which is cut off at -1 and 1.

    The variance is that of the images' differences of structural components, var(outs) / m + var(ins) / n: the contrast
    (1, -1) of DeLong's covariance matrix, without the cancellation between its entries.

    Where every image of a kind counts the same difference d (equal order, two perfect scores, one perfect and one
    inverted one) that variance is zero, and with a single image of a kind it is unknown. Then `unseen_share` gives the
    interval: with k = min(n, m), at most a share q of images behaves otherwise, and those may count anything from -1
    to 1, hence [d (1 - q) - q, d (1 - q) + q]; p = min(1, 2 (1 + |d|)^-k) is the level at which it reaches zero.

    Raises `OodbenchError` for scores of different numbers of images.

    References:
        Comparing the areas under two or more correlated receiver operating characteristic curves
            (DeLong, DeLong and Clarke-Pearson, Biometrics 1988)
        Fast implementation of DeLong's algorithm (Sun and Xu, IEEE Signal Processing Letters 2014)
    """
    if (len(a.ins), len(a.outs)) != (len(b.ins), len(b.outs)):
        raise OodbenchError(
            f"Scores of {len(a.ins)} / {len(a.outs)} and of {len(b.ins)} / {len(b.outs)} images cannot be paired: "
            "compare scores of the same images."
        )
    n, m = len(a.ins), len(a.outs)
    ins, outs = a.ins - b.ins, a.outs - b.outs
    value = float(outs.sum() / (2 * n * m))
    if min(n, m) < 2 or (np.ptp(ins) == 0 and np.ptp(outs) == 0):
        k = min(n, m)
        q = unseen_share(k, confidence)
        p = max(SMALLEST_P, exp(min(0.0, log(2) - k * log1p(abs(value)))))
        return Difference(value, value * (1 - q) - q, value * (1 - q) + q, None, p, True)
    deviation = sqrt((outs / (2 * n)).var(ddof=1) / m + (ins / (2 * m)).var(ddof=1) / n)
    z = value / deviation
    half = NormalDist().inv_cdf((1 + confidence) / 2) * deviation
    p = max(SMALLEST_P, erfc(abs(z) / sqrt(2)))
    return Difference(value, max(-1.0, value - half), min(1.0, value + half), z, p, False)


def holm(p: Sequence[float]) -> list[float]:
    """The p-values adjusted for being `len(p)` many, in their order: each is the family-wise level that rejects it.

    The i-th smallest of k (i from 0) is multiplied by k - i, made no smaller than the ones before it, and cut off at 1.

    References:
        A simple sequentially rejective multiple test procedure (Holm, Scandinavian Journal of Statistics 1979)
    """
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    steps = values[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return [float(value) for value in adjusted]
