"""Logits of pixels (Dinh et al. 2017, Section 4.1): from the cube to all of R^d."""

import math

import torch.nn.functional as F
from torch import Tensor

from oodbench.models.flows.transforms.base import Transform
from oodbench.models.noise import Noise

__all__ = ["Logit"]


class Logit(Transform):
    """y = logit(a + (1 - 2a) (h + 1/2)) of states in [-1/2, 1/2]; a keeps the edges of the cube finite."""

    def __init__(self, alpha: float = 0.05) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, h: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        p = self.alpha + (1 - 2 * self.alpha) * (h + 0.5)
        y = p.logit()
        # log dy/dp = -log p - log(1 - p), and log p + log(1 - p) = logsigmoid(y) + logsigmoid(-y)
        volume = math.log(1 - 2 * self.alpha) - F.logsigmoid(y) - F.logsigmoid(-y)
        return y, volume.flatten(1).sum(1)

    def inverse(self, y: Tensor, noise: Noise) -> Tensor:
        return (y.sigmoid() - self.alpha) / (1 - 2 * self.alpha) - 0.5
