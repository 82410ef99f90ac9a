"""The entropy of the members' weights."""

import numpy as np

from oodbench.detector import Columns, Detector
from oodbench.members import of_members, weight_entropy
from oodbench.registry import register

__all__ = ["WeightEntropy"]


@register.detector("weight_entropy")
class WeightEntropy(Detector):
    """-log H, H = -sum_m w_m log w_m and w = softmax of the members' log p: ranks as -H does, without ties

    Reference:
        Glazunov & Zarras, "Do Bayesian Variational Autoencoders Know What They Don't Know?", UAI 2022: the entropy of
        the members' normalised likelihoods, low for foreign images.
    """

    needs = ("log_px_members",)

    def score(self, columns: Columns) -> np.ndarray:
        """(N,)."""
        return -weight_entropy(of_members(columns["log_px_members"]))
