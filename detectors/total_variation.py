"""A control without any model: how rough the image is."""

from typing import TYPE_CHECKING

import numpy as np

from oodbench.detector import Columns, Detector
from oodbench.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from oodbench.models.noise import Noise

__all__ = ["TotalVariation", "total_variation"]


@register.statistic("total_variation", needs_model=False)
def total_variation(model: None, x: "Tensor", noise: "Noise") -> "Tensor":
    """Mean absolute difference of the vertically and horizontally neighbouring pixels, 0 to 255

    Takes uint8 (B, C, H, W), returns float64 (B,): one mean over both directions and all channels, 0 for single pixels.
    """
    pixels = x.int()
    down, right = pixels.diff(dim=2).abs(), pixels.diff(dim=3).abs()
    pairs = down[0].numel() + right[0].numel()
    return (down.sum(dim=(1, 2, 3)) + right.sum(dim=(1, 2, 3))).cpu().double() / max(pairs, 1)


@register.detector("total_variation")
class TotalVariation(Detector):
    """-total_variation(x): a control, smoother images are called out-of-distribution

    The sign is the same for every pair and was not chosen on any: it is that of `compressed_size`, for its reason.

    Reference:
        Rudin et al., "Nonlinear total variation based noise removal algorithms", Physica D 1992: the anisotropic,
        discrete form of its objective.
    """

    needs = ("total_variation",)

    def score(self, columns: Columns) -> np.ndarray:
        """(N,) grey levels, negated."""
        return -columns["total_variation"].astype(np.float64)
