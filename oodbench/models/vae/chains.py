"""Markov chains, one a row of the batch, whose every random number comes from the row's own noise.

A chain runs on states (B, ...) by the gradient of log p(state) + constant, in nats (B,), also under a caller's
`torch.inference_mode`: the density's constants must then be made outside of it, as the engine makes the images.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from oodbench.models.noise import Noise

__all__ = ["Chain", "Density", "differentiate", "hamiltonian", "langevin", "leapfrog"]

Density = Callable[[Tensor], Tensor]  # states (B, ...) -> log p + constant in nats (B,), each row of its state alone


@dataclass(frozen=True)
class Chain:
    """What became of B chains."""

    states: Tensor  # (steps, B, ...), after each step
    acceptance: Tensor  # (B,): the mean over the steps of the probability to accept; 1 where nothing is rejected


def langevin(
    density: Density,
    start: Tensor,
    noise: Noise,
    steps: int,
    size: float,
    stream: str = "langevin",
    reach: float = math.inf,
) -> Chain:
    """z <- z + size grad log p(z) + (2 size)^(1/2) e, nothing rejected (Roberts & Tweedie 1996).

    Of a Gaussian with precision a it has the stationary variance 1 / (a (1 - size a / 2)), and none at size a >= 2. No
    number drifts farther than `reach` in a step, so that no chain explodes. The corrected chain (MALA) is
    `hamiltonian` with one leapfrog of size (2 size)^(1/2).
    """
    z, states = start, []
    for step in range(steps):
        e = noise.normal(tuple(z.shape[1:]), f"{stream} {step}").to(z.dtype)
        drift = size * differentiate(density, z)[1]
        z = z + drift.clamp(-reach, reach) + math.sqrt(2 * size) * e
        states.append(z)
    return Chain(torch.stack(states), torch.ones(len(z), dtype=z.dtype, device=z.device))


def hamiltonian(
    density: Density,
    start: Tensor,
    noise: Noise,
    steps: int,
    size: float | Tensor,
    leapfrogs: int,
    stream: str = "hamiltonian",
) -> Chain:
    """Hamiltonian Monte Carlo: `leapfrogs` of this `size`, then Metropolis and Hastings (Neal 2011, Section 5.3.2).

    Momenta are standard normal. A step that comes to a density that is not finite is rejected.
    """
    z, states, rates = start, [], []
    value, gradient = differentiate(density, z)
    for step in range(steps):
        p = noise.normal(tuple(z.shape[1:]), f"{stream} momentum {step}").to(z.dtype)
        u = noise.uniform((), f"{stream} accept {step}").to(z.dtype)
        there, momentum, new_value, new_gradient = leapfrog(density, z, p, gradient, size, leapfrogs)
        log_ratio = new_value - value + _kinetic(p) - _kinetic(momentum)
        rate = torch.where(log_ratio.isfinite(), log_ratio.clamp_max(0).exp(), 0.0)
        accepted = u < rate
        rows = accepted.reshape(-1, *[1] * (z.ndim - 1))
        z, gradient = torch.where(rows, there, z), torch.where(rows, new_gradient, gradient)
        value = torch.where(accepted, new_value, value)
        states.append(z)
        rates.append(rate)
    return Chain(torch.stack(states), torch.stack(rates).mean(0))


def leapfrog(
    density: Density, z: Tensor, p: Tensor, gradient: Tensor, size: float | Tensor, steps: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(z, p, log density, its gradient) after `steps` of Hamilton's equations, from z with this momentum and gradient.

    It keeps volume, and from (z, -p) comes back to where it started (Neal 2011, Equations 5.18 to 5.20).
    """
    value = torch.empty(0)
    for _ in range(steps):
        p = p + 0.5 * size * gradient
        z = z + size * p
        value, gradient = differentiate(density, z)
        p = p + 0.5 * size * gradient
    return z, p, value, gradient


def differentiate(density: Density, z: Tensor) -> tuple[Tensor, Tensor]:
    """log p (B,) and its gradient in z, both without history."""
    with torch.inference_mode(False), torch.enable_grad():
        z = z.detach().clone().requires_grad_()  # a clone, as inference tensors cannot be differentiated
        value = density(z)
        (gradient,) = torch.autograd.grad(value.sum(), z)
    return value.detach(), gradient


def _kinetic(p: Tensor) -> Tensor:
    return 0.5 * p.flatten(1).square().sum(1)
