"""Steps of flows whose parameters belong to an image: planar, radial (Rezende & Mohamed 2015), Householder.

Each step is invertible whatever its parameters are, and nearly or quite the identity at `start`.
"""

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["STEPS", "Householder", "Planar", "Radial", "Step"]

_LEAST = 1e-4  # of a slope: float32 keeps the logarithm of a larger one finite


class Step(Protocol):
    """y -> f(y; theta) on vectors of d numbers."""

    standardised: bool  # it acts on draws in units of their standard deviations

    def size(self, d: int) -> int:
        """How many numbers steer it."""
        ...

    def start(self, d: int, step: int) -> Tensor:
        """(size,): what the step of this number starts training from."""
        ...

    def __call__(self, y: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """(f(y) (..., d), log|det df/dy| (...,) in nats) of y (..., d) and theta (..., size), which broadcast."""
        ...


class Planar:
    """f(y) = y + u' tanh(w.y + b), u' = u + (m(w.u) - w.u) w / |w|^2 (Rezende & Mohamed 2015, Eq. 10 and Appendix A.1).

    w.u' = m(w.u) > -1, so f is invertible. The paper's m(a) = log(1 + e^a) - 1 is shifted, so that m(0) = 0 and u = 0
    makes f the identity. In units of standard deviations s it is the planar step s u', w / s of the draw itself;
    without them the first updates of u drown latents with small ones.
    """

    standardised = True

    def size(self, d: int) -> int:
        return 2 * d + 1

    def start(self, d: int, step: int) -> Tensor:
        return torch.cat([torch.zeros(d), torch.randn(d) / math.sqrt(d), torch.zeros(1)])

    def __call__(self, y: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        d = y.shape[-1]
        u, w, b = theta.tensor_split([d, 2 * d], -1)
        product = (w * u).sum(-1, keepdim=True)
        slope = _positive(product)  # m + 1
        u = u + (slope - 1 - product) * w / w.square().sum(-1, keepdim=True).clamp_min(torch.finfo(w.dtype).tiny)
        squared = (h := torch.tanh((w * y).sum(-1, keepdim=True) + b)).square()
        # 1 + m tanh' as a sum of what is positive.
        return y + u * h, torch.log(squared + (1 - squared) * slope).squeeze(-1)


class Radial:
    """f(y) = y + beta (y - c) / (alpha + r), r = |y - c| (Rezende & Mohamed 2015, Equation 14).

    alpha > 0 and beta > -alpha, so f is invertible (Appendix A.2): beta = alpha (s - 1) with s > 0. It starts as the
    identity: s = 1, alpha = 1, and centres near 0 that tell the steps apart.
    """

    standardised = False

    def size(self, d: int) -> int:
        return d + 2

    def start(self, d: int, step: int) -> Tensor:
        return torch.cat([0.3 * torch.randn(d), torch.zeros(2)])

    def __call__(self, y: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        d = y.shape[-1]
        centre, alpha, s = theta.tensor_split([d, d + 1], -1)
        alpha, s = _positive(alpha), _positive(s)
        away = y - centre
        r = away.norm(dim=-1, keepdim=True)
        across = (r + alpha * s) / (r + alpha)  # 1 + beta h, and along the radius 1 + beta h + beta h' r:
        along = (r * (r + 2 * alpha) + alpha.square() * s) / (r + alpha).square()
        return centre + away * across, ((d - 1) * across.log() + along.log()).squeeze(-1)


class Householder:
    """f(y) = y - 2 v (v.y) / |v|^2, a reflection: volume 1 (Tomczak & Welling 2016, Equation 8).

    It starts with v along an axis, another one each step: that turns a centred Gaussian of independent numbers into
    itself.
    """

    standardised = False

    def size(self, d: int) -> int:
        return d

    def start(self, d: int, step: int) -> Tensor:
        return F.one_hot(torch.tensor(step % d), d).float()

    def __call__(self, y: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        largest = theta.detach().abs().amax(-1, True).clamp_min(torch.finfo(theta.dtype).tiny)
        v = F.normalize(theta / largest, dim=-1)  # a unit vector however short theta is; 0, the identity, of 0
        return y - 2 * v * (v * y).sum(-1, keepdim=True), y.new_zeros(y.shape[:-1])


STEPS: dict[str, Step] = {"planar": Planar(), "radial": Radial(), "householder": Householder()}


def _positive(a: Tensor) -> Tensor:
    """Softplus, shifted: 1 at 0, never below `_LEAST`."""
    return _LEAST + F.softplus(a + math.log(math.expm1(1 - _LEAST)))
