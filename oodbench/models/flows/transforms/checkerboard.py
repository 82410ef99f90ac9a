"""Checkerboard halves (Dinh et al. 2017, Section 3.4), gathered so that couplings never touch the other half."""

import torch
from torch import Tensor

from oodbench.models.flows.transforms.permutation import Permutation
from oodbench.models.flows.transforms.squeeze import Squeeze
from oodbench.models.noise import Noise

__all__ = ["Checkerboard"]


class Checkerboard(Squeeze):
    """(B, H, W, C) -> (B, H/2, W/2, 4C): of each 2x2 block first the two black pixels, then the two white ones.

    A coupling of these two halves of the channels is one with a checkerboard mask whose network sees 2x2 blocks.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        blocks = torch.arange(4 * channels).reshape(4, channels)
        self.colours = Permutation(blocks[[0, 3, 1, 2]].flatten())

    def forward(self, h: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        y: Tensor = self.colours(super().forward(h, noise)[0], noise)[0]
        return y, h.new_zeros(())

    def inverse(self, y: Tensor, noise: Noise) -> Tensor:
        return super().inverse(self.colours.inverse(y, noise), noise)
