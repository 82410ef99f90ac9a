"""A prior on encodings as a diffusion bridge: Ornstein-Uhlenbeck noise, and a learned way back (Cohen et al. 2022)."""

import math

import torch
from torch import Tensor, nn

from oodbench.models.nn import Linear
from oodbench.models.vae.ornstein_uhlenbeck import bridge, times, transition
from oodbench.models.vae.posteriors import standard_normal_log_prob

__all__ = ["BridgePrior"]

LOG_SNR = (3.0, -6.0)  # of the states z_0 and z_T, for encodings of variance 1


class BridgePrior(nn.Module):
    """Paths z = (z_0 ... z_T), T = `steps`, of states of a shape, and what leads there from an encoding f.

        q(z | f) = q(z_T | f) prod_t q(z_{t-1} | z_t, f): the process that was at f, at T + 1 times
        p(z) = N(z_T; 0, I) prod_t p(z_{t-1} | z_t)
        p(z_{t-1} | z_t) = int q(z_{t-1} | z_t, f) N(f; m(z_t), s(z_t)^2) df

    z_T has the process's stationary law, and the step back is its bridge to a network's guess of f (Cohen et al. 2022,
    whose network gives the noise, and whose variance is fixed). At the start m and s^2 are those of
    f ~ N(0, I), and p(z) is the stationary process itself.
    """

    a: Tensor  # (T,): z_{t-1} given z_t and f is N(a z_t + b f, v)
    b: Tensor
    v: Tensor
    mean: Tensor  # (T + 1,): z_t given f is N(mean f, variance)
    variance: Tensor

    def __init__(self, shape: tuple[int, ...], steps: int, hidden: int) -> None:
        super().__init__()
        self.shape, self.steps = shape, steps
        at = times(*LOG_SNR, steps)
        constants = dict(zip("abv", bridge(at[:-1], at[1:]), strict=True))
        constants["mean"], constants["variance"] = transition(at)
        for name, values in constants.items():
            self.register_buffer(name, values.float(), persistent=False)
        numbers = math.prod(shape)
        self.time = nn.Parameter(0.1 * torch.randn(steps, hidden))
        self.first, self.inner = Linear(numbers, hidden), Linear(hidden, hidden)
        self.last = Linear(hidden, 2 * numbers, zero=True)

    def forward(self, z: Tensor, t: slice) -> tuple[Tensor, Tensor]:
        """Mean and variance of p(z_{t-1} | z_t), like z: states (B, S, *shape) at a slice `t` of the times 1 ... T."""
        hidden = self.first(z.flatten(2)) + self.time[t].to(z.dtype)
        hidden = hidden + self.inner(hidden.relu())
        shift, spread = (n.reshape(z.shape) for n in self.last(hidden.relu()).chunk(2, -1))
        a, b, v = (self._at(name, t) for name in "abv")
        states = slice(t.start + 1, t.stop + 1)
        guess = self._at("mean", states) * z + shift
        return a * z + b * guess, v + b**2 * self._at("variance", states) * spread.clamp(-8, 4).exp()

    def path(self, f: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
        """z (B, T + 1, *shape) and log q(z | f) in nats (B,), of encodings (B, *shape) and standard normal e like z."""
        states = [self.mean[-1] * f + self.variance[-1].sqrt() * e[:, -1]]
        for t in reversed(range(self.steps)):
            states.append(self.a[t] * states[-1] + self.b[t] * f + self.v[t].sqrt() * e[:, t])
        volume: Tensor = 0.5 * math.prod(self.shape) * (self.v.log().sum() + self.variance[-1].log())
        return torch.stack(states[::-1], 1), standard_normal_log_prob(e) - volume

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z) in nats (B,) of paths (B, T + 1, *shape)."""
        mean, variance = self(z[:, 1:], slice(0, self.steps))
        back: Tensor = -0.5 * ((z[:, :-1] - mean).square() / variance + variance.log() + math.log(2 * math.pi))
        return back.flatten(1).sum(1) + standard_normal_log_prob(z[:, -1])

    def divergence(self, z: Tensor, f: Tensor) -> Tensor:
        """log q(z | f) - log p(z) with every factor's mean over its own state in closed form: nats (B,), >= 0.

        Its mean over paths z ~ q(z | f) is KL(q(z | f) || p(z)), with less variance than the ratio's.
        """
        t = slice(0, self.steps)
        mean, variance = self(z[:, 1:], t)
        a, b, v = (self._at(name, t) for name in "abv")
        steps = _gaussian_divergence(a * z[:, 1:] + b * f[:, None], v, mean, variance)
        last = _gaussian_divergence(
            self.mean[-1] * f, self.variance[-1], torch.zeros_like(f), self.variance.new_ones(())
        )
        return steps.flatten(1).sum(1) + last.flatten(1).sum(1)

    def sample(self, e: Tensor) -> Tensor:
        """Paths (B, T + 1, *shape) drawn from p(z), from standard normal e of that shape."""
        states = [e[:, -1]]
        for t in reversed(range(self.steps)):
            mean, variance = self(states[-1][:, None], slice(t, t + 1))
            states.append(mean[:, 0] + variance[:, 0].sqrt() * e[:, t])
        return torch.stack(states[::-1], 1)

    def _at(self, name: str, t: slice) -> Tensor:
        """Constants (S, 1, ...), to go with states (B, S, *shape)."""
        values: Tensor = getattr(self, name)[t]
        return values.reshape(-1, *(1 for _ in self.shape))


def _gaussian_divergence(mean: Tensor, variance: Tensor, other: Tensor, other_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(other, other_variance)) of every number, in nats."""
    ratio = variance / other_variance
    return 0.5 * ((mean - other).square() / other_variance + ratio - 1 - ratio.log())
