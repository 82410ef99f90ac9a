"""The evidence lower bound: what a variational autoencoder was trained on, as a score."""

import numpy as np

from oodbench.detector import Columns, Detector
from oodbench.registry import register

__all__ = ["NegativeELBO"]


@register.detector("elbo")
class NegativeELBO(Detector):
    """-ELBO = -E_q[log P(x | z)] + KL(q(z | x) || p(z)), in nats

    Reference:
        Kingma & Welling, "Auto-Encoding Variational Bayes", ICLR 2014, arXiv:1312.6114, Equation 3. The importance-
        weighted estimate of -log P(x) is `likelihood`.
    """

    needs = ("elbo",)

    def score(self, columns: Columns) -> np.ndarray:
        """(N,) nats."""
        return -columns["elbo"].astype(np.float64)
