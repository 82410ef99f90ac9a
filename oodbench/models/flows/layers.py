"""The invertible layers of Glow. States are float (B, H, W, C): a 1x1 convolution is a matrix product there.

Each layer maps a state to (state, log|det| per image (B,)) and has the exact inverse.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oodbench.models.nn import Convolution, folded

__all__ = ["Coupling", "GaussianPrior", "Mixing", "squeeze", "unsqueeze"]


def squeeze(h: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, H/2, W/2, 4C): each 2x2 block becomes channels; volume-preserving."""
    b, height, width, c = h.shape
    # Channels first, or some of the channels only, are made dense at first: two simple copies beat an intricate one.
    h = h.contiguous().reshape(b, height // 2, 2, width // 2, 2, c).permute(0, 1, 3, 2, 4, 5)
    return h.reshape(b, height // 2, width // 2, 4 * c)


def unsqueeze(h: Tensor) -> Tensor:
    """The inverse of `squeeze`."""
    b, height, width, c = h.shape
    h = h.reshape(b, height, width, 2, 2, c // 4).permute(0, 1, 3, 2, 4, 5)
    return h.reshape(b, 2 * height, 2 * width, c // 4)


class Mixing(nn.Module):
    """Actnorm, then an invertible 1x1 convolution W = P L (U + diag(s)) (Kingma & Dhariwal 2018, Table 1).

    Both are one affine map y = W exp(a) (h + b) per pixel, so they run as one matrix product. The logarithm of the
    volume is H W (sum a + sum log|s|), the same for every image.
    """

    permutation: Tensor
    sign: Tensor

    def __init__(self, channels: int, generator: torch.Generator) -> None:
        super().__init__()
        rotation = torch.linalg.qr(torch.randn(channels, channels, generator=generator, dtype=torch.float64))[0]
        permutation, lower, upper = torch.linalg.lu(rotation)
        diagonal = upper.diagonal()
        self.register_buffer("permutation", permutation.float())
        self.register_buffer("sign", diagonal.sign().float())
        self.lower = nn.Parameter(lower.tril(-1).float())
        self.upper = nn.Parameter(upper.triu(1).float())
        self.log_diagonal = nn.Parameter(diagonal.abs().log().float())
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.shift = nn.Parameter(torch.zeros(channels))

    @torch.no_grad()
    def initialise(self, h: Tensor) -> None:
        """Actnorm's data-dependent start: every channel of this batch gets mean 0 and variance 1."""
        flat = h.reshape(-1, h.shape[-1])
        self.shift.copy_(-flat.mean(0))
        self.log_scale.copy_(-flat.std(0).clamp_min(1e-3).log())

    @folded
    def affine(self) -> tuple[Tensor, Tensor, Tensor]:
        """(matrix (C, C), bias (C,), log-volume per pixel ()) of the whole map."""
        identity = torch.eye(len(self.shift), dtype=self.shift.dtype, device=self.shift.device)
        lower = self.lower.tril(-1) + identity
        upper = self.upper.triu(1) + torch.diag(self.sign * self.log_diagonal.exp())
        matrix = self.permutation @ lower @ upper * self.log_scale.exp()
        matrix = matrix.t().contiguous().t()  # stored by columns: products with many short rows are faster then
        return matrix, matrix @ self.shift, (self.log_scale + self.log_diagonal).sum()

    @folded
    def inverse_affine(self) -> tuple[Tensor, Tensor]:
        """(matrix, bias) of the inverse map."""
        matrix, bias, _ = self.affine()
        inverse = torch.linalg.inv(matrix.double())
        return inverse.to(matrix.dtype), (-inverse @ bias.double()).to(matrix.dtype)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        matrix, bias, volume = self.affine()
        return F.linear(h, matrix, bias), volume * (h.shape[1] * h.shape[2])

    def inverse(self, z: Tensor) -> Tensor:
        matrix, bias = self.inverse_affine()
        return F.linear(z, matrix, bias)


class Coupling(nn.Module):
    """y2 = (x2 + t(x1)) s(x1) with s = sigmoid(a(x1) + 2), or y2 = x2 + t(x1) (constant volume) without `scaling`."""

    def __init__(self, channels: int, hidden: int, scaling: bool) -> None:
        super().__init__()
        self.kept = channels // 2
        self.scaling = scaling
        outputs = (channels - self.kept) * (2 if scaling else 1)
        self.first = Convolution(self.kept, hidden, (3, 3), (1, 1))
        self.second = Convolution(hidden, hidden)
        self.last = Convolution(hidden, outputs, (3, 3), (1, 1), zero=True)

    def network(self, x1: Tensor) -> tuple[Tensor, Tensor | None]:
        """(t, logit of s), each (B, H, W, C2) in the dtype of x1; the logit is None for constant volume."""
        x = x1.contiguous().permute(0, 3, 1, 2)  # some of the channels are cast slowly where they lie among others
        # In-place: the 128 hidden channels are where memory traffic counts. Autograd of relu needs only its output.
        hidden = self.second(self.first(x).relu_()).relu_()
        out = self.last(hidden).permute(0, 2, 3, 1).to(x1.dtype)
        if not self.scaling:
            return out, None
        shift, raw = out.chunk(2, -1)
        return shift, raw + 2.0

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        x1, x2 = h[..., : self.kept], h[..., self.kept :]
        shift, logit = self.network(x1)
        if logit is None:
            return torch.cat([x1, x2 + shift], -1), h.new_zeros(len(h))
        return torch.cat([x1, (x2 + shift) * logit.sigmoid()], -1), F.logsigmoid(logit).flatten(1).sum(1)

    def inverse(self, z: Tensor) -> Tensor:
        y1, y2 = z[..., : self.kept], z[..., self.kept :]
        shift, logit = self.network(y1)
        if logit is not None:
            y2 = y2 * (-F.logsigmoid(logit)).exp()
        return torch.cat([y1, y2 - shift], -1)


class GaussianPrior(nn.Module):
    """The density of factored-out channels: N(z; m, exp(v)^2), m and v given by the kept half, or learned constants.

    Standardising z belongs to the volume, so that the base distribution of the whole flow is N(0, I). Without `scaling`
    v is a constant of each position and channel, so that the volume is the same for every image and an empty margin
    still costs few nats: no additive coupling can do that, whereas a scaling one sees the margin and shrinks.
    """

    def __init__(self, kept: int, shape: tuple[int, int, int], scaling: bool) -> None:
        super().__init__()
        self.channels = shape[-1]
        self.scaling = scaling
        constants = shape[-1:] if scaling else shape
        self.mean = nn.Parameter(torch.zeros(constants))
        self.log_std = nn.Parameter(torch.zeros(constants))
        outputs = self.channels * (2 if scaling else 1)
        self.condition = Convolution(kept, outputs, (3, 3), (1, 1), zero=True) if kept else None

    @torch.no_grad()
    def initialise(self, z: Tensor) -> None:
        """Constants of a position start at the moments of this batch, as Actnorm does: tiny scales are far from 1."""
        if not self.scaling:
            self.mean.copy_(z.mean(0))
            self.log_std.copy_(z.std(0).clamp_min(1e-3).log())

    def moments(self, kept: Tensor | None) -> tuple[Tensor, Tensor]:
        """(m, v), broadcastable to (B, H, W, channels)."""
        if self.condition is None or kept is None:
            return self.mean, self.log_std
        out = self.condition(kept.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).to(kept.dtype)
        mean, log_std = out.split(self.channels, -1) if self.scaling else (out, 0.0)
        return self.mean + mean, self.log_std + log_std

    def forward(self, z: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor]:
        """(e (B, H, W, C) standardised, log|det de/dz| (B,))."""
        mean, log_std = self.moments(kept)
        return (z - mean) * (-log_std).exp(), -log_std.expand_as(z).sum((1, 2, 3))

    def inverse(self, e: Tensor, kept: Tensor | None) -> Tensor:
        mean, log_std = self.moments(kept)
        return mean + e * log_std.exp()


def standard_normal(squared_norm: Tensor, dimensions: int) -> Tensor:
    """log N(e; 0, I) in nats of vectors with these squared norms."""
    return -0.5 * squared_norm - 0.5 * dimensions * math.log(2 * math.pi)
