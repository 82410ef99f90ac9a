"""Gaussian posteriors that an invertible map refines: normalizing flows and inverse autoregressive flows."""

from collections.abc import Callable

from torch import Tensor

from oodbench.models.noise import Noise
from oodbench.models.vae.posteriors import Gaussian, Posterior

__all__ = ["Refined"]


class Refined(Posterior):
    """z = f(z_0), z_0 ~ N(mean, std^2): log q(z) = log q(z_0) - log|det df/dz_0| (Rezende & Mohamed 2015, Equation 7).

    `refine` takes (B, count, d), `count` draws of each image, to f of it and the logarithm (B, count). `mean` and
    `std` stay those of z_0, and only draws tell the divergence from the prior.
    """

    def __init__(self, mean: Tensor, std: Tensor, refine: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        self.mean, self.std, self.refine = mean, std, refine

    def draw(self, noise: Noise, count: int) -> tuple[Tensor, Tensor]:
        z, log_q = Gaussian(self.mean, self.std).draw(noise, count)
        z, log_det = self.refine(z.reshape(len(self.mean), count, self.mean.shape[1]))
        return z.flatten(0, 1), log_q - log_det.flatten()
