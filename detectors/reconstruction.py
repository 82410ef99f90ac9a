"""Reconstruction alone: how badly an image comes back from its latents."""

import numpy as np

from oodbench.detector import Columns, Detector
from oodbench.registry import register

__all__ = ["ReconstructionError"]


@register.detector("reconstruction")
class ReconstructionError(Detector):
    """-E_q[log P(x | z)] of a model with latents, weight x |x - g(z)|^2 of one on a manifold

    The column `reconstruction` of both is that number's negative: the decoder's log-probability, or that of a Gaussian
    around the surface but for its constant.

    Reference:
        An & Cho, "Variational Autoencoder based Anomaly Detection using Reconstruction Probability", 2015.
    """

    needs = ("reconstruction",)

    def score(self, columns: Columns) -> np.ndarray:
        """(N,) nats, on a manifold up to a constant."""
        return -columns["reconstruction"].astype(np.float64)
