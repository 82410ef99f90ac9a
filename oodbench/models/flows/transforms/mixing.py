"""Actnorm and the invertible 1x1 convolution (Kingma & Dhariwal 2018), as one matrix product."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oodbench.models.flows.transforms.base import Transform, positions, require_inverse
from oodbench.models.nn import folded
from oodbench.models.noise import Noise

__all__ = ["Mixing"]


class Mixing(Transform):
    """Actnorm, then an invertible 1x1 convolution W = P L (U + diag(s)) (Kingma & Dhariwal 2018, Table 1).

    Both are one affine map y = W exp(a) (h + b) per pixel, so they run as one matrix product. The logarithm of the
    volume is H W (sum a + sum log|s|), the same for every image. On vectors it is one invertible linear map.
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
        inverse = torch.linalg.inv_ex(matrix.double())[0]  # a singular one is found out below
        return inverse.to(matrix.dtype), (-inverse @ bias.double()).to(matrix.dtype)

    def forward(self, h: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        matrix, bias, volume = self.affine()
        return F.linear(h, matrix, bias), volume * positions(h)

    def inverse(self, y: Tensor, noise: Noise) -> Tensor:
        matrix, bias = self.inverse_affine()
        h = F.linear(y, matrix, bias)
        require_inverse(
            self(h, noise)[0],
            y,
            "a 1x1 convolution",
            "its matrix is all but singular; train with a lower learning rate",
        )
        return h
