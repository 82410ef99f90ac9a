"""A layer turned round: what inverse autoregressive flows are made of (Kingma et al. 2016)."""

from torch import Tensor

from oodbench.models.flows.transforms.base import Shape, Transform, require, require_inverse
from oodbench.models.noise import Noise

__all__ = ["Inverse"]


class Inverse(Transform):
    """y = f^-1(h) for a bijection f that keeps the shape; the volume is -log|det df/dy|, as exact or not as f's.

    An inverse that misses is an `OodbenchError`, never a silent density of another place.
    """

    def __init__(self, layer: Transform) -> None:
        super().__init__()
        require(layer.bijective, f"{type(layer).__name__} is no bijection and cannot be inverted: use another layer.")
        self.layer, self.volume = layer, layer.volume

    def forward(self, h: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        y = self.layer.inverse(h, noise)
        back, volume = self.layer(y, noise)
        require_inverse(back, h, "a layer", "rounding grows from number to number; train with a lower learning rate")
        return y, -volume

    def inverse(self, y: Tensor, noise: Noise) -> Tensor:
        h: Tensor = self.layer(y, noise)[0]
        return h

    def shape_after(self, shape: Shape) -> Shape:
        return self.layer.shape_after(shape)
