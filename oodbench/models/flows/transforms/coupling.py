"""Coupling (Dinh et al. 2015): one half of the channels steers an elementwise map of the other."""

import torch
from torch import Tensor, nn

from oodbench.models.flows.transforms.base import Transform
from oodbench.models.flows.transforms.elementwise import Elementwise
from oodbench.models.noise import Noise

__all__ = ["Coupling"]


class Coupling(Transform):
    """y1 = x1, y2 = f(x2; network(x1)): the volume is that of the elementwise map f.

    `network` takes (B, ..., kept) to the numbers (B, ..., parameters * (C - kept)) that steer f.
    """

    def __init__(self, kept: int, network: nn.Module, element: Elementwise) -> None:
        super().__init__()
        self.kept = kept
        self.network = network
        self.element = element

    def forward(self, h: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        x1, x2 = h[..., : self.kept], h[..., self.kept :]
        y2, volume = self.element.forward(x2, self.network(x1))
        return torch.cat([x1, y2], -1), volume

    def inverse(self, y: Tensor, noise: Noise) -> Tensor:
        y1, y2 = y[..., : self.kept], y[..., self.kept :]
        return torch.cat([y1, self.element.inverse(y2, self.network(y1))], -1)
