"""The likelihood itself, which all other scores have to beat."""

import numpy as np

from oodbench.detector import Columns, Detector
from oodbench.registry import register

__all__ = ["NegativeLogLikelihood"]


@register.detector("likelihood")
class NegativeLogLikelihood(Detector):
    """-log p(x): the model's own surprise, in nats

    Reference:
        Bishop, "Novelty detection and neural network validation", 1994: a threshold on p(x). Its inversion on images:
        Nalisnick et al., "Do Deep Generative Models Know What They Don't Know?", ICLR 2019, arXiv:1810.09136.
    """

    needs = ("log_px",)

    def score(self, columns: Columns) -> np.ndarray:
        """(N,) nats."""
        return -columns["log_px"].astype(np.float64)
