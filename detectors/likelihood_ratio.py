"""Likelihood ratio: what the model knows beyond the background that every image shares."""

import numpy as np

from oodbench.detector import Columns, Detector
from oodbench.registry import register

__all__ = ["LikelihoodRatio"]


@register.detector("likelihood_ratio")
class LikelihoodRatio(Detector):
    """-(log p(x) - log p_background(x)): the background model was trained on mutated images

    Reference:
        Ren et al., "Likelihood Ratios for Out-of-Distribution Detection", NeurIPS 2019, arXiv:1906.02845: LLR(x) =
        log p(x) / p_background(x), negated, over whole images. How the images were mutated stands in the recipe of the
        background model.
    """

    needs = ("log_px", "log_px@background")

    def score(self, columns: Columns) -> np.ndarray:
        """(N,) nats."""
        return columns["log_px@background"].astype(np.float64) - columns["log_px"].astype(np.float64)
