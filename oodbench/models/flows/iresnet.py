"""Invertible residual networks (Behrmann et al. 2019) and residual flows (Chen et al. 2019)."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from oodbench.models.flows.flow import ImageFlow
from oodbench.models.flows.transforms.base import Shape, Transform, require
from oodbench.models.flows.transforms.mixing import Mixing
from oodbench.models.flows.transforms.prior import FactorOut, Standardise
from oodbench.models.flows.transforms.residual import Residual, Trace
from oodbench.models.flows.transforms.squeeze import Squeeze, check_halving

__all__ = ["IResNet"]


class IResNet(ImageFlow):
    """`levels` scales of `blocks` residual blocks with `hidden` channels, an affine map of the channels before each.

    An estimate of log P, biased with `trace="series"`, without bias with "roulette"; "exact" is a lower bound like any
    other flow's, for small images. Tables say which. See `Residual` for `coefficient` and `terms`.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        levels: int = 2,
        blocks: int = 8,
        hidden: int = 64,
        coefficient: float = 0.9,
        trace: Trace = "series",
        terms: int = 5,
    ) -> None:
        residual = partial(Residual, hidden=hidden, coefficient=coefficient, trace=trace, terms=terms)
        super().__init__(shape, self.layers(shape, levels, blocks, residual))
        self.remark = {"series": f"biased: {terms} terms", "roulette": "unbiased", "exact": ""}[trace]

    def layers(
        self, shape: tuple[int, int, int], levels: int, blocks: int, residual: Callable[..., Residual]
    ) -> Iterator[Transform | FactorOut]:
        """The layers from image to base."""
        check_halving(shape, levels)
        require(blocks >= 1, f"A level of a residual flow needs at least one block, not {blocks}.")
        generator = torch.Generator().manual_seed(0)
        state: Shape = shape[1], shape[2], shape[0]
        for level in range(levels):
            yield (squeeze := Squeeze())
            state = squeeze.shape_after(state)
            for block in range(blocks):
                yield Mixing(state[-1], generator)
                yield residual(state, name=f"block {level}.{block}")
            if level < levels - 1:
                yield (out := FactorOut(state, scaling=True))
                state = out.shape_after(state)
        yield Standardise(state[-1:])
