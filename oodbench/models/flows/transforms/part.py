"""Rearranging a vector, and transforming only its first coordinates."""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from oodbench.models.base import Likelihood
from oodbench.models.flows.transforms.base import Transform, require
from oodbench.models.noise import Noise

__all__ = ["Arrange", "Part", "Swap"]


class Arrange(Transform):
    """y_i = h_order(i): a fixed permutation of the last axis."""

    order: Tensor
    back: Tensor

    def __init__(self, order: Tensor) -> None:
        super().__init__()
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("back", order.argsort(), persistent=False)

    def forward(self, h: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        return h[..., self.order], h.new_zeros(())

    def inverse(self, y: Tensor, noise: Noise) -> Tensor:
        return y[..., self.back]


class Swap(Transform):
    """The first `first` coordinates go behind the others."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.first = first

    def forward(self, h: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        return h.roll(-self.first, -1), h.new_zeros(())

    def inverse(self, y: Tensor, noise: Noise) -> Tensor:
        return y.roll(self.first, -1)


class Part(Transform):
    """Layers for the first `size` coordinates; the others stay as they are. The layers keep the shape."""

    def __init__(self, size: int, layers: Iterable[Transform]) -> None:
        super().__init__()
        self.size = size
        self.layers = nn.ModuleList(layers)
        exact = all(layer.volume is Likelihood.EXACT and layer.bijective for layer in self._layers())
        require(exact, "A part of a vector takes exact bijections only: choose another flow for it.")

    def forward(self, h: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        part, volume = h[..., : self.size], h.new_zeros(())
        for layer in self._layers():
            part, change = layer(part, noise)
            volume = volume + change
        return torch.cat([part, h[..., self.size :]], -1), volume

    def inverse(self, y: Tensor, noise: Noise) -> Tensor:
        part = y[..., : self.size]
        for layer in reversed(self._layers()):
            part = layer.inverse(part, noise)
        return torch.cat([part, y[..., self.size :]], -1)

    @torch.no_grad()
    def initialise(self, h: Tensor) -> None:
        """Each layer starts from what those before it give; such layers must not need noise."""
        part = h[..., : self.size]
        nothing = Noise.of(torch.zeros(len(h), dtype=torch.int64, device=h.device))
        for layer in self._layers():
            layer.initialise(part)
            part = layer(part, nothing)[0]

    def _layers(self) -> list[Transform]:
        return cast("list[Transform]", list(self.layers))
