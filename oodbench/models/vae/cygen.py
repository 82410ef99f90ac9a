"""Two conditionals and no prior.

Liu, Tang, Qin, Wang & Liu, "On the Generative Utility of Cyclic Conditionals", NeurIPS 2021, arXiv:2106.15962.
"""

import math

import torch
from torch import Tensor

from oodbench.errors import OodbenchError
from oodbench.models.base import DensityModel, Likelihood
from oodbench.models.noise import Noise
from oodbench.models.vae.compatibility import incompatibility
from oodbench.models.vae.latent import DECODER_ROWS
from oodbench.models.vae.networks import build
from oodbench.models.vae.observations import LogisticMixture
from oodbench.models.vae.posteriors import Gaussian, standard_normal_log_prob

__all__ = ["CyGen"]


class CyGen(DensityModel):
    """P(x | z) and q(z | x), made to belong to one joint distribution; of such a pair

        P(x) = 1 / E_q(z | x) [1 / P(x | z)]                                        (Liu et al. 2021)

    holds for bytes as for densities. P(x | z) is the discretised logistic of the bytes, so that log_px =
    -log 1/K sum_k 1 / P(x | z_k), with K = `draws`, is in nats of the discrete image, without dequantisation. By
    Jensen's inequality its mean lies above log P(x), at worst (K = 1) at the reconstruction, and its weights often have
    no variance: an estimate, whose standard error `log_px_error` is near 1 where one draw decides. Of a pair that
    is not quite compatible, as any trained one, it is the estimate of no distribution.

    The loss is that estimate with `training_draws` draws plus `weight` times the pair's `incompatibility`, whose
    derivatives in x are those of Gaussians with the logistics' moments, on uniformly dequantised pixels in -1 ... 1. It
    moves the pair as functions, not the draws at which they are compared: its gradient is not the loss's. For the share
    `warm_up` of training -ELBO stands for the estimate, while `weight` grows: the authors, too, start with a VAE, for
    without a prior q(z | x) shrinks to a point at first. q(z | x) is a Gaussian with independent numbers, where they
    take a Sylvester flow: all but the prior is as in `vae-mlp`.
    """

    likelihood = Likelihood.ESTIMATE
    remark = "biased upward, high variance"
    columns = ("log_px", "log_px_error", "reconstruction", "posterior_mean_norm", "posterior_std_norm")

    def __init__(
        self,
        shape: tuple[int, int, int],
        latents: int = 32,
        hidden: int = 400,
        mixtures: int = 1,
        draws: int = 64,
        network: str = "dense",
        weight: float = 1e-3,
        training_draws: int = 4,
        warm_up: float = 0.5,
        chain: int = 20,
    ) -> None:
        super().__init__(shape)
        if draws < 2 or training_draws < 1 or chain < 1:
            raise OodbenchError(
                f"{draws} draws, {training_draws} of them in training, and a chain of {chain} steps cannot be: take at "
                "least 2, 1 and 1."
            )
        if weight < 0 or not 0 <= warm_up < 1:
            raise OodbenchError(
                f"weight {weight} must be at least 0, and warm_up {warm_up} a share of training below 1."
            )
        self.draws, self.training_draws, self.chain = draws, training_draws, chain
        self.weight, self.warm_up, self.latents = weight, warm_up, latents
        self.pixel = LogisticMixture(shape[0], mixtures)
        self.latent_shape, self.encoder, self.decoder = build(network, shape, latents, hidden, 2 * latents, self.pixel)

    def encode(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (B, *latent_shape) of q(z | x), of pixels (B, C, H, W) as numbers in -1 ... 1."""
        mean, log_variance = self.encoder(value).chunk(2, 1)
        return mean, torch.exp(0.5 * log_variance.clamp(-14, 6))

    def values(self, x: Tensor) -> Tensor:
        """uint8 -> -1 ... 1."""
        return x.to(next(self.parameters()).dtype) / 127.5 - 1

    def posterior(self, x: Tensor) -> Gaussian:
        """q(z | x) of uint8 images (B, C, H, W)."""
        return Gaussian(*self.encode(self.values(x)))

    def log_px_given_z(self, x: Tensor, z: Tensor) -> Tensor:
        """log P(x | z) in nats (n,) of uint8 (B, C, H, W) and (n, *latent_shape), as many latents an image."""
        return self.pixel.log_prob(x, self.decoder(z))

    def log_ratio(self, value: Tensor, z: Tensor) -> Tensor:
        """log p(x | z) - log q(z | x) in nats (B,), of continuous pixels in -1 ... 1."""
        mean, std = self.encode(value)
        log_q = standard_normal_log_prob((z - mean) / std) - std.log().flatten(1).sum(1)
        return self.pixel.log_density(value, self.decoder(z)) - log_q

    def incompatibility(self, x: Tensor, z: Tensor, noise: Noise) -> Tensor:
        """Of the pair at uint8 images (B, C, H, W), dequantised, and z (B, *latent_shape): (B,), by one probe each."""
        value = self.values(x)
        value = value + (noise.uniform(self.shape, "dequantisation").to(value.dtype) - 0.5) / 127.5
        probe = noise.normal(self.latent_shape, "probe").to(value.dtype)
        return incompatibility(self.log_ratio, value, z, probe)

    def statistic_parameters(self) -> dict[str, int]:
        return {"draws": self.draws}

    def statistics(self, x: Tensor, noise: Noise) -> dict[str, Tensor]:
        """See the class; log_px_error by the delta method, as of `importance_weighted`, with weights 1 / P(x | z)."""
        posterior = self.posterior(x)
        log_likelihood = self._log_likelihoods(x, posterior, noise, self.draws)
        log_px = _harmonic(log_likelihood)
        shares = (log_px[:, None] - log_likelihood).exp() / self.draws
        error = ((self.draws * shares.square().sum(1) - 1) / (self.draws - 1)).clamp_min(0).sqrt()
        return {
            "log_px": log_px,
            "log_px_error": error,
            "reconstruction": log_likelihood.mean(1),
            "posterior_mean_norm": posterior.mean.flatten(1).norm(dim=1),
            "posterior_std_norm": posterior.std.flatten(1).norm(dim=1),
        }

    def loss(self, x: Tensor, noise: Noise) -> Tensor:
        """Nats (B,): -ELBO with p(z) = N(0, I) while warming up, then minus the estimate; and the incompatibility."""
        posterior = self.posterior(x)
        z, _ = posterior.draw(noise, 1)
        if self.progress < self.warm_up:
            loss, weight = posterior.kl().sum(1) - self.log_px_given_z(x, z), self.weight * self.progress / self.warm_up
        else:
            loss, weight = -_harmonic(self._log_likelihoods(x, posterior, noise, self.training_draws)), self.weight
        return loss + weight * self.incompatibility(x, z, noise)

    def sample(self, n: int, noise: Noise) -> Tensor:
        """uint8 (n, C, H, W): x from P(x | z) and z from q(z | x) in turn, `chain` times from z ~ N(0, I).

        Of a compatible pair the chain's law tends to the joint distribution (Liu et al. 2021, who prefer
        Langevin steps in x, which bytes do not allow).
        """
        z = noise.normal(self.latent_shape, "start").to(next(self.parameters()).dtype)
        for step in range(self.chain):
            own = Noise(noise.seed, noise.index, noise.draw * self.chain + step)
            x = self.pixel.sample(self.decoder(z), own)
            z, _ = self.posterior(x).draw(own, 1)
        return x

    @torch.no_grad()
    def calibrate(self, known: Tensor, held_out: Tensor) -> None:
        """Starts at probabilistic principal components: a compatible pair, but that pixels are logistic."""
        principal = self.encoder.principal(self.values(known).double(), self.latents)
        self.encoder.start_at(principal, self.latents)
        self.decoder.start_at(principal, self.pixel)

    def _log_likelihoods(self, x: Tensor, posterior: Gaussian, noise: Noise, draws: int) -> Tensor:
        """log P(x | z_k) (B, draws), as many at a time as `importance_weighted` decodes."""
        rows, found = max(1, DECODER_ROWS // max(1, len(x))), []
        for first in range(0, draws, rows):
            count = min(rows, draws - first)
            z, _ = posterior.draw(noise.expand(first, count), count)
            found.append(self.log_px_given_z(x, z).reshape(len(x), count))
        return torch.cat(found, 1)


def _harmonic(log_likelihood: Tensor) -> Tensor:
    """-log 1/K sum_k 1 / P(x | z_k) (B,) of log P(x | z_k) (B, K)."""
    return math.log(log_likelihood.shape[1]) - torch.logsumexp(-log_likelihood, 1)
