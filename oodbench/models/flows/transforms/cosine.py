"""The cosine transform of images: a fixed rotation that takes most of the correlation between pixels away."""

import math

import torch
from torch import Tensor

from oodbench.models.flows.transforms.base import Shape, Transform, require
from oodbench.models.flows.transforms.rotation import orthogonal
from oodbench.models.nn import folded
from oodbench.models.noise import Noise

__all__ = ["Cosine"]


class Cosine(Transform):
    """The orthonormal DCT-II over rows, columns and channels of states (B, H, W, C); norms and volumes stay.

    y[k] = sqrt((2 - [k = 0]) / n) sum_j h[j] cos(pi (j + 1/2) k / n) along an axis of length n (Ahmed et al. 1974,
    doi:10.1109/T-C.1974.223784), close to the principal components of stationary images. Over three channels these are
    brightness, red against blue, and green against both (Ohta et al. 1980, doi:10.1016/0146-664X(80)90047-7). So what
    standardises its coefficients one by one whitens images, at no cost in weights.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        require(len(shape) == 3, f"A cosine transform is of images (H, W, C), not of states {tuple(shape)}.")
        self.shape = tuple(shape)
        for axis, size in enumerate(shape):
            self.register_buffer(f"cosines{axis}", _cosines(size).float(), persistent=False)

    @folded
    def matrices(self) -> list[Tensor]:
        """(H, H), (W, W) and (C, C)."""
        return [orthogonal(self.get_buffer(f"cosines{axis}")) for axis in range(3)]

    def forward(self, h: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        return _along_all(h, self.matrices()), h.new_zeros(())

    def inverse(self, y: Tensor, noise: Noise) -> Tensor:
        return _along_all(y, [matrix.T for matrix in self.matrices()])

    def shape_after(self, shape: Shape) -> Shape:
        require(tuple(shape) == self.shape, f"A cosine transform of images {self.shape} cannot take {tuple(shape)}.")
        return shape


def _cosines(n: int) -> Tensor:
    """(n, n) in float64: a row a frequency."""
    frequencies, places = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
    matrix = (math.pi / n * (places + 0.5) * frequencies).cos() * math.sqrt(2 / n)
    matrix[0] /= math.sqrt(2)
    return matrix


def _along_all(h: Tensor, matrices: list[Tensor]) -> Tensor:
    rows, columns, channels = matrices
    b, height, width, c = h.shape
    h = columns @ (h @ channels.T)
    return (rows @ h.reshape(b, height, width * c)).reshape(b, height, width, c)
