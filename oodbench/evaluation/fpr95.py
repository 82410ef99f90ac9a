"""False positive rate where 95 % of the out-of-distribution images are found."""

import numpy as np

from oodbench.evaluation.levels import Levels

__all__ = ["fpr95"]


def fpr95(levels: Levels) -> np.ndarray:
    """(...,) share of in-distribution images with score >= t, t the largest threshold that >= 95 % of the OOD reach.

    A positive is an OOD image; some papers swap the roles.
    """
    found = np.cumsum(levels.outside[..., ::-1], axis=-1)  # from the highest score down
    passed = np.cumsum(levels.inside[..., ::-1], axis=-1)
    enough = 20 * found >= 19 * found[..., -1:]  # in integers: 0.95 * m is not exact in floating point
    first = np.argmax(enough, axis=-1)[..., None]
    return np.asarray(np.take_along_axis(passed, first, axis=-1)[..., 0] / passed[..., -1])
