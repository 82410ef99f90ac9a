"""Encoders and decoders: a linear map, which starts at principal components, plus a network, which starts at zero.

"maps": convolutional, latents are maps of a quarter of the image's side. "convolutional" and "dense": latents are one
vector, which posteriors with structure need. "dcgan": one vector too, without the linear map (`dcgan.py`).
"""

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oodbench.errors import OodbenchError
from oodbench.models import networks as images
from oodbench.models.affine import Affine
from oodbench.models.nn import Convolution, Linear, rectified
from oodbench.models.vae.dcgan import DCGANDecoder, DCGANEncoder
from oodbench.models.vae.observations import Observation
from oodbench.models.vae.principal import Principal, probabilistic_pca

__all__ = ["PATCH", "DenseDecoder", "DenseDecoders", "build", "require_projection"]

PATCH = 4  # pixels a side that one place of latent maps stands for


class Residual(nn.Module):
    """x + conv(relu(conv(relu(x))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = Convolution(channels, channels, (3, 3), (1, 1))
        self.second = Convolution(channels, channels, (3, 3), (1, 1), zero=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.second(rectified(self.first, F.relu(x)))
        return out


class MapEncoder(nn.Module):
    """(B, C, H, W) -> (B, outputs, H/4, W/4): a linear map of 12x12 patches plus a network."""

    def __init__(self, shape: tuple[int, int, int], hidden: int, outputs: int) -> None:
        super().__init__()
        channels = shape[0]
        self.linear = Convolution(channels, outputs, (3 * PATCH, 3 * PATCH), (PATCH, PATCH), stride=PATCH)
        self.layers = nn.Sequential(
            Convolution(channels, hidden, (4, 4), (1, 1), stride=2),
            nn.ReLU(),
            Convolution(hidden, hidden, (4, 4), (1, 1), stride=2),
            Residual(hidden),
            Residual(hidden),
            nn.ReLU(),
            Convolution(hidden, outputs, zero=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        return cast(Tensor, self.linear(x) + self.layers(x)).to(x.dtype)

    def principal(self, value: Tensor, latents: int) -> Principal:
        """Of all patches of the images (N, C, H, W)."""
        channels = value.shape[1]
        patches = value.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).permute(0, 2, 3, 1, 4, 5)
        mean = value.mean((0, 2, 3)).repeat_interleave(PATCH**2)
        return probabilistic_pca(patches.reshape(-1, channels * PATCH**2), mean, latents)

    def start_at(self, principal: Principal, latents: int) -> None:
        """The first `latents` outputs become their means, the next, if any, their log-variances."""
        rank, gain, inside = len(principal.kept), principal.gain, slice(PATCH, 2 * PATCH)
        weight, bias = self.linear.weight, self.linear.bias
        weight.zero_()
        weight[:rank, :, inside, inside] = gain.reshape(rank, -1, PATCH, PATCH).to(weight)
        _start_bias(bias, principal, latents)


class MapDecoder(nn.Module):
    """(B, latents, H/4, W/4) -> (B, outputs, H, W).

    Resolution grows by rearranging channels (Shi et al. 2016), so that no convolution runs on the full image.
    """

    def __init__(self, shape: tuple[int, int, int], hidden: int, latents: int, pixel: Observation) -> None:
        super().__init__()
        outputs = pixel.outputs
        self.linear = nn.Sequential(Convolution(latents, PATCH**2 * outputs, (3, 3), (1, 1)), nn.PixelShuffle(PATCH))
        self.layers = nn.Sequential(
            Convolution(latents, hidden, (3, 3), (1, 1)),
            Residual(hidden),
            Residual(hidden),
            nn.ReLU(),
            Convolution(hidden, 4 * hidden),
            nn.PixelShuffle(2),
            Residual(hidden),
            nn.ReLU(),
            Convolution(hidden, 4 * outputs, (3, 3), (1, 1), zero=True),
            nn.PixelShuffle(2),
        )
        self.start = nn.Parameter(pixel.start(0.1)[:, None, None])

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = (self.linear(z) + self.layers(z)).to(z.dtype) + self.start
        return out

    def start_at(self, principal: Principal, pixel: Observation) -> None:
        """Its means become those of the principal components."""
        convolution, (_, rank) = cast(Convolution, self.linear[0]), principal.w.shape
        convolution.weight.zero_()
        self.start.copy_(pixel.start(principal.rest)[:, None, None])
        if pixel.location is not None:
            first, last = pixel.location
            rows = principal.w.reshape(-1, 1, PATCH**2, rank).expand(-1, pixel.repeated, -1, -1).reshape(-1, rank)
            convolution.weight[first * PATCH**2 : last * PATCH**2, :rank, 1, 1] = rows.to(convolution.weight)
            mean = principal.mean[:: PATCH**2].repeat_interleave(pixel.repeated)
            self.start[first:last, 0, 0] += mean.to(self.start)


class _Vector(nn.Module):
    """What encoders to a vector share: `linear` sees the whole image."""

    linear: Linear

    def principal(self, value: Tensor, latents: int) -> Principal:
        """Of the whole images (N, C, H, W)."""
        rows = value.flatten(1)
        return probabilistic_pca(rows, rows.mean(0), latents)

    def start_at(self, principal: Principal, latents: int) -> None:
        """As of `MapEncoder`."""
        weight = self.linear.weight
        weight.zero_()
        weight[: len(principal.kept)] = principal.gain.to(weight)
        _start_bias(self.linear.bias, principal, latents)


class _FromVector(nn.Module):
    """What decoders of a vector share: `linear` gives all numbers of the image."""

    linear: Linear

    def start_at(self, principal: Principal, pixel: Observation) -> None:
        """As of `MapDecoder`."""
        weight, bias, rank = self.linear.weight, self.linear.bias, len(principal.kept)
        weight.zero_()
        per_place = bias.view(pixel.outputs, -1)
        per_place.copy_(pixel.start(principal.rest)[:, None].expand_as(per_place))
        if pixel.location is not None:
            at = slice(*pixel.location)
            places = per_place.shape[1]
            w = principal.w.reshape(-1, 1, places, rank).expand(-1, pixel.repeated, -1, -1).reshape(-1, places, rank)
            weight.view(pixel.outputs, places, -1)[at, :, :rank] = w.to(weight)
            per_place[at] += principal.mean.reshape(-1, places).repeat_interleave(pixel.repeated, 0).to(bias)


class DenseEncoder(_Vector):
    """(B, C, H, W) -> (B, outputs): a linear map plus two hidden layers."""

    def __init__(self, shape: tuple[int, int, int], hidden: int, outputs: int) -> None:
        super().__init__()
        inputs = math.prod(shape)
        self.linear = Linear(inputs, outputs)
        self.layers = images.Perceptron(inputs, hidden, hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        out: Tensor = self.linear(x) + self.layers(x)
        return out


class DenseDecoder(_FromVector, images.Skipped):
    """(B, latents) -> (B, outputs that are not idle, H, W): the same the other way."""

    def __init__(self, shape: tuple[int, int, int], hidden: int, latents: int, pixel: Observation) -> None:
        super().__init__()
        self.image, places = (pixel.outputs - pixel.idle, *shape[1:]), math.prod(shape[1:])
        self.idle = pixel.idle * places  # numbers that are parameters, but not computed
        self.linear = Linear(latents, pixel.outputs * places)
        self.layers = images.Perceptron(latents, hidden, hidden, pixel.outputs * places)

    def forward(self, z: Tensor) -> Tensor:
        return self.sum(z).reshape(-1, *self.image)


class DenseDecoders:
    """Decoders of one size on the same few latents, where one after the other would leave the cores idle.

    On a CPU the last products are one a member all the same: there weights in oneDNN's own order save more.
    """

    def __init__(self, decoders: Sequence[DenseDecoder]) -> None:
        self.image = decoders[0].image
        hidden = zip(*(list(decoder.layers)[:-1:2] for decoder in decoders), strict=True)
        self.hidden = [_stack([cast(Linear, layer).affine_now() for layer in layers]) for layers in hidden]
        self.last = [decoder.last_now() for decoder in decoders]
        on_cpu = self.last[0].weight.device.type == "cpu"
        self.stacked = None if on_cpu else _stack(self.last)

    def __call__(self, z: Tensor, members: slice) -> Tensor:
        """(B, latents) -> (m, B, outputs that are not idle, H, W), of so many of the decoders."""
        hidden = z.to(self.last[0].weight.dtype).expand(len(self.last[members]), *z.shape)
        start = hidden
        for weight, bias in self.hidden:
            hidden = torch.baddbmm(bias[members], hidden, weight[members]).relu_()
        inputs = torch.cat([start, hidden], 2)
        if self.stacked is None:
            out = torch.stack([last(one) for last, one in zip(self.last[members], inputs, strict=True)])
        else:
            weight, bias = self.stacked
            out = torch.baddbmm(bias[members], inputs, weight[members])
        return out.to(z.dtype).reshape(*out.shape[:2], *self.image)


class ConvolutionalEncoder(_Vector, images.ImageEncoder):
    """(B, C, H, W) -> (B, outputs): a linear map plus strided convolutions."""


class ConvolutionalDecoder(_FromVector, images.ImageDecoder):
    """(B, latents) -> (B, outputs, H, W): the same the other way."""

    def __init__(self, shape: tuple[int, int, int], hidden: int, latents: int, pixel: Observation) -> None:
        images.ImageDecoder.__init__(self, shape, hidden, latents, pixel.outputs)


_NETWORKS: dict[str, tuple[Any, Any]] = {
    "maps": (MapEncoder, MapDecoder),
    "convolutional": (ConvolutionalEncoder, ConvolutionalDecoder),
    "dense": (DenseEncoder, DenseDecoder),
    "dcgan": (DCGANEncoder, DCGANDecoder),
}


def build(
    network: str, shape: tuple[int, int, int], latents: int, hidden: int, outputs: int, pixel: Observation
) -> tuple[tuple[int, ...], Any, Any]:
    """(shape of the latents, encoder of images on -1 ... 1 to `outputs` channels or numbers, decoder)."""
    if network not in _NETWORKS:
        raise OodbenchError(f"Unknown network {network!r}: take {', '.join(_NETWORKS)}.")
    if latents < 1 or hidden < 1:
        raise OodbenchError("A VAE has at least 1 latent and 1 hidden unit.")
    if math.prod(shape) < 2:  # of which principal components leave nothing over
        raise OodbenchError(f"An autoencoder's image has at least 2 numbers, not {math.prod(shape)}.")
    _, height, width = shape
    if network in ("maps", "convolutional") and (height % PATCH or width % PATCH):
        raise OodbenchError(
            f"A {network} VAE cannot take {height}x{width} images: sides must be divisible by {PATCH}; use 'dense'."
        )
    latent_shape = (latents, height // PATCH, width // PATCH) if network == "maps" else (latents,)
    encoder, decoder = _NETWORKS[network]
    return latent_shape, encoder(shape, hidden, outputs), decoder(shape, hidden, latents, pixel)


def require_projection(network: str) -> None:
    """Raises `OodbenchError` for a network that cannot start at principal components."""
    if network == "dcgan":
        raise OodbenchError("This model starts at principal components, which 'dcgan' cannot: take another network.")


def _stack(members: Sequence[Affine]) -> tuple[Tensor, Tensor]:
    """Weights (M, inputs, outputs) and biases (M, 1, outputs)."""
    weights, biases = zip(*((member.weight, member.bias) for member in members), strict=True)
    return torch.stack(weights).transpose(1, 2), torch.stack(biases)[:, None]


def _start_bias(bias: Tensor, principal: Principal, latents: int) -> None:
    rank = len(principal.kept)
    bias.zero_()
    bias[:rank] = -(principal.gain @ principal.mean).to(bias)
    if len(bias) >= 2 * latents:  # else an encoder without variances
        bias[latents : latents + rank] = (principal.rest / principal.kept).log().to(bias)
