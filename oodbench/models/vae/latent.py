"""What every model with latents shares: one estimate of log P(x), one loss, one way to sample.

    log P(x) >= E log 1/K sum_k w_k,    w_k = P(x | z_k) p(z_k) / q(z_k | x),    z_k ~ q(z | x)

(Burda et al. 2016, Equation 8), the encoder run once and the K draws folded into the decoder's batch.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from oodbench.errors import OodbenchError
from oodbench.models.base import DensityModel, Likelihood
from oodbench.models.noise import Noise
from oodbench.models.vae.posteriors import Posterior, standard_normal_log_prob

__all__ = ["LatentModel", "importance_weighted", "importance_weighted_members", "log_mean_and_error"]

DECODER_ROWS = 512  # images through the decoder at a time: bounds memory whatever K is
LATENT_ROWS = 4096  # latents drawn at a time: they are smaller, and drawing is many small operations


class LatentModel(DensityModel):
    """p(z) P(x | z) with an approximate posterior q(z | x).

    To add one: subclass, set `latent_shape`, write `posterior`, `log_px_given_z`, `decode_sample`, and `log_prior` and
    `sample_prior` where p(z) is not N(0, I). K = `draws`; `free_bits` is the least nats that each of the posterior's KL
    summands is held to (Kingma et al. 2016, Equation 15), and the KL's weight rises from 0 to 1 over the first share
    `warm_up` of training (Bowman et al. 2016).
    """

    likelihood = Likelihood.LOWER_BOUND
    columns = ("log_px", "log_px_error", "elbo", "reconstruction", "kl", "posterior_mean_norm", "posterior_std_norm")

    encoder_alone: ClassVar[bool] = True  # q(z | x) depends on no weight of the decoder

    latent_shape: tuple[int, ...]
    euclidean: ClassVar[bool] = True  # densities of latents are of all of R^d, with gradients: no codes, no sphere

    def __init__(
        self, shape: tuple[int, int, int], draws: int = 64, free_bits: float = 0.0, warm_up: float = 0.0
    ) -> None:
        super().__init__(shape)
        if draws < 2:
            raise OodbenchError(f"An importance-weighted estimate takes at least 2 draws, not {draws}.")
        if free_bits < 0 or not 0 <= warm_up <= 1:
            raise OodbenchError("free_bits are nats of at least 0, and warm_up is a share of training, 0 to 1.")
        self.draws, self.free_bits, self.warm_up = draws, free_bits, warm_up

    def posterior(self, x: Tensor, noise: Noise) -> Posterior:
        """q(z | x) of uint8 images (B, C, H, W); `noise` is for methods that search or run chains."""
        raise NotImplementedError(f"{type(self).__name__} must define posterior().")

    def log_px_given_z(self, x: Tensor, z: Tensor) -> Tensor:
        """log P(x | z) in nats (n,) of uint8 (B, C, H, W) and (n, *latent_shape).

        n is a multiple of B: an image has as many latents as any other, one after another.
        """
        raise NotImplementedError(f"{type(self).__name__} must define log_px_given_z().")

    def decode_sample(self, z: Tensor, noise: Noise) -> Tensor:
        """uint8 (B, C, H, W) drawn from P(x | z)."""
        raise NotImplementedError(f"{type(self).__name__} must define decode_sample().")

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z) in nats (B,)."""
        return standard_normal_log_prob(z)

    def sample_prior(self, noise: Noise) -> Tensor:
        """z (B, *latent_shape) drawn from p(z)."""
        return noise.normal(self.latent_shape, "prior").to(next(self.parameters()).dtype)

    def statistic_parameters(self) -> dict[str, int]:
        return {"draws": self.draws}

    def statistics(self, x: Tensor, noise: Noise) -> dict[str, Tensor]:
        """See `importance_weighted`."""
        return importance_weighted(self, x, noise, self.draws)

    def loss(self, x: Tensor, noise: Noise) -> Tensor:
        """-ELBO with one draw, nats (B,); its KL warmed up and held to the free bits."""
        posterior = self.posterior(x, noise)
        z, log_q = posterior.draw(noise, 1)
        terms = posterior.kl()
        if terms is None:
            terms = (log_q - self.log_prior(z))[:, None]
        # Free bits hold the batch's mean: one image may well need less.
        kl = terms.mean(0).clamp_min(self.free_bits).sum() if self.free_bits else terms.sum(1)
        weight = min(1.0, self.progress / self.warm_up) if self.warm_up else 1.0
        return weight * kl - self.log_px_given_z(x, z)

    def sample(self, n: int, noise: Noise) -> Tensor:
        """uint8 (n, C, H, W)."""
        return self.decode_sample(self.sample_prior(noise), noise)


def importance_weighted(model: LatentModel, x: Tensor, noise: Noise, draws: int) -> dict[str, Tensor]:
    """`LatentModel.columns`, each (B,), of uint8 images (B, C, H, W), in nats but for the two norms.

    log_px: the estimate with K = `draws`. log_px_error: its standard error, see `log_mean_and_error`.
    elbo = reconstruction - kl: reconstruction the mean over the draws, kl in closed form where there is one.
    """
    posterior = model.posterior(x, noise)
    log_likelihoods, log_ratios = [], []
    for z, log_ratio in _draws(model, posterior, noise, draws):
        decoded = _in_parts(lambda x, z: model.log_px_given_z(x, z)[None], x, z)
        log_likelihoods.append(decoded.reshape(log_ratio.shape))
        log_ratios.append(log_ratio)
    log_likelihood, log_ratio = torch.cat(log_likelihoods, 1), torch.cat(log_ratios, 1)
    log_px, error = log_mean_and_error(log_likelihood + log_ratio)
    reconstruction, terms = log_likelihood.mean(1), posterior.kl()
    kl = -log_ratio.mean(1) if terms is None else terms.sum(1)
    return {
        "log_px": log_px,
        "log_px_error": error,
        "elbo": reconstruction - kl,
        "reconstruction": reconstruction,
        "kl": kl,
        "posterior_mean_norm": posterior.mean.flatten(1).norm(dim=1),
        "posterior_std_norm": posterior.std.flatten(1).norm(dim=1),
    }


def importance_weighted_members(
    model: LatentModel,
    decoders: Sequence[Callable[[Tensor, Tensor], Tensor]],
    x: Tensor,
    noise: Noise,
    draws: int,
) -> Tensor:
    """log P(x | theta_m) (B, M) in nats; each of `decoders` gives log P(x | z, theta_m) (m, n) of some members.

    Encoder, prior and draws are the model's, whose q(z | x) is the `encoder_alone`.
    """
    log_weights = []
    for z, log_ratio in _draws(model, model.posterior(x, noise), noise, draws):
        of_members = torch.cat([_in_parts(decoder, x, z) for decoder in decoders])
        log_weights.append(of_members.reshape(-1, *log_ratio.shape) + log_ratio)
    return torch.logsumexp(torch.cat(log_weights, 2), 2).T - math.log(draws)


def _draws(model: LatentModel, posterior: Posterior, noise: Noise, draws: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Chunks of k draws: latents (B * k, ...) image-major, log p(z) - log q(z | x) (B, k)."""
    images = len(noise.index)
    rows = max(1, LATENT_ROWS // max(1, images))
    for first in range(0, draws, rows):
        count = min(rows, draws - first)
        z, log_q = posterior.draw(noise.expand(first, count), count)
        yield z, (model.log_prior(z) - log_q).reshape(images, count)


def _in_parts(log_px_given_z: Callable[[Tensor, Tensor], Tensor], x: Tensor, z: Tensor) -> Tensor:
    """What it gives (m, n) of images (B, ...) and latents (n, ...), so many latents at a time that memory stays small.

    A part has all latents of some images, or some of one image.
    """
    count = max(1, len(z) // max(1, len(x)))
    images = max(1, DECODER_ROWS // count)
    parts = []
    for some, all_of_them in zip(torch.split(x, images), torch.split(z, images * count), strict=True):
        parts += [log_px_given_z(some, part) for part in torch.split(all_of_them, DECODER_ROWS)]
    return torch.cat(parts, 1)


def log_mean_and_error(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """log 1/K sum_k w_k of log-weights (B, K) and its standard error, both (B,) in nats.

    The error is sqrt((K sum_k p_k^2 - 1) / (K - 1)) with the weights' shares p_k (the delta method); near 1 one weight
    outweighs all others, and the mean means little.
    """
    count = log_weights.shape[1]
    log_sum = torch.logsumexp(log_weights, 1)
    shares = (log_weights - log_sum[:, None]).exp()
    error = ((count * shares.square().sum(1) - 1) / (count - 1)).clamp_min(0).sqrt()
    return log_sum - math.log(count), error
