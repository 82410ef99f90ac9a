"""Orthogonal maps as products of Householder reflections (Tomczak & Welling 2016), and one of two of them by norm."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oodbench.models.flows.transforms.base import Transform, require
from oodbench.models.nn import folded
from oodbench.models.noise import Noise

__all__ = ["ConditionalOrthogonal", "Householder", "principal_axes"]


class Householder(Transform):
    """y = Q' h, Q = H_1 ... H_k with H_i = I - 2 v_i v_i' / v_i'v_i: orthogonal, so the volume is 1 for all weights.

    They run as two thin products: Q = I - V T V' with T^-1 = striu(V'V) + diag(V'V) / 2 (Joffrain et al. 2006).
    """

    def __init__(self, dimensions: int, count: int, generator: torch.Generator, principal: bool = False) -> None:
        super().__init__()
        require(1 <= count <= dimensions, f"{dimensions} dimensions take 1 to {dimensions} reflections, not {count}.")
        self.principal = principal
        self.vectors = nn.Parameter(torch.randn(dimensions, count, generator=generator))

    @folded
    def factors(self) -> tuple[Tensor, Tensor]:
        """(V (n, k), V T (n, k))."""
        products = self.vectors.T @ self.vectors
        inverse = products.triu(1) + torch.diag(products.diagonal() / 2)
        identity = torch.eye(len(products), dtype=products.dtype, device=products.device)
        return self.vectors, self.vectors @ torch.linalg.solve_triangular(inverse, identity, upper=True)

    def forward(self, h: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        vectors, scaled = self.factors()
        return h - F.linear(h @ scaled, vectors), h.new_zeros(())

    def inverse(self, y: Tensor, noise: Noise) -> Tensor:
        vectors, scaled = self.factors()
        return y - F.linear(y @ vectors, scaled)

    @torch.no_grad()
    def initialise(self, h: Tensor) -> None:
        """With `principal`, the first k coordinates of y become principal components of this batch."""
        if self.principal and h.numel():
            self.point_at(principal_axes(h.reshape(-1, h.shape[-1]), self.vectors.shape[1]))

    @torch.no_grad()
    def point_at(self, frame: Tensor) -> None:
        """The first coordinates of y become those along the orthonormal columns of `frame` (n, k), up to signs."""
        packed, _ = torch.geqrf(frame.double())
        vectors = packed.tril(-1)
        vectors.diagonal().fill_(1)
        self.vectors.copy_(vectors)


class ConditionalOrthogonal(Transform):
    """y = Q1' h where |h| < r and Q2' h elsewhere, at every place (Ross & Cresswell 2021, Section 4.2).

    Norms stay, so the inverse knows which map it was; the Jacobian is orthogonal wherever |h| is not r. r is the median
    norm of the first batch and stays.
    """

    radius: Tensor

    def __init__(self, dimensions: int, count: int, generator: torch.Generator) -> None:
        super().__init__()
        self.inner = Householder(dimensions, count, generator, principal=True)
        self.outer = Householder(dimensions, count, generator, principal=True)
        self.register_buffer("radius", torch.tensor(0.29 * dimensions**0.5))  # of uniform pixels

    def forward(self, h: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        y = torch.where(self.is_inner(h), self.inner(h, noise)[0], self.outer(h, noise)[0])
        return y, h.new_zeros(())

    def inverse(self, y: Tensor, noise: Noise) -> Tensor:
        return torch.where(self.is_inner(y), self.inner.inverse(y, noise), self.outer.inverse(y, noise))

    def is_inner(self, h: Tensor) -> Tensor:
        """bool (B, ..., 1)."""
        return h.square().sum(-1, True) < self.radius.square()

    @torch.no_grad()
    def initialise(self, h: Tensor) -> None:
        """Both maps begin at the principal axes of their own places of this batch."""
        rows = h.reshape(-1, h.shape[-1])
        self.radius.copy_(rows.norm(dim=1).median())
        inner = self.is_inner(rows)[:, 0]
        for part, of_part in ((self.inner, rows[inner]), (self.outer, rows[~inner])):
            part.initialise(of_part)


def principal_axes(rows: Tensor, count: int) -> Tensor:
    """Orthonormal (n, count): the directions of largest second moment about 0 of rows (N, n), largest first.

    Where there are fewer rows than `count`, the rest are some directions orthogonal to them.
    """
    _, axes = torch.linalg.eigh(rows.double().T @ rows.double())
    leading: Tensor = axes.flip(1)[:, :count]
    return leading
