"""Two-step models (Loaiza-Ganem et al. 2022): an encoder-decoder finds the surface, then a flow the density on it."""

import math
from collections.abc import Mapping
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from oodbench.errors import OodbenchError
from oodbench.models.configuration import check_configuration
from oodbench.models.manifold.embedded import EmbeddedModel
from oodbench.models.networks import ImageDecoder, ImageEncoder
from oodbench.models.noise import Noise
from oodbench.registry import MODELS

__all__ = ["Autoencoder", "EncoderDecoder", "TwoStep"]


@runtime_checkable
class EncoderDecoder(Protocol):
    """What a registered model must offer to be the first step."""

    latent_shape: tuple[int, ...]
    progress: float

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (B, C, H, W) -> (mean, standard deviation) of the latents (B, *latent_shape)."""
        ...

    def mean_image(self, z: Tensor) -> Tensor:
        """Latents (B, *latent_shape) -> the mean of p(x | z) (B, C, H, W), bytes 0 ... 255 as -1 ... 1."""
        ...

    def loss(self, x: Tensor, noise: Noise) -> Tensor:
        """What the first step minimises, nats (B,)."""
        ...

    def calibrate(self, known: Tensor, held_out: Tensor) -> None:
        """As of every density model."""
        ...

    def after_step(self) -> None:
        """As of every density model."""
        ...


class TwoStep(EmbeddedModel):
    """z = the mean of q(z | x), g(z) = the mean of p(x | z), and a flow on z: `log_px` is log_p_latent.

    `first` is "autoencoder" (below, with `latents` of them) or the name of a registered encoder-decoder such as "vae";
    `first_config` its configuration. Both steps are trained at once, but no gradient passes from the flow to the first
    step, which so becomes what it would be alone; the learning rate's end leaves the flow time to follow.
    """

    log_px_is = "log_p_latent"
    remark = "latent only"

    def __init__(
        self,
        shape: tuple[int, int, int],
        first: str = "autoencoder",
        first_config: Mapping[str, Any] | None = None,
        weight: float = 50.0,
        prior: str = "couplings",
        prior_config: Mapping[str, Any] | None = None,
    ) -> None:
        build: Any = Autoencoder if first == "autoencoder" else MODELS.get(first)
        check_configuration(first, build, first_config or {})
        step = build(shape, **(first_config or {}))
        if not isinstance(step, EncoderDecoder):
            parts = ("latent_shape", "encode", "mean_image")
            lacking = ", ".join(part for part in parts if not hasattr(step, part))
            raise OodbenchError(
                f"{first} cannot be the first step, which encodes bytes (not dequantised) to the mean of latents that "
                f"are no codes, and decodes these to a mean image, for it lacks {lacking}: take vae or 'autoencoder'."
            )
        super().__init__(shape, math.prod(step.latent_shape), weight, prior, prior_config)
        self.first = cast(Any, step)

    def encode(self, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        pixels = (x.to(next(self.parameters()).dtype) + 0.5) / 256 - 0.5
        return pixels.permute(0, 2, 3, 1).flatten(1), self.first.encode(x)[0].flatten(1)

    def decode(self, z: Tensor, noise: Noise) -> Tensor:
        image = self.first.mean_image(z.reshape(-1, *self.first.latent_shape))
        # 0 ... 255 on -1 ... 1, to the middle of their bins on -1/2 ... 1/2
        pixels: Tensor = (image * (255 / 512)).permute(0, 2, 3, 1).flatten(1)
        return pixels

    def loss(self, x: Tensor, noise: Noise) -> Tensor:
        """The first step's loss less log p of its detached latents, nats (B,)."""
        self.first.progress = self.progress  # its schedules run as they would alone
        loss: Tensor = self.first.loss(x, noise)
        z = self.first.encode(x)[0].flatten(1).detach()
        return loss - self.prior.log_density(z, noise)

    def after_step(self) -> None:
        """The first step's own."""
        self.first.after_step()

    def calibrate(self, known: Tensor, held_out: Tensor) -> None:
        """The first step's start."""
        self.first.calibrate(known, held_out)

    @torch.no_grad()
    def initialise(self, x: Tensor, noise: Noise) -> None:
        """The flow's start, on the latents of the first step's."""
        self.prior(self.first.encode(x)[0].flatten(1), noise, initialise=True)


class Autoencoder(nn.Module):
    """x -> z -> x without noise: p(x | z) = N(g(z), s^2), of which only the mean is learnt."""

    progress = 1.0

    def __init__(self, shape: tuple[int, int, int], latents: int = 20, hidden: int = 32, std: float = 0.1) -> None:
        super().__init__()
        if not 1 <= latents < math.prod(shape):
            raise OodbenchError(f"An autoencoder of {math.prod(shape)} numbers has fewer latents than {latents}.")
        self.latent_shape = (latents,)
        self.std = std
        self.encoder = ImageEncoder(shape, hidden, latents)
        self.decoder = ImageDecoder(shape, hidden, latents, shape[0])

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(z, 0), each (B, latents)."""
        z = self.encoder(x.to(next(self.parameters()).dtype) / 127.5 - 1)
        return z, torch.zeros_like(z)

    def mean_image(self, z: Tensor) -> Tensor:
        """(B, latents) -> (B, C, H, W) on -1 ... 1."""
        out: Tensor = self.decoder(z)
        return out

    def loss(self, x: Tensor, noise: Noise) -> Tensor:
        """-log N(x; g(z), s^2) but for its constant, nats (B,)."""
        value = x.to(next(self.parameters()).dtype) / 127.5 - 1
        return (value - self.mean_image(self.encoder(value))).square().sum((1, 2, 3)) / (2 * self.std**2)

    def after_step(self) -> None:
        """Nothing moves but by its gradient."""

    @torch.no_grad()
    def calibrate(self, known: Tensor, held_out: Tensor) -> None:
        """Starts at the principal components, scaled to unit variance."""
        value = known.double().flatten(1) / 127.5 - 1
        mean = value.mean(0)
        variances, axes = torch.linalg.eigh((value - mean).T @ (value - mean) / len(value))
        std = variances.flip(0)[: self.latent_shape[0]].clamp_min(1e-4).sqrt()
        axes = axes.flip(1)[:, : self.latent_shape[0]]
        encoder, decoder = self.encoder.linear, self.decoder.linear
        encoder.weight.copy_((axes / std).T)
        encoder.bias.copy_(-mean @ (axes / std))
        decoder.weight.copy_(axes * std)
        decoder.bias.copy_(mean)
