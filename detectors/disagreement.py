"""Disagreement: how few members speak for an image."""

import numpy as np

from oodbench.detector import Columns, Detector
from oodbench.members import excess_sample_size, of_members
from oodbench.registry import register

__all__ = ["Disagreement"]


@register.detector("disagreement")
class Disagreement(Detector):
    """-log(ESS - 1), ESS = 1/sum_m w_m^2 and w = softmax of the members' log p: ranks as -ESS does, without ties

    Reference:
        Daxberger & Hernandez-Lobato, "Bayesian Variational Autoencoders for Unsupervised Out-of-Distribution
        Detection", 2019, arXiv:1912.05651: the effective sample size of the members' weights, low for foreign images.
        Gaps of tens of nats make ESS exactly 1 in float64; its excess over 1 is taken in log-space instead.
    """

    needs = ("log_px_members",)

    def score(self, columns: Columns) -> np.ndarray:
        """(N,)."""
        return -excess_sample_size(of_members(columns["log_px_members"]))
