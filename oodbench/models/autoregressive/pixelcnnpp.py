"""PixelCNN++ (Salimans et al. 2017): two causal streams, three resolutions, a logistic mixture a pixel."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oodbench.errors import OodbenchError
from oodbench.models.autoregressive.sampling import sample_pixelwise
from oodbench.models.base import DensityModel, Likelihood
from oodbench.models.likelihoods import (
    logistic_mixture_head,
    logistic_mixture_log_prob,
    sample_logistic_mixture,
)
from oodbench.models.nn import Convolution
from oodbench.models.noise import Noise

__all__ = ["PixelCNNPP"]

SCALES = 3  # full, half and quarter resolution
NEIGHBOURS = ((0, -1), (-1, 0), (-1, -1), (-1, 1))  # (rows, columns) away, all of them earlier in raster order


class Causal(nn.Module):
    """A convolution over rows up to its own; an even kernel width also ends at its own column."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int], stride: int = 1) -> None:
        super().__init__()
        rows, columns = kernel
        centred = columns % 2 == 1  # the down stream looks to both sides, the right stream only to the left
        self.convolution = Convolution(
            inputs, outputs, kernel, (rows - 1, columns // 2 if centred else columns - 1), stride
        )
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        # Padding both ends and dropping the surplus is a view; padding one end would copy the whole input.
        seen: Tensor = self.convolution(x)[:, :, : x.shape[2] // self.stride, : x.shape[3] // self.stride]
        return seen


class GatedResidual(nn.Module):
    """x + a sigmoid(b) with (a, b) = conv(relu(conv(relu(x)) + projection of another stream)).

    The paper's concatenated ELU doubles every convolution's input; the plain ReLU reaches lower bits/dim per second.
    """

    def __init__(self, filters: int, kernel: tuple[int, int], extra: int) -> None:
        super().__init__()
        self.first = Causal(filters, filters, kernel)
        self.extra = Convolution(extra, filters) if extra else None
        self.second = Causal(filters, 2 * filters, kernel)

    def forward(self, x: Tensor, extra: Tensor | None = None) -> Tensor:
        hidden = self.first(F.relu(x))
        if self.extra is not None and extra is not None:
            hidden = hidden + self.extra(F.relu(extra))
        value, gate = self.second(F.relu(hidden)).chunk(2, 1)
        out: Tensor = x + value * torch.sigmoid(gate)
        return out


class Pair(nn.Module):
    """One gated residual in the down stream and one in the right stream, which also sees the first."""

    def __init__(self, filters: int, skip: bool) -> None:
        super().__init__()
        self.down = GatedResidual(filters, (2, 3), filters if skip else 0)
        self.right = GatedResidual(filters, (2, 2), 2 * filters if skip else filters)

    def forward(self, u: Tensor, ul: Tensor, skip: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        u = self.down(u, skip[0] if skip else None)
        return u, self.right(ul, torch.cat([u, skip[1]], 1) if skip else u)


class Resample(nn.Module):
    """Halves (a strided causal convolution) or doubles (four outputs a pixel, rearranged) both streams."""

    def __init__(self, filters: int, up: bool) -> None:
        super().__init__()
        self.up = up
        outputs, stride = (4 * filters, 1) if up else (filters, 2)
        self.down = Causal(filters, outputs, (2, 3), stride)
        self.right = Causal(filters, outputs, (2, 2), stride)

    def forward(self, u: Tensor, ul: Tensor) -> tuple[Tensor, Tensor]:
        u, ul = self.down(u), self.right(ul)
        return (F.pixel_shuffle(u, 2), F.pixel_shuffle(ul, 2)) if self.up else (u, ul)


class PixelCNNPP(DensityModel):
    """log P(x) = sum over pixels of the logistic mixture's log-probability given the pixels above and to the left.

    `residuals` gated pairs a scale, `filters` channels everywhere, `mixtures` components.
    """

    likelihood = Likelihood.EXACT

    def __init__(self, shape: tuple[int, int, int], residuals: int = 1, filters: int = 48, mixtures: int = 10) -> None:
        super().__init__(shape)
        channels, height, width = shape
        if height % 2 ** (SCALES - 1) or width % 2 ** (SCALES - 1):
            raise OodbenchError(
                f"pixelcnn++ works on {SCALES} scales and cannot take {height}x{width} images: sides must be divisible "
                f"by {2 ** (SCALES - 1)}."
            )
        self.mixtures = mixtures
        # One more input channel holds ones, so that the network can tell padding from black pixels.
        self.above = Causal(channels + 1, filters, (2, 3))
        self.above_right = Causal(channels + 1, filters, (1, 3))
        self.left = Causal(channels + 1, filters, (2, 1))
        self.encoder = nn.ModuleList(
            nn.ModuleList(Pair(filters, skip=False) for _ in range(residuals)) for _ in range(SCALES)
        )
        self.decoder = nn.ModuleList(
            nn.ModuleList(Pair(filters, skip=True) for _ in range(residuals + (scale > 0))) for scale in range(SCALES)
        )
        self.shrink = nn.ModuleList(Resample(filters, up=False) for _ in range(SCALES - 1))
        self.grow = nn.ModuleList(Resample(filters, up=True) for _ in range(SCALES - 1))
        self.head = logistic_mixture_head(filters, channels, mixtures)
        # The components' means are offsets from a linear prediction by the four neighbours, which starts as the average
        # of left and above: training begins where a simple predictor stands, and bfloat16 offsets lose no grey levels.
        self.predictor = nn.Parameter(torch.zeros(len(NEIGHBOURS), channels, channels))
        with torch.no_grad():
            self.predictor[:2] = 0.5 * torch.eye(channels)

    def parameters_of(self, x: Tensor) -> Tensor:
        """uint8 (B, C, H, W) -> mixture parameters (B, P, H, W) in float32, each of the pixels before it."""
        value = x.to(self.head.weight.dtype).contiguous(memory_format=torch.channels_last) / 127.5 - 1
        value = torch.cat([value, torch.ones_like(value[:, :1])], 1)
        u = _shift_down(self.above(value))
        ul = _shift_down(self.above_right(value)) + _shift_right(self.left(value))
        skips = [(u, ul)]
        for scale in range(SCALES):
            for pair in cast(nn.ModuleList, self.encoder[scale]):
                u, ul = pair(u, ul)
                skips.append((u, ul))
            if scale < SCALES - 1:
                u, ul = self.shrink[scale](u, ul)
                skips.append((u, ul))
        u, ul = skips.pop()
        for scale in range(SCALES):
            for pair in cast(nn.ModuleList, self.decoder[scale]):
                u, ul = pair(u, ul, skips.pop())
            if scale < SCALES - 1:
                u, ul = self.grow[scale](u, ul)
        out = self.head(F.relu(ul)).to(value.dtype)
        means = slice(self.mixtures, self.mixtures * (1 + self.shape[0]))
        predicted = self.predict(value[:, :-1]).repeat_interleave(self.mixtures, 1)
        return torch.cat([out[:, : means.start], out[:, means] + predicted, out[:, means.stop :]], 1)

    def predict(self, value: Tensor) -> Tensor:
        """The linear prediction (B, C, H, W) of each pixel from its four `NEIGHBOURS`."""
        height, width = value.shape[2:]
        padded = F.pad(value, (1, 1, 1, 0)).permute(0, 2, 3, 1)
        views = [padded[:, 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width] for dy, dx in NEIGHBOURS]
        return (torch.cat(views, -1) @ self.predictor.flatten(0, 1)).permute(0, 3, 1, 2)

    def log_prob(self, x: Tensor, noise: Noise) -> Tensor:
        """log P(x) in nats (B,); exact, the noise is not used."""
        return logistic_mixture_log_prob(x, self.parameters_of(x), self.mixtures)

    def sample(self, n: int, noise: Noise) -> Tensor:
        """uint8 (n, C, H, W), pixel by pixel: H W network passes."""

        def draw(x: Tensor, row: int, column: int) -> Tensor:
            here = self.parameters_of(x)[:, :, row : row + 1, column : column + 1]
            return sample_logistic_mixture(here, self.shape[0], self.mixtures, noise, f"pixel {row} {column}")

        return sample_pixelwise(self.shape, n, noise, draw)


def _shift_down(x: Tensor) -> Tensor:
    """Row i of the result is row i - 1 of x."""
    return F.pad(x, (0, 0, 1, 0))[:, :, :-1]


def _shift_right(x: Tensor) -> Tensor:
    """Column j of the result is column j - 1 of x."""
    return F.pad(x, (1, 0, 0, 0))[:, :, :, :-1]
