"""Squeezing (Dinh et al. 2017, Section 3.6): places become channels."""

import torch
from torch import Tensor

from oodbench.models.flows.transforms.base import Shape, Transform, require
from oodbench.models.noise import Noise

__all__ = ["Flatten", "Squeeze", "check_halving"]


class Squeeze(Transform):
    """(B, H, W, C) -> (B, H/2, W/2, 4C): each 2x2 block becomes channels; volume-preserving."""

    def forward(self, h: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        b, height, width, c = h.shape
        # Channels first, or only some of the channels, are made dense before: two simple copies beat an intricate one.
        blocks = h.contiguous().reshape(b, height // 2, 2, width // 2, 2, c).permute(0, 1, 3, 2, 4, 5)
        return blocks.reshape(b, height // 2, width // 2, 4 * c), h.new_zeros(())

    def inverse(self, y: Tensor, noise: Noise) -> Tensor:
        b, height, width, c = y.shape
        blocks = y.reshape(b, height, width, 2, 2, c // 4).permute(0, 1, 3, 2, 4, 5)
        return blocks.reshape(b, 2 * height, 2 * width, c // 4)

    def shape_after(self, shape: Shape) -> Shape:
        height, width, channels = shape
        require(height % 2 == 0 and width % 2 == 0, f"{height}x{width} cannot be halved: use even sides.")
        return height // 2, width // 2, 4 * channels


def check_halving(shape: tuple[int, int, int], levels: int, steps: int = 1) -> None:
    """`OodbenchError` unless images (C, H, W) can be squeezed `levels` times, with `steps` each, at least once."""
    _, height, width = shape
    require(levels >= 1, f"A flow needs at least one level, not {levels}.")
    require(steps >= 1, f"A flow's level needs at least one step, not {steps}.")
    require(
        levels <= height.bit_length() and height % 2**levels == 0 and width % 2**levels == 0,
        f"A flow of {levels} levels halves the image {levels} times and cannot take {height}x{width}: "
        f"use fewer levels or images with sides divisible by 2^{levels}.",
    )


class Flatten(Transform):
    """(B, H, W, C) -> (B, H W C), for flows on vectors."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, h: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        return h.flatten(1), h.new_zeros(())

    def inverse(self, y: Tensor, noise: Noise) -> Tensor:
        return y.reshape(len(y), *self.shape)

    def shape_after(self, shape: Shape) -> Shape:
        return (torch.Size(shape).numel(),)
