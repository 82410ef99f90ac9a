"""Convolutional variational autoencoder (Kingma & Welling 2014) with a discretised-logistic decoder.

Reported is the importance-weighted bound of Burda et al. 2016:

    log P(x) >= E log 1/K sum_k P(x | z_k) p(z_k) / q(z_k | x),    z_k ~ q(z | x)
"""

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oodbench.errors import OodbenchError
from oodbench.models.base import DensityModel, Likelihood
from oodbench.models.likelihoods import (
    logistic_mixture_channels,
    logistic_mixture_log_prob,
    logistic_mixture_mean,
    logistic_mixture_start,
    sample_logistic_mixture,
)
from oodbench.models.nn import Convolution
from oodbench.models.noise import Noise

__all__ = ["VAE"]

PATCH = 4  # pixels a side that one place of the latent maps stands for
DECODER_ROWS = 512  # images through the decoder at a time: bounds memory whatever K is


class _Residual(nn.Module):
    """x + conv(relu(conv(relu(x))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = Convolution(channels, channels, (3, 3), (1, 1))
        self.second = Convolution(channels, channels, (3, 3), (1, 1), zero=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.second(self.first(F.relu(x)).relu_())
        return out


class _Encoder(nn.Module):
    """(B, C, H, W) -> mean and log-variance, each (B, latents, H/4, W/4): a linear map of 12x12 patches plus a network.

    The network starts as the zero function: training begins at `VAE.initialise` and learns what is not linear.
    """

    def __init__(self, channels: int, hidden: int, latents: int) -> None:
        super().__init__()
        self.linear = Convolution(channels, 2 * latents, (3 * PATCH, 3 * PATCH), (PATCH, PATCH), stride=PATCH)
        self.layers = nn.Sequential(
            Convolution(channels, hidden, (4, 4), (1, 1), stride=2),
            nn.ReLU(),
            Convolution(hidden, hidden, (4, 4), (1, 1), stride=2),
            _Residual(hidden),
            _Residual(hidden),
            nn.ReLU(),
            Convolution(hidden, 2 * latents, zero=True),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = (self.linear(x) + self.layers(x)).to(x.dtype).chunk(2, 1)
        return mean, log_variance


class _Decoder(nn.Module):
    """(B, latents, H/4, W/4) -> the pixels' logistic parameters (B, P, H, W): a linear map plus a network, as above.

    Resolution grows by rearranging channels (Shi et al. 2016), so that no convolution runs on the full image.
    """

    def __init__(self, latents: int, hidden: int, channels: int, mixtures: int) -> None:
        super().__init__()
        outputs = logistic_mixture_channels(channels, mixtures)
        self.linear = nn.Sequential(Convolution(latents, PATCH**2 * outputs, (3, 3), (1, 1)), nn.PixelShuffle(PATCH))
        self.layers = nn.Sequential(
            Convolution(latents, hidden, (3, 3), (1, 1)),
            _Residual(hidden),
            _Residual(hidden),
            nn.ReLU(),
            Convolution(hidden, 4 * hidden),
            nn.PixelShuffle(2),
            _Residual(hidden),
            nn.ReLU(),
            Convolution(hidden, 4 * outputs, (3, 3), (1, 1), zero=True),
            nn.PixelShuffle(2),
        )
        self.start = nn.Parameter(logistic_mixture_start(channels, mixtures)[:, None, None])

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = (self.linear(z) + self.layers(z)).to(z.dtype) + self.start
        return out


class VAE(DensityModel):
    """q(z | x) = N(m(x), s(x)^2), p(z) = N(0, I), P(x | z) a mixture of discretised logistics a pixel.

    `latents` maps of a quarter of the image's side, `hidden` channels, `mixtures` components, K = `draws` in `log_px`.
    """

    likelihood = Likelihood.LOWER_BOUND
    columns = ("log_px", "elbo", "reconstruction", "kl")

    def __init__(
        self, shape: tuple[int, int, int], latents: int = 16, hidden: int = 64, mixtures: int = 1, draws: int = 16
    ) -> None:
        super().__init__(shape)
        channels, height, width = shape
        if height % PATCH or width % PATCH:
            raise OodbenchError(f"vae cannot take {height}x{width} images: sides must be divisible by {PATCH}.")
        if draws < 1:
            raise OodbenchError(f"vae needs at least one importance draw, not {draws}.")
        self.mixtures, self.draws = mixtures, draws
        self.latent_shape = (latents, height // PATCH, width // PATCH)
        self.encoder = _Encoder(channels, hidden, latents)
        self.decoder = _Decoder(latents, hidden, channels, mixtures)

    def statistic_parameters(self) -> dict[str, int]:
        return {"draws": self.draws}

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (B, C, H, W) -> (mean, standard deviation) of q(z | x)."""
        value = x.to(next(self.parameters()).dtype).contiguous(memory_format=torch.channels_last) / 127.5 - 1
        mean, log_variance = self.encoder(value)
        return mean, torch.exp(0.5 * log_variance.clamp(-14, 6))

    def log_px_given_z(self, x: Tensor, z: Tensor) -> Tensor:
        """log P(x | z) in nats (B,)."""
        return logistic_mixture_log_prob(x, self.decoder(z), self.mixtures)

    def mean_image(self, z: Tensor) -> Tensor:
        """The mean of P(x | z) (B, C, H, W), 0 ... 255 as -1 ... 1, of latents (B, *latent_shape)."""
        return logistic_mixture_mean(self.decoder(z), self.shape[0], self.mixtures)

    def statistics(self, x: Tensor, noise: Noise) -> dict[str, Tensor]:
        """log_px (K draws), elbo = reconstruction - kl: reconstruction the mean over the draws, kl in closed form."""
        mean, std = self.posterior(x)
        chunk = max(1, DECODER_ROWS // max(1, len(x)))
        log_weights, reconstructions = [], []
        for first in range(0, self.draws, chunk):
            count = min(chunk, self.draws - first)
            e = noise.expand(first, count).normal(self.latent_shape, "latent").to(mean.dtype)
            m, s = (t.repeat_interleave(count, 0) for t in (mean, std))
            z = (m + s * e).contiguous(memory_format=torch.channels_last)
            log_likelihood = self.log_px_given_z(x.repeat_interleave(count, 0), z)
            # log p(z) - log q(z | x): the constants of the two normals cancel.
            log_ratio = (0.5 * (e.square() - z.square()) + s.log()).sum((1, 2, 3))
            log_weights.append((log_likelihood + log_ratio).reshape(len(x), count))
            reconstructions.append(log_likelihood.reshape(len(x), count))
        log_px = torch.logsumexp(torch.cat(log_weights, 1), 1) - math.log(self.draws)
        reconstruction = torch.cat(reconstructions, 1).mean(1)
        kl = _kl(mean, std)
        return {"log_px": log_px, "elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl}

    @torch.no_grad()
    def initialise(self, x: Tensor, noise: Noise) -> None:
        """Starts at probabilistic principal components (Tipping & Bishop 1999) of this batch's patches.

        W = U (L - s^2)^(1/2), q(z | x) = N(L^-1 W' (x - mean), s^2 L^-1): gradient descent takes thousands of steps to
        get there by itself.
        """
        channels, rank = self.shape[0], min(self.latent_shape[0], PATCH**2 * self.shape[0] - 1)
        value = (x.double() / 127.5 - 1).unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)
        patches = value.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2)  # (B H/4 W/4, C 4 4)
        mean = value.mean((0, 2, 3, 4, 5))
        centred = patches - mean.repeat_interleave(PATCH**2)
        variances, axes = torch.linalg.eigh(centred.T @ centred / len(centred))
        variances, axes = variances.flip(0).clamp_min(1e-6), axes.flip(1)
        rest = variances[rank:].mean()
        kept = variances[:rank]
        w = axes[:, :rank] * (kept - rest).clamp_min(1e-6).sqrt()
        gain = (w / kept).T.reshape(rank, channels, PATCH, PATCH)

        linear, latents = self.encoder.linear, self.latent_shape[0]
        inside = slice(PATCH, 2 * PATCH)
        linear.weight.zero_()
        linear.weight[:rank, :, inside, inside] = gain.to(linear.weight)
        linear.bias.zero_()
        linear.bias[:rank] = -(gain.sum((2, 3)) @ mean).to(linear.bias)
        linear.bias[latents : latents + rank] = (rest / kept).log().to(linear.bias)

        decoder, start = cast(Convolution, self.decoder.linear[0]), self.decoder.start
        k, means, scales = self.mixtures, self.mixtures * (1 + channels), self.mixtures * (1 + 2 * channels)
        decoder.weight.zero_()
        rows = w.reshape(channels, 1, PATCH**2, rank).expand(-1, k, -1, -1).reshape(-1, rank)
        decoder.weight[k * PATCH**2 : means * PATCH**2, :rank, 1, 1] = rows.to(decoder.weight)
        start[k:means, 0, 0] += mean.repeat_interleave(k).to(start)
        start[means:scales] = 0.5 * math.log(3 * float(rest)) - math.log(math.pi)  # a logistic's variance: (pi s)^2 / 3

    def loss(self, x: Tensor, noise: Noise) -> Tensor:
        """-ELBO with one draw, nats (B,)."""
        mean, std = self.posterior(x)
        z = mean + std * noise.normal(self.latent_shape, "latent").to(mean.dtype)
        return _kl(mean, std) - self.log_px_given_z(x, z.contiguous(memory_format=torch.channels_last))

    def sample(self, n: int, noise: Noise) -> Tensor:
        """uint8 (n, C, H, W)."""
        z = noise.normal(self.latent_shape, "prior").to(next(self.parameters()).dtype)
        return sample_logistic_mixture(self.decoder(z), self.shape[0], self.mixtures, noise, "pixels")


def _kl(mean: Tensor, std: Tensor) -> Tensor:
    """KL(N(mean, std^2) || N(0, I)) in nats (B,)."""
    return 0.5 * (mean.square() + std.square() - 1 - 2 * std.log()).sum((1, 2, 3))
