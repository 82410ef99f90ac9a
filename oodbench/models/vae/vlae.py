"""The variational Laplace autoencoder (Park et al. 2019): the posterior is found anew for every image, at its mode."""

import math
from typing import Any

import torch
from torch import Tensor

from oodbench.errors import OodbenchError
from oodbench.models.noise import Noise
from oodbench.models.vae.laplace import FullGaussian, cholesky, expansion
from oodbench.models.vae.networks import DenseEncoder
from oodbench.models.vae.vae import DenseVAE

__all__ = ["VLAE"]

_IMAGES = 64  # whose Jacobians are held at a time


class VLAE(DenseVAE):
    """q(z | x) = N(m, A^-1), A = J' C J + I at the m where `updates` Newton steps from the encoder's mean end:

        z <- z + a A^-1 (J' g - z),    a = `step`

    A ReLU decoder is linear near z, with the Jacobian J; g is the slope and C the curvature of log P(x | z) in its
    outputs, the means and log-scales of every pixel. For a Gaussian P(x | z) this is the published update. A
    Gaussian of the logistics' variance in its place, on the same trained decoder, gave a bound 200 nats worse than the
    encoder's own posterior (FashionMNIST: half of the pixels are 0, whose means may lie anywhere below), where these
    derivatives of the discrete likelihood gave one 30 nats better. The curvature's cross terms of mean and log-scale
    are left out, and colours' coefficients are taken as they are at z: any q is valid.

    As published, training differentiates through the whole search; the step is not made smaller from one update to
    the next as there, which cost 3 nats. No A^-1 (...) is longer than sqrt(latents), the prior's radius: far from a
    pixel a logistic hardly bends, and free steps left for where nothing fits (training on CIFAR-10 overflowed, constant
    images lost 3,000 nats). The reported number is the importance-weighted bound, as for every VAE.
    """

    encoder_alone = False  # its decoder shapes q(z | x) too

    def __init__(
        self,
        shape: tuple[int, int, int],
        latents: int = 32,
        hidden: int = 400,
        mixtures: int = 1,
        draws: int = 64,
        updates: int = 4,
        step: float = 0.5,
        network: str = "dense",
        observation: str = "logistic",
        **config: Any,
    ) -> None:
        if (network, observation, mixtures) != ("dense", "logistic", 1):
            raise OodbenchError(
                "A Laplace posterior needs network 'dense', observation 'logistic' and mixtures 1, "
                f"not {network!r}, {observation!r} and {mixtures}."
            )
        if updates < 1 or not 0 < step <= 1:
            raise OodbenchError(f"The mode takes at least 1 update of a step in (0, 1], not {updates} of {step}.")
        super().__init__(shape, latents, hidden, mixtures, draws, network, observation=observation, **config)
        self.encoder = DenseEncoder(shape, hidden, latents)  # a mean alone: the covariance is the decoder's
        self.updates, self.step, self.radius = updates, step, math.sqrt(latents)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (B, C, H, W) -> mean and standard deviations (B, latents) of the posterior."""
        posterior = self._laplace(x)
        return posterior.mean, posterior.std

    def posterior(self, x: Tensor, noise: Noise) -> FullGaussian:
        return self._laplace(x)

    def _laplace(self, x: Tensor) -> FullGaussian:
        if len(x) <= _IMAGES:
            return FullGaussian(*self.search(x))
        means, factors = zip(*(self.search(part) for part in torch.split(x, _IMAGES)), strict=True)
        return FullGaussian(torch.cat(means), torch.cat(factors))

    def search(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The mode (B, latents) of uint8 images (B, C, H, W), and the precision's lower factor there."""
        z = self.encoder(self.values(x))
        for _ in range(self.updates):
            slope, precision = self.expand(x, z)
            move = torch.cholesky_solve(slope[..., None], cholesky(precision))[..., 0].to(z.dtype)
            length = move.norm(dim=1, keepdim=True).clamp_min(1e-12)
            z = z + self.step * move * (self.radius / length).clamp_max(1.0)
        return z, cholesky(self.expand(x, z)[1]).to(z.dtype)

    def expand(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """See `expansion`."""
        return expansion(self.decoder, x, z)
