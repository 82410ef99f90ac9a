"""The VAE whose latents lie on a sphere (Davidson et al. 2018)."""

import dataclasses
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from oodbench.errors import OodbenchError
from oodbench.models.noise import Noise
from oodbench.models.vae.networks import require_projection
from oodbench.models.vae.posteriors import Posterior
from oodbench.models.vae.vae import DenseVAE
from oodbench.models.vae.von_mises_fisher import MOST_DIMENSIONS, VonMisesFisher, log_uniform

__all__ = ["SphericalVAE"]

CONCENTRATIONS = (0.01, 1e5)


class SphericalVAE(DenseVAE):
    """q(z | x) = vMF(m(x), k(x)) and a uniform prior on the unit sphere of R^`latents`, 2 to 20 of them.

    Both densities are of the same surface, so `log_px` is a lower bound on log P(image) as of any VAE. Concentrations
    are exponentials, held to 0.01 ... 100,000.
    """

    euclidean = False

    def __init__(
        self,
        shape: tuple[int, int, int],
        latents: int = 20,
        hidden: int = 400,
        mixtures: int = 1,
        draws: int = 64,
        **config: Any,
    ) -> None:
        if not 2 <= latents <= MOST_DIMENSIONS:
            raise OodbenchError(
                f"A spherical VAE takes 2 to {MOST_DIMENSIONS} latents, not {latents}: beyond, the sphere's surface "
                "vanishes; use vae-mlp."
            )
        require_projection(config.get("network", "dense"))
        super().__init__(shape, latents, hidden, mixtures, draws, outputs=latents + 1, **config)

    def posterior(self, x: Tensor, noise: Noise) -> Posterior:
        return self.on_sphere(x)

    def on_sphere(self, x: Tensor) -> VonMisesFisher:
        """q(z | x)."""
        centre, log_concentration = self.encoder(self.values(x)).tensor_split([self.latents], 1)
        least, most = CONCENTRATIONS
        return VonMisesFisher(
            F.normalize(centre, dim=1), log_concentration.clamp(math.log(least), math.log(most)).exp()
        )

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (B, C, H, W) -> the posterior's mean (B, latents), within the sphere, and its spread (B, 1)."""
        posterior = self.on_sphere(x)
        return posterior.mean, posterior.std

    def log_prior(self, z: Tensor) -> Tensor:
        return z.new_full((len(z),), log_uniform(self.latents))

    def sample_prior(self, noise: Noise) -> Tensor:
        return F.normalize(super().sample_prior(noise), dim=1)

    @torch.no_grad()
    def calibrate(self, known: Tensor, held_out: Tensor) -> None:
        """Starts at the directions of principal components, of the length that such have on average."""
        principal = self.encoder.principal(self.values(known).double(), self.latents)
        rank = len(principal.kept)
        self.encoder.start_at(principal, self.latents)
        # The variance of components on the sphere of radius sqrt(rank) is rank / k.
        self.encoder.linear.bias[self.latents] = math.log(rank) - (principal.rest / principal.kept).mean().log()
        self.decoder.start_at(dataclasses.replace(principal, w=math.sqrt(rank) * principal.w), self.pixel)
