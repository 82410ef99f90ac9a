"""InFlow's score, with the gate that every image opens for itself."""

import numpy as np

from oodbench.detector import Columns, Detector
from oodbench.registry import register

__all__ = ["InFlowScore"]


@register.detector("inflow")
class InFlowScore(Detector):
    """-(log p(z) + log|det|) of the gated flow: c = 1 where the attention lets an image through, in nats

    The published code subtracts the logarithm of the volume where it should add it, and forgets its factor c; here both
    are as in training.

    Reference:
        Kumar et al., "InFlow: Robust outlier detection utilizing Normalizing Flows", 2021, arXiv:2106.15894.
    """

    needs = ("log_px_open", "log_px_closed", "attention_margin")

    def score(self, columns: Columns) -> np.ndarray:
        """(N,) nats."""
        opened, closed = (columns[name].astype(np.float64) for name in ("log_px_open", "log_px_closed"))
        return -np.where(columns["attention_margin"] >= 0, opened, closed)
