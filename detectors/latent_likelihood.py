"""The base density alone: what a flow's likelihood says without its volume."""

import numpy as np

from oodbench.detector import Columns, Detector
from oodbench.registry import register

__all__ = ["LatentLikelihood"]


@register.detector("latent_likelihood")
class LatentLikelihood(Detector):
    """-log p(z): how unlikely the base density finds an image's latents, in nats

    Reference:
        Nalisnick et al. 2019, arXiv:1810.09136, Section 4 (Figure 3): the two terms of a flow's likelihood apart.
    """

    needs = ("log_pz",)

    def score(self, columns: Columns) -> np.ndarray:
        """(N,) nats."""
        return -columns["log_pz"].astype(np.float64)
