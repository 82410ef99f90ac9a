"""Monotone rational-quadratic splines (Durkan et al. 2019)."""

import math
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from oodbench.models.flows.transforms.base import require
from oodbench.models.flows.transforms.elementwise import Elementwise

__all__ = ["RationalQuadratic"]

_LEAST = 1e-3  # of the bins' widths and heights as shares of the interval, and of the slopes at the knots


class RationalQuadratic(Elementwise):
    """A monotone spline of `bins` rational-quadratic pieces on [-bound, bound], the identity outside.

    Numbers that steer it: K widths, K heights, K - 1 slopes at the inner knots; all zeros are the identity. Its inverse
    is analytic (Durkan et al. 2019, Equations 4 to 8).
    """

    def __init__(self, bins: int = 8, bound: float = 3.0) -> None:
        require(bins >= 2, f"A spline of {bins} bins bends nowhere: use at least 2.")
        require(bins * _LEAST < 1, f"A spline of {bins} bins has too narrow ones: use fewer than {1 / _LEAST:.0f}.")
        require(bound > 0, f"A spline on [-{bound}, {bound}] is empty: use a positive bound.")
        self.bins = bins
        self.bound = bound
        self.parameters = 3 * bins - 1

    def forward(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        inside = x.abs() < self.bound
        left, bottom, width, height, before, after = self._bin(x, theta, of_inputs=True)
        slope = height / width
        place = ((x - left) / width).clamp(0, 1)
        rest = 1 - place
        product = place * rest
        denominator = slope + (before + after - 2 * slope) * product
        y = bottom + height * (slope * place * place + before * product) / denominator
        derivative = after * place * place + 2 * slope * product + before * rest * rest
        volume = derivative.log() + 2 * (slope / denominator).log()
        return torch.where(inside, y, x), torch.where(inside, volume, 0).flatten(1).sum(1)

    def inverse(self, y: Tensor, theta: Tensor) -> Tensor:
        inside = y.abs() < self.bound
        left, bottom, width, height, before, after = self._bin(y, theta, of_inputs=False)
        slope = height / width
        v = (y - bottom).clamp_min(0).minimum(height)
        bend = v * (before + after - 2 * slope)
        a, b, c = height * (slope - before) + bend, height * before - bend, -slope * v
        place = 2 * c / (-b - (b * b - 4 * a * c).clamp_min(0).sqrt())  # the root that does not cancel
        return torch.where(inside, left + width * place, y)

    def _bin(self, value: Tensor, theta: Tensor, of_inputs: bool) -> tuple[Tensor, ...]:
        """Of the bin that `value` lies in: left and lower edge, width and height, slopes at both ends."""
        # Bins come first: every operation below runs along the many numbers, not along the few bins.
        steer = theta.reshape(*theta.shape[:-1], self.parameters, value.shape[-1]).movedim(-2, 0)
        widths, left = self._pieces(steer[: self.bins])
        heights, bottom = self._pieces(steer[self.bins : 2 * self.bins])
        raw_slopes = F.pad(steer[2 * self.bins :], (0, 0) * value.ndim + (1, 1))
        number = (value >= (left if of_inputs else bottom)[1:]).sum(0, keepdim=True)
        pick = [t.gather(0, number)[0] for t in (left, bottom, widths, heights)]
        return *pick, *(self._slope(raw_slopes.gather(0, n)[0]) for n in (number, number + 1))

    def _pieces(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """(lengths (K, ...) of pieces that fill [-bound, bound], where each begins)."""
        whole = 2 * self.bound
        lengths = raw.softmax(0) * (whole * (1 - self.bins * _LEAST)) + whole * _LEAST
        *pieces, last = lengths.unbind(0)
        # A few sums of whole tensors: several times as fast as cumsum along an axis that is not the last.
        return lengths, torch.stack([*accumulate(pieces, initial=torch.full_like(last, -self.bound))])

    @staticmethod
    def _slope(raw: Tensor) -> Tensor:
        """Positive, and 1 for 0."""
        return F.softplus(raw + math.log(math.expm1(1 - _LEAST))) + _LEAST
