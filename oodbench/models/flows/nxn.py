"""Glow with invertible n x n convolutions (Truong et al. 2019, arXiv:1905.10170; Hoogeboom et al. 2019)."""

from collections.abc import Iterator

import torch

from oodbench.models.flows.glow import Glow
from oodbench.models.flows.transforms.base import Transform
from oodbench.models.flows.transforms.causal import CausalConvolution

__all__ = ["NxNFlow"]


class NxNFlow(Glow):
    """Glow whose 1x1 convolutions go on to n x n: two triangular ones in opposite orders ("emerging convolutions").

    Log-determinant and inverse are exact; sampling takes H W small products a convolution.
    """

    def __init__(
        self, shape: tuple[int, int, int], levels: int = 3, steps: int = 8, hidden: int = 128, kernel: int = 3
    ) -> None:
        self.kernel = kernel
        super().__init__(shape, levels, steps, hidden)

    def mixing(self, channels: int, generator: torch.Generator) -> Iterator[Transform]:
        """Actnorm and rotation of the channels, then the n x n neighbourhood."""
        yield from super().mixing(channels, generator)
        yield CausalConvolution(channels, self.kernel)
        yield CausalConvolution(channels, self.kernel, reverse=True)
