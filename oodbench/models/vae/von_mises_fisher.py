"""The von Mises-Fisher distribution on the unit sphere S^(d-1): q(z) = C exp(k m.z), k the concentration around m."""

import functools
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from oodbench.errors import OodbenchError
from oodbench.models.noise import Noise
from oodbench.models.vae.bessel import MOST, log_bessel
from oodbench.models.vae.posteriors import Posterior

__all__ = [
    "MOST_DIMENSIONS",
    "VonMisesFisher",
    "angle_slope",
    "log_density",
    "log_uniform",
    "resultant",
    "sample_angles",
]

MOST_DIMENSIONS = int(2 * MOST)
PROPOSALS, ROUNDS = 8, 8  # at a time, and how often: at least 65 % are accepted, so 64 all fail once in 10^29 draws
_NODES = 64


class VonMisesFisher(Posterior):
    """vMF(direction, concentration) against the uniform distribution on the sphere (Davidson et al. 2018).

    `direction` (B, d) are unit vectors, `concentration` (B, 1) is positive. `mean` is that of the distribution, within
    the ball, and `std` (B, 1) the root of its whole variance, 1 - |mean|^2. Densities are of the sphere's surface.
    """

    def __init__(self, direction: Tensor, concentration: Tensor) -> None:
        self.direction, self.concentration = direction, concentration
        length = resultant(direction.shape[1], concentration)
        self.mean = direction * length.to(direction.dtype)
        self.std = (1 - length.square()).sqrt().to(direction.dtype)

    def draw(self, noise: Noise, count: int) -> tuple[Tensor, Tensor]:
        """Differentiable: the angle to the direction by its distribution function, the rest as a projection.

        Raises `OodbenchError` where all proposals of an angle are rejected.
        """
        d = self.direction.shape[1]
        m, k = (t.repeat_interleave(count, 0) for t in (self.direction, self.concentration))
        angle = sample_angles(d, k.detach(), noise)
        if k.requires_grad and torch.is_grad_enabled():
            angle = angle + angle_slope(d, k, angle) * (k - k.detach())  # nothing, but for its gradient
        side = noise.normal((d,), "tangent").to(m.dtype)
        for _ in range(2):  # once more, as little may be left of the first
            side = F.normalize(side - (side * m).sum(1, keepdim=True) * m, dim=1)
        z = angle.cos() * m + angle.sin() * side
        return z, log_density(d, k, angle).squeeze(1)

    def kl(self) -> Tensor:
        """Its one summand, k A(k) + log C(k) - log uniform, A the mean's length (Davidson et al. 2018)."""
        d, k = self.direction.shape[1], self.concentration.double()
        return (k * (resultant(d, k) - 1) - _log_mass(d, k)).to(self.concentration.dtype)


def log_uniform(d: int) -> float:
    """The logarithm of the uniform density on S^(d-1): minus that of the surface, 2 pi^(d/2) / Gamma(d/2)."""
    return math.lgamma(d / 2) - math.log(2) - d / 2 * math.log(math.pi)


def resultant(d: int, k: Tensor) -> Tensor:
    """The length of the mean, A(k) = I_(d/2)(k) / I_(d/2-1)(k), in float64."""
    return (log_bessel(d / 2, k) - log_bessel(d / 2 - 1, k)).exp()


def log_density(d: int, k: Tensor, angle: Tensor) -> Tensor:
    """log q in nats, of the surface, at such an angle to m; in the dtype of k."""
    return log_uniform(d) - 2 * k * (angle / 2).sin().square() - _log_mass(d, k).to(k.dtype)


def _log_mass(d: int, k: Tensor) -> Tensor:
    """log E exp(k (m.z - 1)) of uniform z, in float64: what normalises the density relative to the uniform one."""
    order = d / 2 - 1
    return log_bessel(order, k) - order * (k.double() / 2).log() + math.lgamma(d / 2)


@torch.no_grad()
def sample_angles(d: int, k: Tensor, noise: Noise) -> Tensor:
    """Angles (N, 1) between m and z, by rejection from Ulrich's envelope (Ulrich 1984, as corrected by Wood 1994).

    Of concentrations (N, 1); for each the first accepted one of at most PROPOSALS * ROUNDS.
    """
    angle = torch.zeros_like(k)
    left = torch.arange(len(k), device=k.device)
    for attempt in range(ROUNDS):
        rows = Noise(noise.seed, noise.index[left], noise.draw[left])
        u = rows.uniform((3, PROPOSALS), f"angle {attempt}").to(k.dtype)
        proposed, accepted = _propose(d, k[left], *u.unbind(1))
        first = accepted.int().argmax(1, keepdim=True)
        angle[left] = proposed.gather(1, first)
        left = left[~accepted.any(1)]
        if not len(left):
            return angle
    raise OodbenchError(
        f"No angle of {PROPOSALS * ROUNDS} was accepted for a von Mises-Fisher distribution on {d} numbers with "
        f"concentration {float(k[left[0]]):g}: look for infinite or NaN weights of the encoder."
    )


def _propose(d: int, k: Tensor, u: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """(angles, whether each is accepted) (N, P), of k (N, 1) and uniform u, v, w (N, P)."""
    root = (4 * k.square() + (d - 1) ** 2).sqrt()
    b = (d - 1) / (2 * k + root)
    a = (d - 1 + 2 * k + root) / 4
    # Beta((d-1)/2, (d-1)/2) is (1 + s) / 2, s a coordinate of a circle's point at a random radius (Ulrich 1984); it and
    # its complement as sums of what is positive.
    inside = u ** (2 / (d - 2)) if d > 2 else torch.zeros_like(u)
    radius = (1 - inside).sqrt()
    inside = inside / (2 + 2 * radius)
    near, far = inside + radius * (torch.pi * v).cos().square(), inside + radius * (torch.pi * v).sin().square()
    t = 2 * a * b / (far + b * near)
    accepted = (d - 1) * (t.log() - math.log(d - 1)) - t + 4 * a * b / (1 + b) >= w.log()
    angle = 2 * torch.atan2((b * near).sqrt(), far.sqrt())  # of the cosine (far - b near) / (far + b near)
    return angle.clamp(1e-6, math.pi - 1e-6), accepted


@torch.no_grad()
def angle_slope(d: int, k: Tensor, angle: Tensor) -> Tensor:
    """d angle / d k (N, 1) at a fixed value of the distribution function F, -(dF/dk) / (dF/d angle), by quadrature.

    Implicit reparametrisation (Figurnov et al. 2018): exact in the mean, with neither a correction nor its variance.
    """
    concentration, end = k.double(), angle.double()
    nodes, weights = (t.to(k.device) for t in _gauss_legendre())
    inner = end * nodes
    excess = inner.cos() - resultant(d, concentration)  # d log density / d k
    relative = (d - 2) * (inner.sin() / end.sin()).log() + concentration * (inner.cos() - end.cos())
    return -end * (excess * relative.exp() * weights).sum(1, keepdim=True).to(angle.dtype)


@functools.cache
def _gauss_legendre() -> tuple[Tensor, Tensor]:
    """Nodes and weights (n,) on 0 ... 1, in float64."""
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    return torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)
