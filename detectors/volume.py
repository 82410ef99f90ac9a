"""The volume alone: what a flow's likelihood says without its base density."""

import numpy as np

from oodbench.detector import Columns, Detector
from oodbench.registry import register

__all__ = ["Volume"]


@register.detector("volume")
class Volume(Detector):
    """-log|det dz/dx|: how little a flow expands the space around an image, in nats

    A constant-volume flow gives one number for all images, so that nothing is told apart: AUROC 0.5.

    Reference:
        Nalisnick et al. 2019, arXiv:1810.09136, Section 4 (Figure 3): the two terms of a flow's likelihood apart.
    """

    needs = ("log_det",)

    def score(self, columns: Columns) -> np.ndarray:
        """(N,) nats."""
        return -columns["log_det"].astype(np.float64)
