"""Another order of the channels, or of a vector's numbers: volume-preserving."""

import torch
from torch import Tensor

from oodbench.models.flows.transforms.base import Shape, Transform, require
from oodbench.models.noise import Noise

__all__ = ["Permutation", "interleave", "reverse", "swap", "swap_halves"]


class Permutation(Transform):
    """y_i = h_order[i] along the last axis; `order` is a permutation of 0 ... C - 1."""

    order: Tensor
    back: Tensor

    def __init__(self, order: Tensor) -> None:
        super().__init__()
        back = order.argsort()
        require(torch.equal(order[back], torch.arange(len(order))), f"{order.tolist()} is no permutation.")
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("back", back, persistent=False)

    def forward(self, h: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        return h.index_select(-1, self.order), h.new_zeros(())  # several times as fast as h[..., order]

    def inverse(self, y: Tensor, noise: Noise) -> Tensor:
        return y.index_select(-1, self.back)

    def shape_after(self, shape: Shape) -> Shape:
        require(shape[-1] == len(self.order), f"A permutation of {len(self.order)} numbers cannot order {shape[-1]}.")
        return shape


def reverse(count: int) -> Permutation:
    """The last becomes the first."""
    return Permutation(torch.arange(count).flip(0))


def swap(first: int, second: int) -> Permutation:
    """The first so many numbers go behind the second so many."""
    return Permutation(torch.arange(first + second).roll(second))


def swap_halves(count: int) -> Permutation:
    """The second half, the smaller one of an odd count, comes before the first."""
    return swap(count - count // 2, count // 2)


def interleave(count: int) -> Permutation:
    """First the numbers at even places, then those at odd ones: halves whose numbers are neighbours."""
    return Permutation(torch.cat([torch.arange(0, count, 2), torch.arange(1, count, 2)]))
