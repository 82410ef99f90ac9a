"""Encoder and decoder after DCGAN (Radford et al. 2016): sides are halved and channels doubled, by convolutions alone.

After Xiao et al. 2020, without their batch normalisation. No linear map stands beside them and no principal components
start them, unlike the other networks here.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oodbench.errors import OodbenchError
from oodbench.models.nn import Convolution, Linear, rectified
from oodbench.models.vae.observations import Observation
from oodbench.models.vae.principal import Principal, mean_alone

__all__ = ["DCGANDecoder", "DCGANEncoder"]


def _sides(height: int, width: int) -> list[tuple[int, int]]:
    """Of the image and after every halving, down to four pixels or an odd number. None at all is an `OodbenchError`."""
    sides = [(height, width)]
    while all(side % 2 == 0 and side > 4 for side in sides[-1]):
        sides.append((sides[-1][0] // 2, sides[-1][1] // 2))
    if len(sides) == 1:
        raise OodbenchError(
            f"A 'dcgan' VAE cannot take {height}x{width} images: sides must be even and above 4; use 'dense'."
        )
    return sides


class DCGANEncoder(nn.Module):
    """(B, C, H, W) -> (B, outputs): convolutions of 4x4 with stride 2, the first to `hidden` channels."""

    def __init__(self, shape: tuple[int, int, int], hidden: int, outputs: int) -> None:
        super().__init__()
        channels, *image = shape
        places = _sides(*image)
        self.layers = nn.ModuleList()
        for halving in range(len(places) - 1):
            self.layers.append(Convolution(channels, hidden << halving, (4, 4), (1, 1), stride=2))
            channels = hidden << halving
        self.last = Linear(channels * math.prod(places[-1]), outputs, zero=True)

    def forward(self, x: Tensor) -> Tensor:
        h = x.contiguous(memory_format=torch.channels_last)
        for layer in self.layers:
            h = rectified(layer, h)
        out: Tensor = self.last(h.to(x.dtype).flatten(1))
        return out

    def principal(self, value: Tensor, latents: int) -> Principal:
        """None of the images (N, C, H, W): their mean alone."""
        return mean_alone(value.flatten(1))

    def start_at(self, principal: Principal, latents: int) -> None:
        """It starts as the prior, whatever the image."""


class DCGANDecoder(nn.Module):
    """(B, latents) -> (B, outputs, H, W): the same the other way, around an image of its own.

    Resolution grows by rearranging channels (Shi et al. 2016): a 3x3 convolution of which all 4x4 with stride 2,
    transposed, are special cases.
    """

    def __init__(self, shape: tuple[int, int, int], hidden: int, latents: int, pixel: Observation) -> None:
        super().__init__()
        _, *image = shape
        places = _sides(*image)
        widths = [pixel.outputs, *(hidden << halving for halving in range(len(places) - 1))]
        self.place = (widths[-1], *places[-1])
        self.first = Linear(latents, math.prod(self.place))
        self.layers = nn.ModuleList(
            Convolution(widths[k], 4 * widths[k - 1], (3, 3), (1, 1), zero=k == 1)
            for k in range(len(places) - 1, 0, -1)
        )
        self.start = nn.Parameter(pixel.start(0.1)[:, None, None].repeat(1, *image))

    def forward(self, z: Tensor) -> Tensor:
        h = self.first(z).reshape(-1, *self.place).contiguous(memory_format=torch.channels_last)
        for layer in self.layers:
            h = F.pixel_shuffle(layer(F.relu(h)), 2)
        out: Tensor = h.to(z.dtype) + self.start
        return out

    def start_at(self, principal: Principal, pixel: Observation) -> None:
        """Its own image becomes the mean."""
        self.start.copy_(pixel.start(principal.rest)[:, None, None].expand_as(self.start))
        if pixel.location is not None:
            places = self.start[slice(*pixel.location)]
            mean = principal.mean.reshape(-1, *self.start.shape[1:]).repeat_interleave(pixel.repeated, 0)
            places += mean.to(self.start)
