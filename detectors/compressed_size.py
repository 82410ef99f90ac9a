"""A control without any model: the size of the compressed image."""

import numpy as np

from oodbench.detector import Columns, Detector
from oodbench.registry import register

__all__ = ["CompressedSize"]


@register.detector("compressed_size")
class CompressedSize(Detector):
    """-complexity_bits(x): a control, smaller compressed images are called out-of-distribution

    The sign is the same for every pair and was not chosen on any: images simpler than the training images are those
    on which likelihoods invert, so a score that this one beats has found simplicity, not novelty. Where the other
    images are the more complex ones, it falls below 0.5 and is shown so.

    Reference:
        Serra et al., ICLR 2020, arXiv:1909.11480: L(x) of S(x) = -l(x) - L(x) alone.
    """

    needs = ("complexity_bits",)

    def score(self, columns: Columns) -> np.ndarray:
        """(N,) bits, negated."""
        return -columns["complexity_bits"].astype(np.float64)
