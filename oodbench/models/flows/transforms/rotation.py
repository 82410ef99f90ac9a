"""A fixed rotation of the channels, between couplings that learn."""

import torch
import torch.nn.functional as F
from torch import Tensor

from oodbench.models.flows.transforms.base import Transform
from oodbench.models.nn import folded
from oodbench.models.noise import Noise

__all__ = ["Rotation", "orthogonal"]


class Rotation(Transform):
    """y = Q h at every place, with a random orthogonal Q that is never trained: norms and volumes stay."""

    matrix: Tensor

    def __init__(self, channels: int, generator: torch.Generator) -> None:
        super().__init__()
        gaussian = torch.randn(channels, channels, generator=generator, dtype=torch.float64)
        self.register_buffer("matrix", torch.linalg.qr(gaussian)[0].float())

    @folded
    def rotation(self) -> Tensor:
        """Q (C, C)."""
        return orthogonal(self.matrix)

    def forward(self, h: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        return F.linear(h, self.rotation()), h.new_zeros(())

    def inverse(self, y: Tensor, noise: Noise) -> Tensor:
        return F.linear(y, self.rotation().T)


def orthogonal(matrix: Tensor) -> Tensor:
    """A stored matrix (n, n) after a Newton step to the orthogonality that rounding to float32 took from it."""
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    return matrix @ (1.5 * identity - 0.5 * matrix.T @ matrix)
