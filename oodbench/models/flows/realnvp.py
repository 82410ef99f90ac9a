"""RealNVP (Dinh et al. 2017)."""

from collections.abc import Iterator

import torch

from oodbench.models.flows.flow import ImageFlow
from oodbench.models.flows.networks import ResidualConvolutionNetwork
from oodbench.models.flows.transforms.base import Shape, Transform, require
from oodbench.models.flows.transforms.checkerboard import Checkerboard
from oodbench.models.flows.transforms.coupling import Coupling
from oodbench.models.flows.transforms.elementwise import Affine
from oodbench.models.flows.transforms.logit import Logit
from oodbench.models.flows.transforms.permutation import Permutation, swap_halves
from oodbench.models.flows.transforms.prior import FactorOut, Standardise
from oodbench.models.flows.transforms.squeeze import check_halving

__all__ = ["RealNVP"]


class RealNVP(ImageFlow):
    """`levels` scales of `steps` checkerboard and then `steps` channel couplings, each followed by a learned scaling.

    Affine maps with bounded scales. The couplings are those of Figure 3 of the paper; the scaling stands for its batch
    normalisation. Networks of checkerboard couplings see blocks of 2x2 pixels.
    """

    def __init__(
        self, shape: tuple[int, int, int], levels: int = 3, steps: int = 3, hidden: int = 64, blocks: int = 2
    ) -> None:
        super().__init__(shape, self.layers(shape, levels, steps, hidden, blocks))

    def layers(
        self, shape: tuple[int, int, int], levels: int, steps: int, hidden: int, blocks: int
    ) -> Iterator[Transform | FactorOut]:
        """The layers from image to base."""
        check_halving(shape, levels)
        require(steps >= 2, f"With {steps} coupling some pixels are never changed: use at least 2 steps.")
        affine = Affine(bound=1.0)
        state: Shape = shape[1], shape[2], shape[0]
        yield Logit()
        for level in range(levels):
            yield (colours := Checkerboard(state[-1]))
            state = colours.shape_after(state)
            channels = state[-1]
            for masks in ("checkerboard", "channels"):
                if masks == "channels":  # halves that are the upper and the lower rows of the blocks
                    yield Permutation(torch.arange(channels).reshape(4, -1)[[0, 2, 1, 3]].flatten())
                for _ in range(steps):
                    kept = channels // 2
                    yield Standardise((channels,), measured=True)
                    yield Coupling(kept, ResidualConvolutionNetwork(kept, hidden, 2 * kept, blocks), affine)
                    yield swap_halves(channels)
            if level < levels - 1:
                yield (out := FactorOut(state, scaling=True))
                state = out.shape_after(state)
        yield Standardise(state[-1:])
