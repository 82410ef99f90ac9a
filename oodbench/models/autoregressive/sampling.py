"""Sampling one pixel after the other, in raster order."""

from collections.abc import Callable

import torch
from torch import Tensor

from oodbench.models.noise import Noise

__all__ = ["sample_pixelwise"]


def sample_pixelwise(
    shape: tuple[int, int, int], n: int, noise: Noise, draw: Callable[[Tensor, int, int], Tensor]
) -> Tensor:
    """uint8 (n, C, H, W); `draw(x, row, column)` gives the pixel (n, C, 1, 1) from the pixels of x before it."""
    x = torch.zeros(n, *shape, dtype=torch.uint8, device=noise.index.device)
    for row in range(shape[1]):
        for column in range(shape[2]):
            x[:, :, row : row + 1, column : column + 1] = draw(x, row, column)
    return x
