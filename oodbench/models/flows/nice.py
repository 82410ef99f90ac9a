"""NICE (Dinh et al. 2015)."""

from collections.abc import Iterator

from oodbench.models.flows.flow import VectorFlow
from oodbench.models.flows.networks import MLP
from oodbench.models.flows.transforms.base import Transform, require
from oodbench.models.flows.transforms.coupling import Coupling
from oodbench.models.flows.transforms.elementwise import Additive
from oodbench.models.flows.transforms.permutation import swap_halves
from oodbench.models.flows.transforms.prior import Standardise

__all__ = ["NICE"]


class NICE(VectorFlow):
    """`couplings` additive couplings of the halves of a vector, each by an MLP, between two diagonal scalings."""

    @classmethod
    def layers_on(cls, dimensions: int, couplings: int = 4, hidden: int = 1000, blocks: int = 2) -> Iterator[Transform]:
        require(dimensions >= 2, f"A coupling needs at least 2 dimensions, not {dimensions}.")
        require(couplings >= 2, f"With {couplings} couplings some numbers are never changed: use at least 2.")
        yield Standardise((dimensions,), measured=True, floor=0.1)
        for _ in range(couplings):
            kept = dimensions // 2
            yield Coupling(kept, MLP(kept, hidden, dimensions - kept, blocks), Additive())
            yield swap_halves(dimensions)
        yield Standardise((dimensions,))
