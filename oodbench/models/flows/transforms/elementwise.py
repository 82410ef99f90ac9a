"""Maps of single numbers, steered by numbers that a network gives: what couplings and autoregressive layers apply."""

import torch
from torch import Tensor

__all__ = ["Additive", "Affine", "Elementwise", "Sigmoid"]

_LEAST_LOGIT = -80.0


class Elementwise:
    """y_i = f(x_i; theta_i) for each of the last axis' C numbers, increasing in x_i.

    `parameters` numbers steer each; they come as (B, ..., parameters * C), parameter by parameter, and all zeros are a
    fit start for training.
    """

    parameters: int = 1

    def forward(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """(y, sum over all numbers of log dy/dx (B,) in nats; () where it is the same for every image)."""
        raise NotImplementedError

    def inverse(self, y: Tensor, theta: Tensor) -> Tensor:
        raise NotImplementedError


class Additive(Elementwise):
    """y = x + t: keeps the volume (Dinh et al. 2015)."""

    def forward(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        return x + theta, x.new_zeros(())

    def inverse(self, y: Tensor, theta: Tensor) -> Tensor:
        return y - theta


class Sigmoid(Elementwise):
    """y = (x + t) sigmoid(max(a + 2, -80)), Glow's affine map: its scale is at most 1, so deep flows train stably."""

    parameters = 2

    def forward(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        shift, scale = self._split(theta)
        return (x + shift) * scale, scale.log().flatten(1).sum(1)

    def inverse(self, y: Tensor, theta: Tensor) -> Tensor:
        shift, scale = self._split(theta)
        return y / scale - shift

    def _split(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        shift, raw = theta.chunk(2, -1)
        # Dense from here on, as half of the channels is not: sigmoid and log run many times faster on it. Held at a
        # scale that float32 still has, so that its logarithm, a fifth of logsigmoid's time, is always finite.
        return shift, (raw + 2.0).clamp_min_(_LEAST_LOGIT).sigmoid()


class Affine(Elementwise):
    """y = x exp(s) + t with s = c tanh(s' / c), which bounds the scale to exp(-c) ... exp(c) (Dinh et al. 2017)."""

    parameters = 2

    def __init__(self, bound: float = 3.0) -> None:
        self.bound = bound

    def forward(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        shift, log_scale = self._split(theta)
        return torch.addcmul(shift, x, log_scale.exp()), log_scale.flatten(1).sum(1)

    def inverse(self, y: Tensor, theta: Tensor) -> Tensor:
        shift, log_scale = self._split(theta)
        return (y - shift) * (-log_scale).exp()

    def _split(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        shift, raw = theta.chunk(2, -1)
        # tanh(v) = 2 sigmoid(2 v) - 1, and torch's sigmoid takes a fraction of the time of its tanh.
        return shift, (raw * (2 / self.bound)).sigmoid() * (2 * self.bound) - self.bound
