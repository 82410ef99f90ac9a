"""Area under the precision-recall curve, as average precision: a step function, never interpolated linearly."""

import numpy as np

from oodbench.evaluation.levels import Levels

__all__ = ["aupr_in", "aupr_out"]


def aupr_out(levels: Levels) -> np.ndarray:
    """(...,) mean over OOD images of the precision of "score >= that image's score"; a positive is an OOD image."""
    return _average_precision(levels.outside[..., ::-1], levels.inside[..., ::-1])


def aupr_in(levels: Levels) -> np.ndarray:
    """(...,) the same with in-distribution images as positives and the negated score."""
    return _average_precision(levels.inside, levels.outside)


def _average_precision(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """Counts (..., K) in the order in which a falling threshold admits them; a tied level is admitted as a whole."""
    true = np.cumsum(positives, axis=-1)
    admitted = true + np.cumsum(negatives, axis=-1)
    # In a resample the first levels can be empty; they hold no positive, so what they divide by does not matter.
    precision = true / np.maximum(admitted, 1)
    return np.asarray(np.einsum("...k,...k->...", positives, precision) / true[..., -1])
