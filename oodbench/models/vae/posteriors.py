"""Posteriors q(z | x) of a batch: what the encoder's work comes to, ready to be drawn from any number of times."""

import math

import torch
from torch import Tensor

from oodbench.models.noise import Noise

__all__ = ["Gaussian", "Posterior", "standard_normal_log_prob"]


class Posterior:
    """q(z | x) of B images, made once a batch.

    To add one: subclass, set `mean` and `std`, write `draw`, and `kl` where a closed form exists.
    """

    mean: Tensor  # (B, *latent_shape): a centre of q, by whatever name the model calls it
    std: Tensor  # (B, ...): its spread; both are statistics by their norms

    def draw(self, noise: Noise, count: int) -> tuple[Tensor, Tensor]:
        """z (B * count, *latent_shape) and log q(z | x) (B * count,) in nats, image-major.

        `noise` has as many rows: `Noise.expand` of the batch's. Differentiable in the encoder's parameters.
        """
        raise NotImplementedError(f"{type(self).__name__} must define draw().")

    def kl(self) -> Tensor | None:
        """KL(q(z | x) || p(z)) in nats as the summands (B, G) that free bits bound; None where only draws tell it."""
        return None


class Gaussian(Posterior):
    """N(mean, std^2), independent numbers, against a standard normal prior (Kingma & Welling 2014)."""

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        self.mean, self.std = mean, std

    def draw(self, noise: Noise, count: int) -> tuple[Tensor, Tensor]:
        e = noise.normal(tuple(self.mean.shape[1:]), "latent").to(self.mean.dtype)
        each = e.reshape(len(self.mean), count, *self.mean.shape[1:])
        z = torch.addcmul(self.mean[:, None], self.std[:, None], each).flatten(0, 1)
        return z, standard_normal_log_prob(e) - self.std.log().flatten(1).sum(1).repeat_interleave(count)

    def kl(self) -> Tensor:
        """Its summands for every latent (Kingma & Welling 2014, Appendix B)."""
        return 0.5 * (self.mean.square() + self.std.square() - 1 - 2 * self.std.log()).flatten(1)


def standard_normal_log_prob(z: Tensor) -> Tensor:
    """log N(z; 0, I) in nats (B,) of (B, ...)."""
    z = z.flatten(1)
    return -0.5 * (z.square().sum(1) + z.shape[1] * math.log(2 * torch.pi))
