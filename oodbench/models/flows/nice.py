"""NICE (Dinh et al. 2015)."""

import math
from collections.abc import Iterator
from typing import Any

from oodbench.models.flows.flow import VectorFlow
from oodbench.models.flows.networks import MLP
from oodbench.models.flows.transforms.base import Transform, require
from oodbench.models.flows.transforms.cosine import Cosine
from oodbench.models.flows.transforms.coupling import Coupling
from oodbench.models.flows.transforms.elementwise import Additive
from oodbench.models.flows.transforms.logistic import LogisticToNormal
from oodbench.models.flows.transforms.permutation import interleave, swap_halves
from oodbench.models.flows.transforms.prior import Standardise

__all__ = ["NICE"]


class NICE(VectorFlow):
    """`couplings` additive couplings of the halves of a vector, each by an MLP, between two diagonal scalings.

    The halves are the even and the odd places (Dinh et al. 2015, Section 5.1), anew after every two couplings, so that
    numbers of one half come to steer each other too.

    `whiten`, by default of colour images: additive couplings cannot narrow what neighbours tell of each other, so Dinh
    et al. whiten such images first, by a matrix that for 3x32x32 alone would weigh 38 MB. Here cosines do that. Of such
    images the base is logistic, as theirs is (their Section 5.1), else normal.
    """

    def __init__(self, shape: tuple[int, int, int], *, whiten: bool | None = None, **config: Any) -> None:
        channels, height, width = shape
        if whiten is None:
            whiten = channels == 3
        # No coefficient is constant in a batch, as pixels in a margin are; and most are far smaller than the largest.
        cosines = [Cosine((height, width, channels))] if whiten else []
        suits: dict[str, Any] = {"floor": 0.0, "base": "logistic"} if whiten else {}
        super().__init__(shape, cosines, **(suits | config))

    @classmethod
    def layers_on(
        cls,
        dimensions: int,
        couplings: int = 4,
        hidden: int = 1000,
        blocks: int = 2,
        floor: float = 0.1,
        base: str = "normal",
    ) -> Iterator[Transform]:
        """`floor` is that of the first, measured scaling, see `Standardise`; `base` is "normal" or "logistic"."""
        require(base in ("normal", "logistic"), f"The base of nice is 'normal' or 'logistic', not {base!r}.")
        require(dimensions >= 2, f"A coupling needs at least 2 dimensions, not {dimensions}.")
        require(0 <= floor < math.inf, f"The floor of scales is a share of their root mean square, not {floor}.")
        require(couplings >= 2, f"With {couplings} couplings some numbers are never changed: use at least 2.")
        yield Standardise((dimensions,), measured=True, floor=floor)
        for coupling in range(couplings):
            if coupling % 2 == 0:
                yield interleave(dimensions)
            kept = dimensions // 2
            yield Coupling(kept, MLP(kept, hidden, dimensions - kept, blocks), Additive())
            yield swap_halves(dimensions)
        yield Standardise((dimensions,))
        if base == "logistic":
            yield LogisticToNormal()
