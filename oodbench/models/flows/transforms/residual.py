"""Invertible residual blocks y = x + g(x), Lip(g) < 1 (Behrmann et al. 2019), and three ways to their volume."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from oodbench.errors import OodbenchError
from oodbench.models.base import Likelihood
from oodbench.models.flows.lipschitz import ContractiveNetwork, Derivative
from oodbench.models.flows.transforms.base import Shape, Transform, require
from oodbench.models.noise import Noise

__all__ = ["Residual", "Trace"]

Trace = Literal["series", "roulette", "exact"]

_LARGEST_EXACT = 512  # numbers in a state whose Jacobian is still written out


class Residual(Transform):
    """y = x + g(x) with Lip(g) <= `coefficient` < 1; log|det| = sum_k (-1)^(k+1) tr(J_g^k) / k.

    - "series": the first `terms` terms, each trace by Hutchinson's v'J^k v with one vector of signs an image (Behrmann
      et al. 2019, arXiv:1811.00995, Algorithm 2). With coefficient c and n terms the bias is at most
      D c^(n+1) / ((n+1) (1-c)).
    - "roulette": the same, and then a geometric number of terms more, divided by the probability that they are reached:
      without bias (Chen et al. 2019, arXiv:1906.02735, Theorem 1). A further term is reached with probability
      `coefficient`, which keeps the variance finite whatever the weights are.
    - "exact": log det(I + J) of the whole Jacobian, for small states.

    The inverse is the fixed point of x = y - g(x); one that is not reached is an `OodbenchError`. `name` is that of the
    random stream: signs and lengths belong to (image, layer).
    """

    def __init__(self, shape: Shape, hidden: int, coefficient: float, trace: Trace, terms: int, name: str) -> None:
        super().__init__()
        require(0 < coefficient < 1, f"A residual block with a Lipschitz constant of {coefficient} has no inverse: "
                "use a coefficient between 0 and 1.")  # fmt: skip
        require(trace in get_args(Trace), f"Unknown trace {trace!r}: use {', '.join(get_args(Trace))}.")
        require(terms >= 1, f"A power series needs at least one term, not {terms}.")
        height, width, channels = shape
        size = height * width * channels
        require(
            trace != "exact" or size <= _LARGEST_EXACT,
            f"An exact determinant on {size} numbers takes too long: use at most {_LARGEST_EXACT}, "
            "or the trace series or roulette.",
        )
        self.network = ContractiveNetwork(channels, hidden, (height, width), coefficient)
        self.coefficient, self.trace, self.terms, self.name = coefficient, trace, terms, name
        self.volume = Likelihood.EXACT if trace == "exact" else Likelihood.ESTIMATE

    def forward(self, h: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        g, derivative = self.network.linearise(h)
        return h + g, _exact(h, derivative) if self.trace == "exact" else self._estimate(h, derivative, noise)

    def _estimate(self, h: Tensor, derivative: Derivative, noise: Noise) -> Tensor:
        """The series against one vector of signs an image: (B,) nats."""
        signs = torch.where(noise.uniform(tuple(h.shape[1:]), f"{self.name} signs") < 0.5, -1.0, 1.0).to(h.dtype)
        more = torch.zeros(len(h), dtype=torch.int64, device=h.device)
        if self.trace == "roulette":  # P(more >= m) = coefficient^m
            u = noise.uniform((), f"{self.name} length")
            more = (u.log() / math.log(self.coefficient)).floor().to(torch.int64)
        rows = torch.arange(len(h), device=h.device)
        total: Tensor = h.new_zeros(len(h))
        v, k = signs, 1
        while len(rows) and (k <= self.terms or self.trace == "roulette"):
            v = derivative(v, rows if len(rows) < len(h) else None)
            weight = (-1) ** (k + 1) / k / self.coefficient ** max(0, k - self.terms)
            total = total.index_add(0, rows, (v * signs[rows]).flatten(1).sum(1) * weight)
            k += 1
            if k > self.terms and self.trace == "roulette":  # images whose series ended are computed no further
                going_on = more[rows] >= k - self.terms
                rows, v = rows[going_on], v[going_on]
        return total

    @torch.no_grad()
    def inverse(self, y: Tensor, noise: Noise) -> Tensor:
        # The error shrinks by the coefficient every time: as many steps as bring it below rounding, and some to spare.
        accuracy = 20 * torch.finfo(y.dtype).eps
        limit = 20 + math.ceil(2 * math.log(accuracy) / math.log(self.coefficient))
        x: Tensor = y
        for _ in range(limit):
            x, before = y - self.network(x), x
            change = (x - before).abs().flatten(1).amax(1)
            if (change <= accuracy * (1 + x.abs().flatten(1).amax(1))).all():
                return x
        raise OodbenchError(
            f"The inverse of a residual block still moves by {float(change.max()):.3g} after {limit} steps: invert "
            "with networks in float32."
        )


def _exact(h: Tensor, derivative: Derivative) -> Tensor:
    """log det(I + J) (B,) from J's columns, one derivative for every number of a state."""
    images, size = len(h), h[:1].numel()
    basis = torch.eye(size, dtype=h.dtype, device=h.device)
    rows = torch.arange(images, device=h.device).repeat_interleave(size)
    columns = derivative(basis.repeat(images, 1).reshape(-1, *h.shape[1:]), rows).reshape(images, size, size)
    volume: Tensor = torch.linalg.slogdet(columns + basis)[1]
    return volume
