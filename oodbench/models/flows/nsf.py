"""Neural spline flows (Durkan et al. 2019): coupling and autoregressive."""

from collections.abc import Iterator

import torch

from oodbench.models.flows.flow import ImageFlow, VectorFlow
from oodbench.models.flows.networks import ResidualConvolutionNetwork
from oodbench.models.flows.transforms.autoregressive import Autoregressive
from oodbench.models.flows.transforms.base import Shape, Transform, require
from oodbench.models.flows.transforms.coupling import Coupling
from oodbench.models.flows.transforms.mixing import Mixing
from oodbench.models.flows.transforms.permutation import reverse
from oodbench.models.flows.transforms.prior import FactorOut, Standardise
from oodbench.models.flows.transforms.spline import RationalQuadratic
from oodbench.models.flows.transforms.squeeze import Squeeze, check_halving

__all__ = ["NSF", "AutoregressiveNSF"]


class NSF(ImageFlow):
    """`levels` scales of `steps` steps (Actnorm, 1x1 convolution, spline coupling by a residual network)."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        levels: int = 3,
        steps: int = 7,
        hidden: int = 96,
        blocks: int = 3,
        bins: int = 4,
        bound: float = 3.0,
    ) -> None:
        spline = RationalQuadratic(bins, bound)
        super().__init__(shape, self.layers(shape, levels, steps, hidden, blocks, spline))

    def layers(
        self, shape: tuple[int, int, int], levels: int, steps: int, hidden: int, blocks: int, spline: RationalQuadratic
    ) -> Iterator[Transform | FactorOut]:
        """The layers from image to base."""
        check_halving(shape, levels, steps)
        generator = torch.Generator().manual_seed(0)
        state: Shape = shape[1], shape[2], shape[0]
        for level in range(levels):
            yield (squeeze := Squeeze())
            state = squeeze.shape_after(state)
            channels = state[-1]
            kept = channels // 2
            outputs = spline.parameters * (channels - kept)
            for _ in range(steps):
                yield Mixing(channels, generator)
                yield Coupling(kept, ResidualConvolutionNetwork(kept, hidden, outputs, blocks), spline)
            if level < levels - 1:
                yield (out := FactorOut(state, scaling=True))
                state = out.shape_after(state)
        yield Standardise(state[-1:])


class AutoregressiveNSF(VectorFlow):
    """`layers` of MADE with splines, the order of the numbers reversed between them; samples take d passes a layer."""

    @classmethod
    def layers_on(
        cls,
        dimensions: int,
        layers: int = 5,
        hidden: int = 512,
        blocks: int = 1,
        bins: int = 8,
        bound: float = 3.0,
        reach: int = 0,
    ) -> Iterator[Transform]:
        require(layers >= 1, f"An autoregressive flow needs at least one layer, not {layers}.")
        yield Standardise((dimensions,), measured=True, floor=0.1)
        for layer in range(layers):
            yield Autoregressive(dimensions, hidden, blocks, RationalQuadratic(bins, bound), reach)
            if layer < layers - 1:
                yield reverse(dimensions)
        yield Standardise((dimensions,))
