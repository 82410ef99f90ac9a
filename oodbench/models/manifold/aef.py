"""AEF, an autoencoder within a flow (Silvestri et al. 2023): encoder and decoder are couplings of a bijection."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from oodbench.errors import OodbenchError
from oodbench.models.base import Likelihood
from oodbench.models.flows.flow import ImageFlow
from oodbench.models.flows.transforms.base import Shape, Transform
from oodbench.models.flows.transforms.coupling import Coupling
from oodbench.models.flows.transforms.elementwise import Affine, Elementwise
from oodbench.models.flows.transforms.part import Part
from oodbench.models.flows.transforms.permutation import Permutation, swap
from oodbench.models.flows.transforms.squeeze import Flatten
from oodbench.models.manifold.latents import couplings, latent_flow
from oodbench.models.networks import ImageDecoder, ImageEncoder
from oodbench.models.nn import Linear
from oodbench.models.noise import Noise

__all__ = ["AEF"]

CORES = ("corner", "centre", "linear")
BOUND = 5.0  # of the logarithm of the encoder's scales


class AEF(ImageFlow):
    """Pixels are a core of `latents` values and a rest (Silvestri et al. 2023, Section 3):

        z = mu_enc(rest) + sigma_enc(rest) f(core),    e = (rest - mu_dec(z)) / sigma_dec(z)

    Given z and e the decoder finds the rest and the encoder then the core, so this is a bijection with

        log|det| = log|det f| + sum log sigma_enc - sum log sigma_dec + that of the prior's flow on z

    and standard normal e. To the encoder the core is what noise is to a VAE's. f is a few couplings.

    `core` is where these pixels lie: the "centre" or the "corner". The latter is often black, so that a single bright
    pixel there is thousands of standard deviations away. With "linear" the core is W x and the rest is all of
    x, as published: no bijection, and no normalised density of x, so that log P is an ESTIMATE.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        latents: int = 20,
        hidden: int = 32,
        core: str = "centre",
        core_config: Mapping[str, Any] | None = None,
        prior: str = "couplings",
        prior_config: Mapping[str, Any] | None = None,
    ) -> None:
        dimensions = math.prod(shape)
        if core not in CORES:
            raise OodbenchError(f"Unknown core {core!r}: use {', '.join(CORES)}.")
        if not 2 <= latents < dimensions:
            raise OodbenchError(f"aef on {dimensions} values has 2 to {dimensions - 1} latents, not {latents}.")
        order = torch.arange(dimensions) if core == "linear" else _core_first(shape, latents, core)
        rest = order if core == "linear" else order[latents:]
        self.latents = latents
        encoder, decoder = _Encoder(shape, rest, hidden, latents), _Decoder(shape, rest, hidden, latents)
        prior_layers = cast("list[Transform]", list(latent_flow(latents, prior, prior_config).layers))

        def layers() -> Iterator[Transform]:
            yield Flatten((shape[1], shape[2], shape[0]))
            yield LinearCore(dimensions, latents) if core == "linear" else Permutation(order)
            yield Part(latents, couplings(latents, **(core_config or {})))
            yield swap(latents, len(rest))
            yield Coupling(len(rest), encoder, Affine(BOUND))
            yield swap(len(rest), latents)
            yield Coupling(latents, decoder, Centred())
            yield Part(latents, prior_layers)

        super().__init__(shape, layers())
        self.encoder, self.decoder = [encoder], [decoder]  # in lists: they are registered once, in the flow

    @torch.no_grad()
    def initialise(self, x: Tensor, noise: Noise) -> None:
        """Encoder and decoder start at probabilistic principal components (Tipping & Bishop 1999) of this batch."""
        rest = self.dequantise(x, noise).flatten(1)[:, self.encoder[0].rest].double()
        mean = rest.mean(0)
        variances, axes = torch.linalg.eigh((rest - mean).T @ (rest - mean) / len(rest))
        kept, left = variances.flip(0)[: self.latents].clamp_min(1e-6), variances.flip(0)[self.latents :]
        noise_variance = left.mean().clamp(1e-7, float(kept[-1]))
        axes = axes.flip(1)[:, : self.latents]
        gain = axes * (kept - noise_variance).clamp_min(0).sqrt() / kept  # E[z | rest] = gain' (rest - mean)
        std = (noise_variance / kept).sqrt()
        loadings = axes * (kept - noise_variance).clamp_min(1e-8).sqrt()
        error = rest - mean - (rest - mean) @ gain @ loadings.T
        spread = error.square().mean(0) + loadings.square() @ std.square()
        spread = (spread + spread.mean() * (10 / len(rest))).sqrt()  # of few images, a pixel's own is no safe estimate
        self.encoder[0].start(gain, -mean @ gain, std.log())
        self.decoder[0].start(loadings, mean, spread.log())
        super().initialise(x, noise)


class Centred(Elementwise):
    """y = (x - m) exp(-s) with s = c + b tanh(s' / b): what a Gaussian decoder's mean and scale make of pixels."""

    parameters = 2

    def __init__(self, centre: float = -3.0, bound: float = 5.0) -> None:
        self.centre, self.bound = centre, bound

    def forward(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_scale = self._split(theta)
        return (x - mean) * (-log_scale).exp(), -log_scale.flatten(1).sum(1)

    def inverse(self, y: Tensor, theta: Tensor) -> Tensor:
        mean, log_scale = self._split(theta)
        return mean + y * log_scale.exp()

    def raw(self, log_scale: Tensor) -> Tensor:
        """The s' that gives this s, as far as it can be reached."""
        return self.bound * ((log_scale - self.centre) / self.bound).clamp(-0.99, 0.99).atanh()

    def _split(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = theta.chunk(2, -1)
        return mean, self.centre + self.bound * (raw / self.bound).tanh()


class LinearCore(Transform):
    """y = (W h, h): adds a core to the whole. Its inverse drops it; volumes after it are no densities of h."""

    volume = Likelihood.ESTIMATE
    bijective = inverts = False

    def __init__(self, dimensions: int, core: int) -> None:
        super().__init__()
        self.core = core
        self.dense = Linear(dimensions, core)

    def forward(self, h: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        return torch.cat([self.dense(h), h], -1), h.new_zeros(())

    def inverse(self, y: Tensor, noise: Noise) -> Tensor:
        return y[..., self.core :]

    def shape_after(self, shape: Shape) -> Shape:
        return (shape[0] + self.core,)


class _Encoder(nn.Module):
    """The rest (B, R) -> shift and raw log-scale of the core (B, 2 d); the image's other pixels are 0 to it."""

    rest: Tensor

    def __init__(self, shape: tuple[int, int, int], rest: Tensor, hidden: int, latents: int) -> None:
        super().__init__()
        self.shape, self.latents = shape, latents
        self.register_buffer("rest", rest, persistent=False)
        self.network = ImageEncoder(shape, hidden, 2 * latents)

    def forward(self, rest: Tensor) -> Tensor:
        channels, height, width = self.shape
        image = rest.new_zeros(len(rest), channels * height * width)
        image[:, self.rest] = rest
        out: Tensor = self.network(image.reshape(-1, height, width, channels).permute(0, 3, 1, 2))
        return out

    def start(self, gain: Tensor, bias: Tensor, log_std: Tensor) -> None:
        """shift = gain' rest + bias, log-scale = log_std for every image."""
        linear = self.network.linear
        linear.weight.zero_()
        linear.weight[: self.latents, _channels_first(self.shape).to(self.rest)[self.rest]] = gain.T.to(linear.weight)
        raw = BOUND * (log_std / BOUND).clamp(-0.99, 0.99).atanh()
        linear.bias.copy_(torch.cat([bias, raw]))


class _Decoder(nn.Module):
    """z (B, d) -> mean and raw log-scale of the rest (B, 2 R)."""

    rest: Tensor

    def __init__(self, shape: tuple[int, int, int], rest: Tensor, hidden: int, latents: int) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer("rest", rest, persistent=False)
        self.network = ImageDecoder(shape, hidden, latents, 2 * shape[0])

    def forward(self, z: Tensor) -> Tensor:
        mean, raw = self.network(z).permute(0, 2, 3, 1).chunk(2, -1)
        return torch.cat([mean.flatten(1)[:, self.rest], raw.flatten(1)[:, self.rest]], -1)

    def start(self, loadings: Tensor, mean: Tensor, log_std: Tensor) -> None:
        """mean = loadings z + mean, log-scale = log_std for every image."""
        linear, places = self.network.linear, _channels_first(self.shape).to(self.rest)[self.rest]
        linear.weight.zero_()
        linear.bias.zero_()
        linear.weight[places] = loadings.to(linear.weight)
        linear.bias[places] = mean.to(linear.bias)
        linear.bias[math.prod(self.shape) + places] = Centred().raw(log_std).to(linear.bias)


def _core_first(shape: tuple[int, int, int], core: int, where: str) -> Tensor:
    """Positions in a flattened (H, W, C), those of a nearly square block of `core` values first."""
    channels, height, width = shape
    across = min(width, math.ceil(math.sqrt(core / channels)))
    down = math.ceil(core / channels / across)
    top, left = ((height - down) // 2, (width - across) // 2) if where == "centre" else (0, 0)
    if down > height:
        across, down, top, left = width, height, 0, 0
    place = torch.arange(height * width * channels).reshape(height, width, channels)
    chosen = place[top : top + down, left : left + across].flatten()[:core]
    others = torch.ones(place.numel(), dtype=torch.bool)
    others[chosen] = False
    return torch.cat([chosen, others.nonzero()[:, 0]])


def _channels_first(shape: tuple[int, int, int]) -> Tensor:
    """For every position in a flattened (H, W, C) the one in a flattened (C, H, W)."""
    channels, height, width = shape
    return torch.arange(channels * height * width).reshape(channels, height, width).permute(1, 2, 0).flatten()
