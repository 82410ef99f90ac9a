"""Masked autoregressive layers (Germain et al. 2015, Papamakarios et al. 2017)."""

import torch
from torch import Tensor

from oodbench.models.flows.networks import MLP
from oodbench.models.flows.transforms.base import Shape, Transform, require
from oodbench.models.flows.transforms.elementwise import Elementwise
from oodbench.models.noise import Noise

__all__ = ["Autoregressive"]


class Autoregressive(Transform):
    """y_i = f(x_i; theta_i(x_1 ... x_{i-1})) on vectors (B, d), theta by one masked network (MADE).

    The Jacobian is triangular, so the volume is that of the elementwise map f. Forward takes one pass of the network,
    the inverse d passes, one number after another.
    """

    def __init__(self, dimensions: int, hidden: int, blocks: int, element: Elementwise) -> None:
        super().__init__()
        require(
            dimensions >= 1 and hidden >= 1, f"{dimensions} numbers and {hidden} hidden units: use at least 1 of each."
        )
        self.dimensions = dimensions
        self.element = element
        place = torch.arange(dimensions)
        # Hidden units of rank r see the first r + 1 numbers; sorted, so that masked weights lie in blocks.
        within = torch.arange(hidden) * max(1, dimensions - 1) // hidden
        out = (place - 1).repeat(element.parameters)
        self.network = MLP(dimensions, hidden, len(out), blocks, (place, within, out))

    def forward(self, h: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        return self.element.forward(h, self.network(h))

    def inverse(self, y: Tensor, noise: Noise) -> Tensor:
        x = y[:, :0]
        for i in range(self.dimensions):
            theta = self.network(torch.cat([x, torch.zeros_like(y[:, i:])], 1))
            x = torch.cat([x, self.element.inverse(y[:, i : i + 1], theta[:, i :: self.dimensions])], 1)
        return x

    def shape_after(self, shape: Shape) -> Shape:
        require(
            shape == (self.dimensions,), f"An autoregressive layer on {self.dimensions} numbers cannot take {shape}."
        )
        return shape
