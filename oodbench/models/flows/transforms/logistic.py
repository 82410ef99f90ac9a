"""A logistic base density, as a layer before the normal one."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from oodbench.models.flows.transforms.base import Transform
from oodbench.models.noise import Noise

__all__ = ["LogisticToNormal"]

_UNIT = math.pi / math.sqrt(3)  # the standard deviation of sigmoid's density
_TAIL = 60.0  # beyond it sigmoid(-h) is too close to what float32 cannot tell from 0
_NEWTON_STEPS = 4


class LogisticToNormal(Transform):
    """z = Phi^-1(sigmoid(c h)): standard normal where h is logistic with unit variance, number by number.

    c = pi / sqrt(3). So log N(z) + log|dz/dh| is the logistic density of h, whose tails suit whitened natural images
    (Dinh et al. 2015, Section 5.1), while everything after this layer still has a normal base.
    """

    def forward(self, h: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        h = _UNIT * h
        log_logistic = F.logsigmoid(h) + F.logsigmoid(-h)
        with torch.no_grad():
            z = self._normal(h)
            slope = (log_logistic + 0.5 * z.square()).exp() * math.sqrt(2 * math.pi)
        z = z + slope * (h - h.detach())  # the value is z, and its derivative the one that Newton's steps do not have
        log_normal = -0.5 * (z.square() + math.log(2 * math.pi))
        return z, (log_logistic - log_normal + math.log(_UNIT)).flatten(1).sum(1)

    def inverse(self, y: Tensor, noise: Noise) -> Tensor:
        h: Tensor = (torch.special.log_ndtr(y) - torch.special.log_ndtr(-y)) / _UNIT
        return h

    def _normal(self, h: Tensor) -> Tensor:
        """Solves log Phi(z) - log Phi(-z) = |h| and gives z the sign of h."""
        goal = h.abs()
        inside = -torch.special.ndtri((-goal.clamp_max(_TAIL)).sigmoid())
        z = torch.where(goal < _TAIL, inside, (2 * goal).sqrt())
        for _ in range(_NEWTON_STEPS):
            above, below = torch.special.log_ndtr(z), torch.special.log_ndtr(-z)
            log_slope = -0.5 * (z.square() + math.log(2 * math.pi)) - above - below
            z = (z - (above - below - goal) * (-log_slope).exp()).clamp_min(0)
        return torch.copysign(z, h)
