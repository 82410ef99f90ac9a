"""A decoder on a vector of latents whose posterior and likelihood have closed forms."""

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from oodbench.models.noise import Noise
from oodbench.models.vae.latent import LatentModel

SHAPE = (1, 4, 4)
PIXELS, LATENTS = 16, 3
SIGMA = 0.2  # so that values seldom leave the bytes


class LinearLatents(LatentModel):
    """x | z ~ N(W z + c, sigma^2) on x / 127.5 - 1, to be mixed into a model in double precision."""

    def linear(self) -> None:
        """Draws W and c, always the same."""
        generator = torch.Generator().manual_seed(0)
        self.w = 0.1 * torch.randn(PIXELS, LATENTS, generator=generator, dtype=torch.float64)
        self.w[:, 1] += 0.6 * self.w[:, 0]  # so that latents are correlated given an image
        self.c = 0.1 * torch.randn(PIXELS, generator=generator, dtype=torch.float64)
        self.double()

    def value(self, x: Tensor) -> Tensor:
        return x.flatten(1).double() / 127.5 - 1

    def log_px_given_z(self, x: Tensor, z: Tensor) -> Tensor:
        mean = (z @ self.w.T + self.c).unflatten(0, (len(x), -1))
        return Normal(mean, SIGMA).log_prob(self.value(x)[:, None]).sum(2).flatten()

    def decode_sample(self, z: Tensor, noise: Noise) -> Tensor:
        value = z @ self.w.T + self.c + SIGMA * noise.normal((PIXELS,), "pixels").double()
        return ((value + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).reshape(-1, *SHAPE)

    def images(self, n: int) -> Tensor:
        """uint8 (n, *SHAPE) of the model's own."""
        noise = Noise.of(torch.arange(n), seed=9)
        return self.decode_sample(noise.normal((LATENTS,), "prior").double(), noise)

    def true_precision(self) -> Tensor:
        """(LATENTS, LATENTS), of p(z | x) whatever x is."""
        return torch.eye(LATENTS, dtype=torch.float64) + self.w.T @ self.w / SIGMA**2

    def true_mean(self, x: Tensor) -> Tensor:
        """(B, LATENTS), of p(z | x)."""
        return torch.linalg.solve(self.true_precision(), self.w.T @ (self.value(x) - self.c).T / SIGMA**2).T

    def exact(self, x: Tensor) -> Tensor:
        """log p(x) in nats (B,)."""
        covariance = self.w @ self.w.T + SIGMA**2 * torch.eye(PIXELS, dtype=torch.float64)
        return MultivariateNormal(self.c, covariance).log_prob(self.value(x))
