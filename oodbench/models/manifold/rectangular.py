"""Rectangular flows (Caterini et al. 2021): a bijection of R^D whose last D - d coordinates are 0 on the surface."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from oodbench.models.flows.flow import Flow
from oodbench.models.flows.transforms.base import Shape, Transform, require
from oodbench.models.flows.transforms.conformal import Projection, Similarity
from oodbench.models.flows.transforms.coupling import Coupling
from oodbench.models.flows.transforms.elementwise import Affine
from oodbench.models.flows.transforms.householder import Householder
from oodbench.models.flows.transforms.permutation import swap
from oodbench.models.flows.transforms.squeeze import Flatten
from oodbench.models.manifold.conjugate_gradients import conjugate_gradients
from oodbench.models.manifold.embedded import EmbeddedModel
from oodbench.models.manifold.jacobian import jacobian_columns, jacobian_products
from oodbench.models.networks import DenseNetwork
from oodbench.models.noise import Noise

__all__ = ["Rectangular", "volume_surrogate"]


class Rectangular(EmbeddedModel):
    """log p(x) = log p(z) - 1/2 log det J'J - weight |x - g(z)|^2 at z = g+(x) (Caterini et al. 2021, Eq. 9).

    From pixels to latents: an orthogonal map, whose first `latents` coordinates start as principal components, and
    `couplings` pairs of affine couplings, in which these and the rest steer each other; g+ drops the rest, g takes it
    as 0. Training follows the stochastic gradient of the log-determinant (Section 4.2), evaluation takes it exactly.
    `log_px` is log_p_ambient.
    """

    log_px_is = "log_p_ambient"
    remark = "ambient, not normalised"

    def __init__(
        self,
        shape: tuple[int, int, int],
        latents: int = 20,
        couplings: int = 3,
        hidden: int = 256,
        weight: float = 50.0,
        prior: str = "couplings",
        prior_config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(shape, latents, weight, prior, prior_config)
        require(couplings >= 1, f"A rectangular flow needs at least one pair of couplings, not {couplings}.")
        state = shape[1], shape[2], shape[0]
        self.embedding = Flow(state, _layers(state, latents, couplings, hidden))

    def encode(self, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        h = self.dequantise(x, noise)
        return h.flatten(1), self.embedding(h, noise)[0][0]

    def decode(self, z: Tensor, noise: Noise) -> Tensor:
        return self.embedding.inverse([z], noise).flatten(1)

    def loss(self, x: Tensor, noise: Noise) -> Tensor:
        """-log_p_ambient, nats (B,); where gradients are wanted, a number with an unbiased gradient of it."""
        if not torch.is_grad_enabled():
            return -self.statistics(x, noise)["log_p_ambient"]
        pixels, z = self.encode(x, noise)
        probe = noise.normal((self.latents,), "probe").to(z.dtype)
        volume = volume_surrogate(lambda part: self.decode(part, noise), z, probe)
        reconstruction = self.reconstruction(pixels, self.decode(z, noise))
        return volume - self.prior.log_density(z, noise) - reconstruction

    @torch.no_grad()
    def initialise(self, x: Tensor, noise: Noise) -> None:
        """Starts at the principal axes of this batch."""
        latents, _ = self.embedding(self.dequantise(x, noise), noise, initialise=True)
        self.prior(latents[0], noise, initialise=True)


def volume_surrogate(embedding: Callable[[Tensor], Tensor], z: Tensor, probe: Tensor) -> Tensor:
    """(B,) whose gradient has the mean of 1/2 log det J'J's over probes e ~ N(0, I) (B, d) (Caterini et al., Eq. 13).

    1/2 d log det J'J = 1/2 E[e' (J'J)^-1 d(J'J) e]: with y = (J'J)^-1 e, found by conjugate gradients, held fixed, this
    is the differential of 1/2 (J y)'(J e). Raises `OodbenchError` if they do not converge.
    """
    with torch.no_grad():  # at d ~ 20 all columns in one pass cost less than a pass for every iteration
        j = jacobian_columns(embedding, z.detach())
        gram = j.mT @ j
    solved = conjugate_gradients(lambda v: (gram @ v[..., None])[..., 0], probe)
    products = jacobian_products(embedding, z, torch.stack([solved, probe]))
    return 0.5 * (products[0] * products[1]).sum(1)


def _layers(state: Shape, latents: int, couplings: int, hidden: int) -> Iterator[Transform]:
    generator, element = torch.Generator().manual_seed(0), Affine(bound=2.0)
    (dimensions,) = Flatten(state).shape_after(state)
    rest = dimensions - latents
    yield Similarity(state, scaling=False)
    yield Flatten(state)
    yield Householder(dimensions, latents, generator, principal=True)
    for _ in range(couplings):
        yield Coupling(latents, DenseNetwork(latents, hidden, 2 * rest), element)
        yield swap(latents, rest)
        yield Coupling(rest, DenseNetwork(rest, hidden, 2 * latents), element)
        yield swap(rest, latents)
    yield Coupling(latents, DenseNetwork(latents, hidden, 2 * rest), element)
    yield Projection(dimensions, latents)
