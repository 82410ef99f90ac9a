"""WAIC: a likelihood that pays for the members' disagreement."""

import numpy as np

from oodbench.detector import Columns, Detector
from oodbench.members import of_members
from oodbench.registry import register

__all__ = ["WAIC"]


@register.detector("waic")
class WAIC(Detector):
    """-(mean_m L_m - var_m L_m) over the members' log p(x | theta_m)

    Reference:
        Choi et al., "WAIC, but Why? Generative Ensembles for Robust Anomaly Detection", 2018, arXiv:1810.01392,
        Equation 2; the variance is the sample's (M - 1), as in Watanabe's criterion.
    """

    needs = ("log_px_members",)

    def score(self, columns: Columns) -> np.ndarray:
        """(N,) nats (the variance in nats squared, as published)."""
        log_px = of_members(columns["log_px_members"])
        scores: np.ndarray = log_px.var(axis=1, ddof=1) - log_px.mean(axis=1)
        return scores
