"""The networks of models whose latents are vectors, on flat inputs and on images."""

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from oodbench.errors import OodbenchError
from oodbench.models.affine import Affine
from oodbench.models.nn import Convolution, Linear, folded, network_dtype

__all__ = ["DenseNetwork", "ImageDecoder", "ImageEncoder", "Perceptron", "Skipped"]

_ROWS = 64  # from so many on a sum is one product: fewer are cheap, and keep the roundings that training has


class Perceptron(nn.Sequential):
    """Linear maps with ReLUs in between, (B, sizes[0]) -> (B, sizes[-1]); `zero` starts it as the zero function.

    In training, and where gradients are asked, its layers are called one after another, as a `Sequential` does: Bayes
    by Backprop hooks them, a refit puts others in their place. It cannot be sliced.
    """

    def __init__(self, *sizes: int, zero: bool = True) -> None:
        layers: list[nn.Module] = []
        for k, (inputs, outputs) in enumerate(pairwise(sizes), start=2):
            last = k == len(sizes)
            layers += [Linear(inputs, outputs, zero=zero and last), *([] if last else [nn.ReLU()])]
        super().__init__(*layers)

    def hidden(self, x: Tensor) -> Tensor:
        """The last hidden layer (B, sizes[-2]), in evaluation in the network dtype."""
        for layer in list(self)[:-1:2]:
            x = _through(layer, x, relu=True)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return _through(self[-1], self.hidden(x)).to(x.dtype)


class Skipped(nn.Module):
    """linear(x) + layers(x), but for the first `idle` outputs, which say nothing: to be mixed in.

    In evaluation one product gives the sum, so that it is not written twice to be added.
    """

    linear: Linear
    layers: Perceptron
    idle: int

    @folded
    def last_now(self) -> Affine:
        """(inputs of `linear`, last hidden units) -> the sum."""
        last = cast(Linear, self.layers[-1])
        weight = torch.cat([self.linear.weight[self.idle :], last.weight[self.idle :]], 1)
        dtype = network_dtype(weight)
        return Affine(weight.to(dtype), (self.linear.bias + last.bias)[self.idle :].to(dtype))

    def sum(self, x: Tensor) -> Tensor:
        """(B, inputs) -> (B, outputs - idle) in the dtype of x."""
        exact = network_dtype(self.linear.weight) == x.dtype  # else roundings differ, which no row's company may decide
        if self.training or torch.is_grad_enabled() or (exact and len(x) < _ROWS):
            out: Tensor = (self.linear(x) + self.layers(x))[:, self.idle :]
            return out
        hidden = self.layers.hidden(x)
        return self.last_now()(torch.cat([x.to(hidden.dtype), hidden], 1)).to(x.dtype)


class DenseNetwork(nn.Module):
    """Two hidden layers with tanh, zero at the start.

    Smooth, as a trained Jacobian needs second derivatives, and bounded: far from the data a stack of couplings stays
    linear, where unbounded ones gave single validation images of digits -10^13 nats.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Linear(inputs, hidden), nn.Tanh(), Linear(hidden, hidden), nn.Tanh(), Linear(hidden, outputs, zero=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs) -> (B, outputs)."""
        out: Tensor = self.layers(x)
        return out


class ImageEncoder(nn.Module):
    """(B, C, H, W) -> (B, outputs): a linear map plus strided convolutions, which start as the zero function."""

    def __init__(self, shape: tuple[int, int, int], hidden: int, outputs: int) -> None:
        super().__init__()
        channels, height, width = _check(shape)
        self.linear = Linear(channels * height * width, outputs)
        self.layers = nn.Sequential(
            Convolution(channels, hidden, (4, 4), (1, 1), stride=2),
            nn.SiLU(),
            Convolution(hidden, hidden, (4, 4), (1, 1), stride=2),
            nn.SiLU(),
            Convolution(hidden, hidden, (3, 3), (1, 1)),
            nn.SiLU(),
        )
        self.last = Linear(hidden * height * width // 16, outputs, zero=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x.flatten(1)) + self.last(self.layers(x).to(x.dtype).flatten(1))
        return out


class ImageDecoder(nn.Module):
    """(B, inputs) -> (B, outputs, H, W): the same the other way."""

    def __init__(self, shape: tuple[int, int, int], hidden: int, inputs: int, outputs: int) -> None:
        super().__init__()
        _, height, width = _check(shape)
        self.place, self.image = (hidden, height // 4, width // 4), (outputs, height, width)
        self.linear = Linear(inputs, outputs * height * width)
        self.first = Linear(inputs, hidden * height * width // 16)
        self.layers = nn.Sequential(
            nn.SiLU(),
            Convolution(hidden, 4 * hidden, (3, 3), (1, 1)),
            nn.PixelShuffle(2),
            nn.SiLU(),
            Convolution(hidden, 4 * outputs, (3, 3), (1, 1), zero=True),
            nn.PixelShuffle(2),
        )

    def forward(self, z: Tensor) -> Tensor:
        linear = self.linear(z).reshape(-1, *self.image)
        out: Tensor = linear + self.layers(self.first(z).reshape(-1, *self.place)).to(z.dtype)
        return out


def _through(layer: nn.Module, x: Tensor, relu: bool = False) -> Tensor:
    """What a layer gives, rectified or not; one of ours in evaluation by `Affine`, in the network dtype."""
    if type(layer) is Linear and not (layer.training or torch.is_grad_enabled()):
        return layer.affine_now()(x, relu)
    out: Tensor = layer(x)
    return out.relu_() if relu else out


def _check(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    _, height, width = shape
    if height % 4 or width % 4:
        raise OodbenchError(f"An autoencoder cannot take {height}x{width} images: sides must be divisible by 4.")
    return shape
