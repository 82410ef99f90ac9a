"""Transforming only the first coordinates of a vector."""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from oodbench.models.base import Likelihood
from oodbench.models.flows.transforms.base import Transform, require
from oodbench.models.noise import Noise

__all__ = ["Part"]


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
