"""The Ornstein-Uhlenbeck process dz = -z dt + sqrt(2) dB, whose stationary law is N(0, I), and its bridges.

Cohen et al. 2022 write dz = -theta (z - z*) dt + eta dB. Only theta t, z* and eta^2 / (2 theta) enter its transitions:
the clock, and the stationary law's centre and variance, here 0 and 1. Encodings that are learnt find their own scale.
Times are float64 tensors of any shape.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["bridge", "times", "transition"]


def transition(t: Tensor) -> tuple[Tensor, Tensor]:
    """m and v of q(z_{s+t} | z_s) = N(m z_s, v), at any s."""
    return (-t).exp(), -torch.expm1(-2 * t)


def bridge(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """a, b and v of q(z_s | z_t, z_0) = N(a z_t + b z_0, v), at 0 < s < t."""
    (to_s, from_0), (to_t, from_s), (_, whole) = transition(s), transition(t - s), transition(t)
    return to_t * from_0 / whole, to_s * from_s / whole, from_0 * from_s / whole


def times(first: float, last: float, steps: int) -> Tensor:
    """(steps + 1,) times t_0 < ... < t_steps, whose log (m^2 / v) of `transition` go evenly from `first` to `last`."""
    return 0.5 * F.softplus(-torch.linspace(first, last, steps + 1, dtype=torch.float64))
