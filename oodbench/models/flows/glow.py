"""Glow (Kingma & Dhariwal 2018) and its constant-volume variant (Nalisnick et al. 2019)."""

from collections.abc import Iterator

import torch

from oodbench.models.flows.flow import ImageFlow
from oodbench.models.flows.networks import ConvolutionNetwork
from oodbench.models.flows.transforms.base import Shape, Transform
from oodbench.models.flows.transforms.coupling import Coupling
from oodbench.models.flows.transforms.elementwise import Additive, Sigmoid
from oodbench.models.flows.transforms.mixing import Mixing
from oodbench.models.flows.transforms.prior import FactorOut, Standardise
from oodbench.models.flows.transforms.squeeze import Squeeze, check_halving

__all__ = ["ConstantVolumeGlow", "Glow"]


class Glow(ImageFlow):
    """`levels` scales of `steps` steps (Actnorm, 1x1 convolution, affine coupling) with `hidden` channels."""

    scaling = True

    def __init__(self, shape: tuple[int, int, int], levels: int = 3, steps: int = 8, hidden: int = 128) -> None:
        super().__init__(shape, self.layers(shape, levels, steps, hidden))

    def layers(
        self, shape: tuple[int, int, int], levels: int, steps: int, hidden: int
    ) -> Iterator[Transform | FactorOut]:
        """The layers from image to base."""
        check_halving(shape, levels, steps)
        generator = torch.Generator().manual_seed(0)
        element = Sigmoid() if self.scaling else Additive()
        state: Shape = shape[1], shape[2], shape[0]
        for level in range(levels):
            yield (squeeze := Squeeze())
            state = squeeze.shape_after(state)
            channels = state[-1]
            for _ in range(steps):
                yield from self.mixing(channels, generator)
                kept = channels // 2
                yield Coupling(kept, ConvolutionNetwork(kept, hidden, element.parameters * (channels - kept)), element)
            if level < levels - 1:
                yield (out := FactorOut(state, self.scaling))
                state = out.shape_after(state)
        yield Standardise(state[-1:] if self.scaling else state, measured=not self.scaling)

    def mixing(self, channels: int, generator: torch.Generator) -> Iterator[Transform]:
        """What makes a step's coupling see other channels than the one before."""
        yield Mixing(channels, generator)


class ConstantVolumeGlow(Glow):
    """Glow with additive couplings and constant prior scales: log|det| is constant, so log p(z) alone ranks images.

    A scale of its own for every position and channel keeps the volume constant and copes with the empty margins of
    padded images, which scales per channel cannot.
    """

    scaling = False
