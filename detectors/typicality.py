"""Typicality: a likelihood can be too high as well as too low."""

import numpy as np

from oodbench.detector import Columns, Detector
from oodbench.errors import OodbenchError
from oodbench.registry import register

__all__ = ["Typicality"]


@register.detector("typicality")
class Typicality(Detector):
    """|mean over a group of -log p(x) - H|: distance from the typical set, H = mean of -log p over validation images

    Reference:
        Nalisnick et al., "Detecting Out-of-Distribution Inputs to Deep Generative Models Using Typicality", 2019,
        arXiv:1906.02994: |1/M sum_m -log p(x_m) - H| for a batch of M images. H is the mean over images held out of
        training, since an overfitted model knows its training images too well. The paper's bootstrap only sets a
        threshold, which ranks do not need.
    """

    needs = ("log_px",)
    group_sizes = (1, 2, 10, 25)

    def fit(self, validation: Columns) -> None:
        """Estimates the entropy H, in nats, on the images to which the model gives a number."""
        log_px = validation["log_px"].astype(np.float64)
        log_px = log_px[np.isfinite(log_px)]
        if not len(log_px):
            raise OodbenchError("typicality needs a validation image with a finite likelihood, and there is none.")
        self.entropy = -float(log_px.mean())

    def score(self, columns: Columns) -> np.ndarray:
        """(N / group_size,) nats."""
        means = np.mean(-columns.groups("log_px").astype(np.float64), axis=1)
        scores: np.ndarray = np.abs(means - self.entropy)
        return scores
