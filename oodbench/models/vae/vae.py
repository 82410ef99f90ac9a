"""The variational autoencoder (Kingma & Welling 2014): a Gaussian encoder, a standard normal prior."""

from typing import Any

import torch
from torch import Tensor

from oodbench.errors import OodbenchError
from oodbench.models.base import Likelihood
from oodbench.models.noise import Noise
from oodbench.models.vae.latent import LatentModel
from oodbench.models.vae.networks import build
from oodbench.models.vae.observations import observation as observation_of
from oodbench.models.vae.posteriors import Gaussian, Posterior

__all__ = ["DCGANVAE", "VAE", "DenseVAE"]


class VAE(LatentModel):
    """q(z | x) = N(m(x), s(x)^2), p(z) = N(0, I), P(x | z) as `observation` says.

    `network` is "maps" (`latents` maps of a quarter of the image's side), "convolutional", "dcgan" or "dense"
    (`latents` numbers); `hidden` its width; `observation` is "logistic" (a mixture of `mixtures` discretised logistics
    a pixel), "categorical" or "bernoulli" (of the image at one bit a number: never ranked beside 8-bit ones). Its kin
    subclass it and change posterior, prior or decoder; they set `outputs`, how many numbers or maps the encoder gives,
    where it is not a mean and a log-variance a latent.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        latents: int = 16,
        hidden: int = 64,
        mixtures: int = 1,
        draws: int = 64,
        network: str = "maps",
        observation: str = "logistic",
        free_bits: float = 0.0,
        warm_up: float = 0.0,
        outputs: int | None = None,
    ) -> None:
        super().__init__(shape, draws, free_bits, warm_up)
        self.pixel = observation_of(observation, shape[0], mixtures)
        if self.pixel.binary:
            self.likelihood = Likelihood.BINARISED
        self.latents = latents
        if outputs is None:
            outputs = 2 * latents
        self.latent_shape, self.encoder, self.decoder = build(network, shape, latents, hidden, outputs, self.pixel)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (B, C, H, W) -> mean and standard deviation (B, *latent_shape) that the encoder gives."""
        return self.encode_with_context(x)[:2]

    def encode_with_context(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `encode`, and what numbers (B, outputs - 2 * latents, ...) the encoder gives besides."""
        out = self.encoder(self.values(x))
        mean, log_variance, context = out.tensor_split([self.latents, 2 * self.latents], 1)
        return mean, torch.exp(0.5 * log_variance.clamp(-14, 6)), context

    def values(self, x: Tensor) -> Tensor:
        """uint8 -> -1 ... 1, as encoders see images; binarised where the likelihood is."""
        if self.pixel.binary:
            x = (x >= 128).to(torch.uint8) * 255
        return x.to(next(self.parameters()).dtype) / 127.5 - 1

    def posterior(self, x: Tensor, noise: Noise) -> Posterior:
        return Gaussian(*self.encode(x))

    def log_px_given_z(self, x: Tensor, z: Tensor) -> Tensor:
        if z.ndim == 4:  # maps, whose convolutions are faster so
            z = z.contiguous(memory_format=torch.channels_last)
        return self.pixel.log_prob(x, self.decoder(z))

    def mean_image(self, z: Tensor) -> Tensor:
        """The mean of P(x | z) (B, C, H, W), 0 ... 255 as -1 ... 1, of latents (B, *latent_shape)."""
        return self.pixel.mean(self.decoder(z))

    def decode_sample(self, z: Tensor, noise: Noise) -> Tensor:
        return self.pixel.sample(self.decoder(z), noise)

    @torch.no_grad()
    def calibrate(self, known: Tensor, held_out: Tensor) -> None:
        """Starts at probabilistic principal components, which gradient descent takes thousands of steps to find.

        A network without a linear map starts at the mean image alone.
        """
        principal = self.encoder.principal(self.values(known).double(), self.latents)
        self.encoder.start_at(principal, self.latents)
        self.decoder.start_at(principal, self.pixel)


class DenseVAE(VAE):
    """The VAE on one vector of latents, fully connected: what posteriors with structure are compared with."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        latents: int = 32,
        hidden: int = 400,
        mixtures: int = 1,
        draws: int = 64,
        network: str = "dense",
        **config: Any,
    ) -> None:
        super().__init__(shape, latents, hidden, mixtures, draws, network, **config)
        if len(self.latent_shape) != 1:
            raise OodbenchError(
                f"This model's latents are one vector: take 'dense', 'convolutional' or 'dcgan', not {network!r}."
            )


class DCGANVAE(DenseVAE):
    """The VAE of strided convolutions alone, as where likelihood regret was published.

    Xiao et al. 2020 have batch normalisation besides, and a 256-way softmax a pixel ("categorical") where this has
    discretised logistics.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        latents: int = 100,
        hidden: int = 64,
        network: str = "dcgan",
        **config: Any,
    ) -> None:
        super().__init__(shape, latents, hidden, network=network, **config)
