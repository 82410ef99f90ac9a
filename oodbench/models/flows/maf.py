"""Masked autoregressive flows (Papamakarios et al. 2017) and inverse ones (Kingma et al. 2016)."""

from collections.abc import Iterator
from typing import Any

from oodbench.models.flows.flow import VectorFlow
from oodbench.models.flows.transforms.autoregressive import Autoregressive
from oodbench.models.flows.transforms.base import Transform, require
from oodbench.models.flows.transforms.elementwise import Affine
from oodbench.models.flows.transforms.inverse import Inverse
from oodbench.models.flows.transforms.permutation import reverse
from oodbench.models.flows.transforms.prior import Standardise

__all__ = ["IAF", "MAF"]

MOST = 256  # dimensions of an IAF
BOUND = 1.0  # of a layer's log-scales: images unlike all of training are else pushed out by the product of many scales


class MAF(VectorFlow):
    """`layers` of MADE with affine maps, the order of the numbers reversed between them, and a scaling at both ends.

    A density takes one pass, a sample as many passes a layer as there are dimensions.
    """

    @classmethod
    def layers_on(
        cls, dimensions: int, layers: int = 5, hidden: int = 1024, blocks: int = 1, reach: int = 0
    ) -> Iterator[Transform]:
        require(layers >= 1, f"An autoregressive flow needs at least one layer, not {layers}.")
        yield Standardise((dimensions,), measured=True, floor=0.1)
        for layer in range(layers):
            yield cls.layer(Autoregressive(dimensions, hidden, blocks, Affine(BOUND), reach))
            if layer < layers - 1:
                yield reverse(dimensions)
        yield Standardise((dimensions,))

    @classmethod
    def layer(cls, autoregressive: Autoregressive) -> Transform:
        """The direction in which the layer runs from data to base."""
        return autoregressive


class IAF(MAF):
    """MAF turned round: states of latents in one pass; a density inverts each layer, one number after another.

    So it is for small sizes only. Samples take as long as densities, since a flow seeks their latents again.
    """

    @classmethod
    def layers_on(cls, dimensions: int, *args: Any, **config: Any) -> Iterator[Transform]:
        require(
            dimensions <= MOST,
            f"The density of an inverse autoregressive flow takes {dimensions} passes a layer for {dimensions} "
            f"dimensions: use maf, or images of at most {MOST} numbers.",
        )
        yield from super().layers_on(dimensions, *args, **config)

    @classmethod
    def layer(cls, autoregressive: Autoregressive) -> Transform:
        return Inverse(autoregressive)
