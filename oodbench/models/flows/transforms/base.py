"""The contract of every layer of a flow."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from oodbench.errors import OodbenchError
from oodbench.models.base import Likelihood
from oodbench.models.noise import Noise

__all__ = ["Shape", "Transform", "positions", "require", "require_inverse"]

Shape = tuple[int, ...]

_MISS = 1e-3  # of f(f^-1(y)) from y, relative to the largest |y|; rounding alone leaves about 1e-6


class Transform(nn.Module):
    """A map y = f(h) of states (B, ..., C), channels last, and the logarithm of the volume that it makes.

    To add one: subclass, write `forward` and `inverse`, and `shape_after` where the shape changes; declare below where
    it is no bijection with an exact volume. A vector (B, C) is a state without places, so most layers work on both.

    `forward` gives (y, log|det dy/dh|) with the logarithm in nats, (B,) or () where it is the same for every image.
    Randomness comes from `noise` and a stream name of its own.
    """

    volume: Likelihood = Likelihood.EXACT  # what the logarithm is, of the class or of the instance: exact, ... estimate
    bijective: ClassVar[bool] = True  # False: `inverse` is a right inverse, f(inverse(y)) = y
    inverts: ClassVar[bool] = True  # False: `inverse` is not even that

    def forward(self, h: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def inverse(self, y: Tensor, noise: Noise) -> Tensor:
        """The state that `forward` takes to y."""
        raise NotImplementedError

    def shape_after(self, shape: Shape) -> Shape:
        """The shape (..., C) of y, given that of h; `OodbenchError` where h cannot have it."""
        return shape

    @torch.no_grad()
    def initialise(self, h: Tensor) -> None:
        """Sets data-dependent initial parameters from the states of a first batch."""


def positions(h: Tensor) -> int:
    """How many places a state (B, ..., C) has: 1 for a vector, H W for an image."""
    count = 1
    for size in h.shape[1:-1]:
        count *= size
    return count


def require(condition: bool, sentence: str) -> None:
    """Raises `OodbenchError` with this sentence unless the condition holds."""
    if not condition:
        raise OodbenchError(sentence)


def require_inverse(back: Tensor, y: Tensor, what: str, advice: str) -> None:
    """Raises `OodbenchError` unless f(f^-1(y)), which is `back`, is y (B, ...); of y not finite asks nothing."""
    miss, size = (t.detach().abs().flatten(1).amax(1) for t in (back - y, y))
    failed = ~(miss <= _MISS * (1 + size)) & size.isfinite()  # so that NaN is no success
    if failed.any():
        raise OodbenchError(
            f"The inverse of {what} misses its aim by up to {float(miss[failed].max()):.3g} in {int(failed.sum())} of "
            f"{len(failed)} images: {advice}."
        )
