"""The divergence alone: how much an image has to tell that the prior does not know."""

import numpy as np

from oodbench.detector import Columns, Detector
from oodbench.registry import register

__all__ = ["Divergence"]


@register.detector("kl")
class Divergence(Detector):
    """KL(q(z | x) || p(z)): the other term of the evidence bound, in nats

    Reference:
        Kingma & Welling 2014, arXiv:1312.6114, Equation 3; on out-of-distribution images Xiao et al. 2020,
        arXiv:2003.02977.
    """

    needs = ("kl",)

    def score(self, columns: Columns) -> np.ndarray:
        """(N,) nats."""
        return columns["kl"].astype(np.float64)
