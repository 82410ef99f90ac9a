"""The spread of the members' likelihoods."""

import numpy as np

from oodbench.detector import Columns, Detector
from oodbench.members import of_members
from oodbench.registry import register

__all__ = ["LikelihoodStd"]


@register.detector("likelihood_std")
class LikelihoodStd(Detector):
    """std_m log p(x | theta_m): the members' sample standard deviation, in nats

    Reference:
        Glazunov & Zarras, "Do Bayesian Variational Autoencoders Know What They Don't Know?", UAI 2022.
    """

    needs = ("log_px_members",)

    def score(self, columns: Columns) -> np.ndarray:
        """(N,) nats."""
        scores: np.ndarray = of_members(columns["log_px_members"]).std(axis=1, ddof=1)
        return scores
