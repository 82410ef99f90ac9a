"""Conformal embedding flows (Ross & Cresswell 2021): embeddings that stretch all directions alike."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from oodbench.models.flows.flow import Flow
from oodbench.models.flows.transforms.base import Shape, Transform
from oodbench.models.flows.transforms.conformal import Projection, Similarity, SpecialConformal
from oodbench.models.flows.transforms.householder import ConditionalOrthogonal, Householder
from oodbench.models.flows.transforms.squeeze import Flatten, Squeeze, check_halving
from oodbench.models.manifold.embedded import EmbeddedModel
from oodbench.models.noise import Noise

__all__ = ["Conformal", "conformal_factor"]


class Conformal(EmbeddedModel):
    """g with J'J = lambda(z)^2 I: log p(x) = log p(z) - d log lambda on the surface (Ross & Cresswell 2021, Eq. 8).

    From pixels to latents: a shift; `levels` times a squeeze and one of two orthogonal maps of every place's channels,
    of which at most `channels` stay; then of the whole vector a special conformal map, an orthogonal one to `latents`
    dimensions and a scaling. Each is conformal, so one number an image gives the volume. Both terms of -log_p_ambient
    are trained jointly. `log_px` is log_p_manifold.
    """

    log_px_is = "log_p_manifold"
    remark = "on the manifold"

    def __init__(
        self,
        shape: tuple[int, int, int],
        latents: int = 20,
        levels: int = 2,
        channels: int = 12,
        weight: float = 50.0,
        prior: str = "couplings",
        prior_config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(shape, latents, weight, prior, prior_config)
        check_halving(shape, levels)
        state = shape[1], shape[2], shape[0]
        self.embedding = Flow(state, _layers(state, latents, levels, channels))

    def encode(self, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        h = self.dequantise(x, noise)
        return h.flatten(1), self.embedding(h, noise)[0][0]

    def decode(self, z: Tensor, noise: Noise) -> Tensor:
        return self.embedding.inverse([z], noise).flatten(1)

    def decode_with_volume(self, z: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """(g(z) (B, D), d log lambda (B,))."""
        decoded = self.embedding.inverse([z], noise)
        log_factor = conformal_factor(self.embedding, decoded, noise)
        return decoded.flatten(1), -self.latents * log_factor

    def loss(self, x: Tensor, noise: Noise) -> Tensor:
        """-log_p_ambient, nats (B,)."""
        return -self.statistics(x, noise)["log_p_ambient"]

    @torch.no_grad()
    def initialise(self, x: Tensor, noise: Noise) -> None:
        """Starts at the principal axes of this batch, first of patches, then of the whole images."""
        latents, _ = self.embedding(self.dequantise(x, noise), noise, initialise=True)
        self.prior(latents[0], noise, initialise=True)


def conformal_factor(flow: Flow, h: Tensor, noise: Noise) -> Tensor:
    """log of the factor (B,) by which the layers of a conformal flow, one after another, stretch every direction at h.

    A conformal map of n dimensions has |det| = factor^n. At points of the surface the embedding's is the inverse.
    """
    log_factor = h.new_zeros(len(h))
    for layer in flow.layers:
        dimensions = h[:1].numel() if len(h) else 1
        h, volume = layer(h, noise)
        log_factor = log_factor + volume / dimensions
    return log_factor


def _layers(state: Shape, latents: int, levels: int, channels: int) -> Iterator[Transform]:
    generator = torch.Generator().manual_seed(0)
    yield Similarity(state, scaling=False)
    for _ in range(levels):
        yield (squeeze := Squeeze())
        state = squeeze.shape_after(state)
        kept = min(channels, state[-1])
        yield ConditionalOrthogonal(state[-1], kept, generator)
        yield (projection := Projection(state[-1], kept))
        state = projection.shape_after(state)
    yield (flatten := Flatten(state))
    (dimensions,) = flatten.shape_after(state)
    yield SpecialConformal(dimensions)
    yield Householder(dimensions, latents, generator, principal=True)
    yield Projection(dimensions, latents)
    yield Similarity((latents,))
