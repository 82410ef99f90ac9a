"""A layer turned round: what inverse autoregressive flows are made of (Kingma et al. 2016)."""

from torch import Tensor

from oodbench.models.flows.transforms.base import Transform, require
from oodbench.models.noise import Noise

__all__ = ["Inverse"]


class Inverse(Transform):
    """y = f^-1(h) for a bijection f that keeps the shape; the volume is -log|det df/dy|."""

    def __init__(self, layer: Transform) -> None:
        super().__init__()
        require(layer.bijective, f"{type(layer).__name__} is no bijection and cannot be inverted: use another layer.")
        self.layer = layer

    def forward(self, h: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        y = self.layer.inverse(h, noise)
        return y, -self.layer(y, noise)[1]

    def inverse(self, y: Tensor, noise: Noise) -> Tensor:
        h: Tensor = self.layer(y, noise)[0]
        return h
