"""Annealed importance sampling of log P(x) (Neal 2001; on decoders Wu et al. 2017): a check on importance weights.

Chains go from an easy distribution r(z), the prior or a Gaussian like the encoder's, to the posterior over

    f_t(z) = r(z)^(1 - b_t) (p(z) P(x | z))^(b_t),    0 = b_0 < ... < b_T = 1,

each step Hamiltonian Monte Carlo that leaves f_t invariant. The mean of the weights w = prod_t f_t(z) / f_t-1(z) is
P(x) without bias whatever the steps do, so that its logarithm is a lower bound on average; chains that start at an
exact draw from the posterior and run backwards bound it from above (Grosse et al. 2015).
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from oodbench.errors import OodbenchError
from oodbench.models.noise import Noise
from oodbench.models.vae import latent
from oodbench.models.vae.latent import LatentModel
from oodbench.models.vae.posteriors import standard_normal_log_prob

__all__ = ["DEFAULT", "Annealing", "annealed", "annealed_backwards"]


@dataclass(frozen=True)
class Annealing:
    """How chains run; more of anything but `step` is more exact."""

    chains: int = 16  # an image
    temperatures: int = 100  # T
    leapfrogs: int = 5  # steps of a trajectory
    step: float = 0.3  # their length, in units of a width between r's and the encoder's
    start: Literal["prior", "posterior"] = "prior"  # r: p(z), or N(mean, std^2) of the model's posterior

    def __post_init__(self) -> None:
        if self.chains < 2 or self.temperatures < 1 or self.leapfrogs < 1 or self.step <= 0:
            raise OodbenchError("Annealing takes at least 2 chains, 1 temperature, 1 leapfrog and a positive step.")
        if self.start not in ("prior", "posterior"):
            raise OodbenchError(f"Chains start at the 'prior' or at the 'posterior', not at {self.start!r}.")

    def schedule(self) -> list[float]:
        """b_0 ... b_T, closest at both ends: a logistic function from -4 to 4 (Wu et al. 2017, Section 4.2)."""
        values = [1 / (1 + math.exp(-4 * (2 * t / self.temperatures - 1))) for t in range(self.temperatures + 1)]
        return [(value - values[0]) / (values[-1] - values[0]) for value in values]


DEFAULT = Annealing()


def annealed(model: LatentModel, x: Tensor, noise: Noise, how: Annealing = DEFAULT) -> tuple[Tensor, Tensor]:
    """(log P(x), its standard error), nats (B,), of uint8 images (B, C, H, W).

    Raises `OodbenchError` for a model whose latents are not those of R^d: no trajectory follows codes or a sphere.
    """
    log_weights = _log_weights(model, x, None, noise, how)
    return latent.log_mean_and_error(log_weights)


def annealed_backwards(
    model: LatentModel, x: Tensor, z: Tensor, noise: Noise, how: Annealing = DEFAULT
) -> tuple[Tensor, Tensor]:
    """The same from above, given z (B * chains, *latent_shape), image-major, drawn from the posterior of each image.

    One draw is known where the image was itself drawn from the model.
    """
    estimate, error = latent.log_mean_and_error(_log_weights(model, x, z, noise, how))
    return -estimate, error


def _log_weights(model: LatentModel, x: Tensor, known: Tensor | None, noise: Noise, how: Annealing) -> Tensor:
    """(B, chains); backwards, from what is `known`, their mean is 1 / P(x)."""
    if not model.euclidean:
        raise OodbenchError(f"{type(model).__name__} cannot be annealed: its latents are codes or on a sphere.")
    rows = max(1, latent.DECODER_ROWS // max(1, len(x)))
    parts = []
    with torch.inference_mode(False), torch.enable_grad():  # trajectories follow gradients
        x = x.clone()
        for first in range(0, how.chains, rows):
            count = min(rows, how.chains - first)
            chains = _Chains(model, x, noise, first, count, how)
            if known is None:
                ends = chains.run(chains.begin(), how.schedule())
            else:
                mine = known.reshape(len(x), how.chains, *model.latent_shape)[:, first : first + count]
                ends = chains.run(mine.flatten(0, 1).clone(), how.schedule()[::-1])
            parts.append(ends.reshape(len(x), count))
    return torch.cat(parts, 1)


class _Chains:
    """`count` chains of every image, the first of them numbered `first`."""

    def __init__(self, model: LatentModel, x: Tensor, noise: Noise, first: int, count: int, how: Annealing) -> None:
        self.model, self.how, self.noise = model, how, noise.expand(first, count)
        with torch.no_grad():
            posterior = model.posterior(x, noise)
        self.x = x.repeat_interleave(count, 0)
        self.mean, self.std = (t.detach().repeat_interleave(count, 0) for t in (posterior.mean, posterior.std))

    def begin(self) -> Tensor:
        """Draws from r."""
        if self.how.start == "prior":
            return self.model.sample_prior(self.noise)
        return self.mean + self.std * self._normal("latent")

    def run(self, z: Tensor, schedule: list[float]) -> Tensor:
        """log weights (rows,) of chains from f_0 to f_T, or the other way round."""
        log_weights = torch.zeros(len(z), dtype=z.dtype, device=z.device)
        for t, (here, there) in enumerate(pairwise(schedule)):
            with torch.no_grad():
                easy, joint = self._logs(z)
            log_weights += (there - here) * (joint - easy)
            if t + 2 < len(schedule):
                z = self._moved(z, there, t)
        return log_weights

    def _logs(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """log r(z) and log p(z) P(x | z), (rows,)."""
        prior = self.model.log_prior(z)
        joint = prior + self.model.log_px_given_z(self.x, z)
        if self.how.start == "prior":
            return prior, joint
        e = (z - self.mean) / self.std
        return standard_normal_log_prob(e) - self.std.expand_as(e).log().flatten(1).sum(1), joint

    def _moved(self, z: Tensor, b: float, t: int) -> Tensor:
        """One trajectory of Hamiltonian Monte Carlo, accepted or not (Neal 2011), for f of b."""
        precision = self.std**-2
        if self.how.start == "prior":
            precision = 1 - b + b * precision
        lengths = self.how.step * precision.rsqrt()
        momentum = self._normal(f"momentum {t}")
        log_f, slope = self._slope(z, b)
        before = log_f + standard_normal_log_prob(momentum)
        place, momentum = z, momentum + 0.5 * lengths * slope
        for leapfrog in range(1, self.how.leapfrogs + 1):
            place = place + lengths * momentum
            log_f, slope = self._slope(place, b)
            momentum = momentum + (0.5 if leapfrog == self.how.leapfrogs else 1) * lengths * slope
        after = log_f + standard_normal_log_prob(momentum)
        accepted = self.noise.uniform((), f"accept {t}").to(z.dtype).log() < after - before  # never where it is NaN
        return torch.where(accepted.reshape(-1, *[1] * (z.ndim - 1)), place, z)

    def _slope(self, z: Tensor, b: float) -> tuple[Tensor, Tensor]:
        """log f (rows,) and its gradient."""
        z = z.detach().requires_grad_()
        easy, joint = self._logs(z)
        log_f = (1 - b) * easy + b * joint
        (slope,) = torch.autograd.grad(log_f.sum(), z)
        return log_f.detach(), slope

    def _normal(self, stream: str) -> Tensor:
        return self.noise.normal(self.model.latent_shape, stream).to(self.mean.dtype)
