"""The likelihood under the whole posterior over weights."""

import numpy as np

from oodbench.detector import Columns, Detector
from oodbench.registry import register

__all__ = ["Marginal"]


@register.detector("marginal")
class Marginal(Detector):
    """-log 1/M sum_m p(x | theta_m): the posterior predictive density, in nats

    Reference:
        Daxberger & Hernandez-Lobato, "Bayesian Variational Autoencoders for Unsupervised Out-of-Distribution
        Detection", 2019, arXiv:1912.05651: the expected likelihood, Equation 8.
    """

    needs = ("log_px_members",)

    def score(self, columns: Columns) -> np.ndarray:
        """(N,) nats."""
        of_members = columns["log_px_members"].astype(np.float64)
        scores: np.ndarray = np.log(of_members.shape[1]) - np.logaddexp.reduce(of_members, axis=1)
        return scores
