"""The networks of models whose latents are vectors, on flat inputs and on images."""

from torch import Tensor, nn

from oodbench.errors import OodbenchError
from oodbench.models.nn import Convolution, Linear

__all__ = ["DenseNetwork", "ImageDecoder", "ImageEncoder", "perceptron"]


def perceptron(inputs: int, hidden: int, outputs: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """(B, inputs) -> (B, outputs) by two hidden layers, zero at the start."""
    return nn.Sequential(
        Linear(inputs, hidden), activation(), Linear(hidden, hidden), activation(), Linear(hidden, outputs, zero=True)
    )


class DenseNetwork(nn.Module):
    """Two hidden layers with tanh, zero at the start.

    Smooth, as a trained Jacobian needs second derivatives, and bounded: far from the data a stack of couplings stays
    linear, where unbounded ones gave single validation images of digits -10^13 nats.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.layers = perceptron(inputs, hidden, outputs, nn.Tanh)

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


def _check(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    _, height, width = shape
    if height % 4 or width % 4:
        raise OodbenchError(f"An autoencoder cannot take {height}x{width} images: sides must be divisible by 4.")
    return shape
