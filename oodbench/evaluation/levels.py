"""Scores reduced to what every metric needs: how many images of each kind stand at each distinct score."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from oodbench.errors import OodbenchError

__all__ = ["Levels", "count_nonfinite", "placed"]


@dataclass(frozen=True)
class Levels:
    """Counts of images at the K distinct scores, in rising order of score.

    Equal scores share a level, so ties are exact and only the order of the scores matters, never their size. Leading
    axes hold several experiments at once (bootstrap resamples); every row holds at least one image of each kind.
    """

    inside: np.ndarray  # int64 (..., K), in-distribution images
    outside: np.ndarray  # int64 (..., K), out-of-distribution images

    @classmethod
    def of(cls, score_in: Any, score_out: Any) -> "Levels":
        """The levels of in-distribution scores (n,) and out-of-distribution scores (m,), as `placed` ranks them."""
        level_in, level_out = placed(score_in, score_out)
        size = max(level_in.max(), level_out.max()) + 1
        inside = np.bincount(level_in, minlength=size)
        outside = np.bincount(level_out, minlength=size)
        used = inside + outside > 0
        return cls(inside[used].astype(np.int64), outside[used].astype(np.int64))

    @property
    def n_in(self) -> int:
        """The number of in-distribution images."""
        return int(self.inside.reshape(-1, self.inside.shape[-1])[0].sum())

    @property
    def n_out(self) -> int:
        """The number of out-of-distribution images."""
        return int(self.outside.reshape(-1, self.outside.shape[-1])[0].sum())


def placed(score_in: Any, score_out: Any) -> tuple[np.ndarray, np.ndarray]:
    """Where every image stands: int64 (n,) and (m,), equal for equal scores; larger = more out-of-distribution.

    Infinite scores rank naturally. A NaN is not an answer, so it stands where it harms the detector most: above all
    other scores for an in-distribution image, below all others for an out-of-distribution image. Raises `OodbenchError`
    for empty scores or scores that are not one number an image.
    """
    score_in, score_out = _checked(score_in, "in-distribution"), _checked(score_out, "out-of-distribution")
    nan_in, nan_out = np.isnan(score_in), np.isnan(score_out)
    distinct = np.unique(np.concatenate([score_in[~nan_in], score_out[~nan_out]]))
    top = len(distinct) + 1  # level 0 is for NaN among the outs, `top` for NaN among the ins
    level_in = np.where(nan_in, top, np.searchsorted(distinct, score_in) + 1)
    level_out = np.where(nan_out, 0, np.searchsorted(distinct, score_out) + 1)
    return level_in, level_out


def count_nonfinite(*scores: Any) -> int:
    """How many scores are NaN or infinite: `placed` ranks them, and a result must show the count."""
    return sum(int(np.count_nonzero(~np.isfinite(np.asarray(score, dtype=np.float64)))) for score in scores)


def _checked(scores: Any, kind: str) -> np.ndarray:
    score: np.ndarray = np.asarray(scores, dtype=np.float64)
    if score.ndim != 1:
        raise OodbenchError(f"The {kind} scores have shape {score.shape}: a detector gives one score an image, (N,).")
    if len(score) == 0:
        raise OodbenchError(f"There are no {kind} scores to evaluate: use more images or smaller groups.")
    return score
