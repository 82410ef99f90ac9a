"""Learned Gaussians as layers: factoring channels out (Dinh et al. 2017, Section 3.6), and the last standardisation."""

import torch
from torch import Tensor, nn

from oodbench.models.base import Likelihood
from oodbench.models.flows.transforms.base import Shape, Transform, require
from oodbench.models.nn import Convolution
from oodbench.models.noise import Noise

__all__ = ["FactorOut", "Standardise"]


class Standardise(Transform):
    """e = (z - m) exp(-v): a density N(m, exp(v)^2) of z whose scale counts as volume, so that the base is N(0, I).

    `constants` is the shape of m and v: (C,), or that of the whole state, which copes with places of very different
    spread, such as an empty margin. With `measured` they start at the first batch's moments, no scale below the share
    `floor` of the root mean square one: what is constant in one batch need not be so in all images.
    """

    def __init__(self, constants: Shape, measured: bool = False, floor: float = 0.0) -> None:
        super().__init__()
        self.floor = floor
        self.measured = measured
        self.mean = nn.Parameter(torch.zeros(constants))
        self.log_std = nn.Parameter(torch.zeros(constants))

    @torch.no_grad()
    def initialise(self, h: Tensor) -> None:
        if self.measured:
            rows = h.reshape(-1, *self.mean.shape)
            self.mean.copy_(rows.mean(0))
            std = rows.std(0)
            least = self.floor * float(std.square().mean().sqrt())
            self.log_std.copy_(std.clamp_min(max(1e-3, least)).log())

    def forward(self, h: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        return (h - self.mean) * (-self.log_std).exp(), -self.log_std.expand_as(h[:1]).sum()

    def inverse(self, y: Tensor, noise: Noise) -> Tensor:
        return self.mean + y * self.log_std.exp()


class FactorOut(nn.Module):
    """The last half of the channels leaves, standardised by a Gaussian that a convolution of the kept half gives.

    With `scaling` the convolution gives mean and scale. Without, only the mean: the scales are then constants of every
    position and channel, the volume is the same for every image, and an empty margin still costs few nats, which no
    additive coupling could do.
    """

    volume = Likelihood.EXACT  # declared as of every `Transform`, which it is not: it gives two things
    bijective = inverts = True

    def __init__(self, shape: Shape, scaling: bool) -> None:
        super().__init__()
        *places, channels = shape
        self.kept = channels // 2
        self.gone = (*places, channels - self.kept)
        self.scaling = scaling
        self.constants = Standardise(self.gone[-1:] if scaling else self.gone, measured=not scaling)
        outputs = self.gone[-1] * (2 if scaling else 1)
        self.condition = Convolution(self.kept, outputs, (3, 3), (1, 1), zero=True)

    def split(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(kept (B, H, W, kept), standardised latents (B, H, W, gone), log-volume (B,) or ())."""
        kept, z = h[..., : self.kept], h[..., self.kept :]
        mean, log_std = self.moments(kept)
        if self.scaling:
            return kept, (z - mean) * (-log_std).exp(), -log_std.flatten(1).sum(1)
        return kept, (z - mean) * (-log_std).exp(), -log_std.sum()

    def merge(self, kept: Tensor, e: Tensor) -> Tensor:
        """The inverse of `split`."""
        mean, log_std = self.moments(kept)
        return torch.cat([kept, mean + e * log_std.exp()], -1)

    def moments(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-scale of what left, each (B, H, W, gone); the latter (H, W, gone) without `scaling`."""
        out = self.condition(kept.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).to(kept.dtype)
        mean, log_std = out.chunk(2, -1) if self.scaling else (out, torch.zeros_like(self.constants.log_std))
        return self.constants.mean + mean, self.constants.log_std + log_std

    @torch.no_grad()
    def initialise(self, h: Tensor) -> None:
        self.constants.initialise(h[..., self.kept :])

    def shape_after(self, shape: Shape) -> Shape:
        require(shape[-1] >= 2, f"Half of {shape[-1]} channels cannot leave: use fewer levels.")
        return *shape[:-1], self.kept
