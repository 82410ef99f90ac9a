"""Conformal maps of vectors: J'J = lambda^2 I, angles stay and lengths change alike in all directions."""

import torch
from torch import Tensor, nn

from oodbench.models.base import Likelihood
from oodbench.models.flows.transforms.base import Shape, Transform, require
from oodbench.models.noise import Noise

__all__ = ["Projection", "Similarity", "SpecialConformal"]


class Similarity(Transform):
    """y = exp(a) (h - m), one a for all dimensions: log|det| = n a.

    `shape` is that of m; m starts at the first batch's mean; with `scaling`
    exp(a) starts at the inverse of its root mean square, without a is 0.
    """

    def __init__(self, shape: Shape, scaling: bool = True) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(shape))
        self.log_scale = nn.Parameter(torch.zeros(())) if scaling else None

    @torch.no_grad()
    def initialise(self, h: Tensor) -> None:
        self.mean.copy_(h.mean(0))
        if self.log_scale is not None:
            self.log_scale.copy_(-(h - self.mean).square().mean().sqrt().clamp_min(1e-3).log())

    def forward(self, h: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        if self.log_scale is None:
            return h - self.mean, h.new_zeros(())
        return (h - self.mean) * self.log_scale.exp(), self.log_scale * self.mean.numel()

    def inverse(self, y: Tensor, noise: Noise) -> Tensor:
        return self.mean + (y if self.log_scale is None else y * (-self.log_scale).exp())


class SpecialConformal(Transform):
    """y = (h - |h|^2 b) / s, s = 1 - 2 b'h + |b|^2 |h|^2, on vectors: an inversion, a shift by -b and an inversion.

    J'J = s^-2 I, so log|det| = -n log s (Ross & Cresswell 2021, Section 4.1). s vanishes at the single point b / |b|^2
    only; with b = 0 at the start, training begins at the identity.
    """

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(dimensions))

    def forward(self, h: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        y, scale = _special_conformal(h, self.shift)
        return y, -h.shape[-1] * scale.log()

    def inverse(self, y: Tensor, noise: Noise) -> Tensor:
        return _special_conformal(y, -self.shift)[0]


class Projection(Transform):
    """y = the first `kept` coordinates: the right inverse pads with zeros and embeds isometrically, J'J = I.

    What is left out has no density: a flow with this layer is one on a manifold.
    """

    volume = Likelihood.MANIFOLD
    bijective = False

    def __init__(self, dimensions: int, kept: int) -> None:
        super().__init__()
        require(1 <= kept <= dimensions, f"Of {dimensions} dimensions {kept} cannot be kept: use fewer.")
        self.kept, self.left = kept, dimensions - kept

    def forward(self, h: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        return h[..., : self.kept], h.new_zeros(())

    def inverse(self, y: Tensor, noise: Noise) -> Tensor:
        return nn.functional.pad(y, (0, self.left))

    def shape_after(self, shape: Shape) -> Shape:
        return *shape[:-1], self.kept


def _special_conformal(h: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """(y (B, n), s (B,))."""
    squared = h.square().sum(-1, True)
    scale = 1 - 2 * (h @ b)[..., None] + b.square().sum() * squared
    return (h - squared * b) / scale, scale[..., 0]
