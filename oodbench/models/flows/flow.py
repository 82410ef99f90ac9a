"""A flow is a list of layers: log p(x) = log p(z) + log|det dz/dx| (Rezende & Mohamed 2015)."""

import math
from collections.abc import Iterable
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from oodbench.models.base import DensityModel, Likelihood
from oodbench.models.flows.transforms.base import Shape, Transform, require, require_inverse
from oodbench.models.flows.transforms.logit import Logit
from oodbench.models.flows.transforms.prior import FactorOut
from oodbench.models.flows.transforms.squeeze import Flatten
from oodbench.models.noise import Noise

__all__ = ["Flow", "ImageFlow", "VectorFlow", "standard_normal"]

_ADVICE = (
    "draw others, or the same in float64, which helps where rounding is to blame, and never with networks in bfloat16"
)


class Flow(nn.Module):
    """Layers from data to a standard normal base, on states (B, *shape), channels last; latents leave at FactorOut.

    `shape` is that of one state: (H, W, C), or (d,) for a flow on vectors.
    """

    def __init__(self, shape: Shape, layers: Iterable[Transform | FactorOut]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.latent_shapes: list[Shape] = []
        for layer in self._layers():
            if isinstance(layer, FactorOut):
                self.latent_shapes.append(layer.gone)
            shape = layer.shape_after(shape)
        self.latent_shapes.append(shape)

    @property
    def volume(self) -> Likelihood:
        """EXACT, unless a layer's volume is not."""
        return _weaker(Likelihood.EXACT, *(layer.volume for layer in self._layers()))

    @property
    def inverts(self) -> bool:
        """Whether forward finds again the latents of what `inverse` made of them."""
        return all(layer.inverts for layer in self._layers())

    def forward(self, h: Tensor, noise: Noise, initialise: bool = False) -> tuple[list[Tensor], Tensor]:
        """States (B, *shape) -> standardised latents, one tensor a scale, and the scales' log-volumes (B, scales).

        `initialise` sets every layer's data-dependent parameters on the way.
        """
        latents: list[Tensor] = []
        volumes: list[Tensor] = []
        volume = h.new_zeros(len(h))
        for layer in self._layers():
            if initialise:
                layer.initialise(h)
            if isinstance(layer, FactorOut):
                h, e, change = layer.split(h)
                latents.append(e)
                volumes.append(volume + change)
                volume = h.new_zeros(len(h))
            else:
                h, change = layer(h, noise)
                volume = volume + change
        return [*latents, h], torch.stack([*volumes, volume], 1)

    def inverse(self, latents: list[Tensor], noise: Noise) -> Tensor:
        """The states whose latents these are."""
        *left, h = latents
        for layer in reversed(list(self._layers())):
            h = layer.merge(h, left.pop()) if isinstance(layer, FactorOut) else layer.inverse(h, noise)
        return h

    def log_density(self, h: Tensor, noise: Noise) -> Tensor:
        """log p(h) in nats (B,) of states, a density on R^d."""
        latents, volumes = self(h, noise)
        return sum((standard_normal(e) for e in latents), volumes.sum(1))

    def sample(self, n: int, noise: Noise) -> Tensor:
        """(n, *shape): the inverse of standard normal latents; `noise` has n rows.

        Scales far below 1 make it explode for some (Behrmann et al. 2021, arXiv:2006.09347). So the latents are sought
        again in what came out, where the layers declare an inverse: a miss is an `OodbenchError`, never a silent image.
        """
        dtype = next(self.parameters()).dtype
        latents = [noise.normal(shape, f"latent {i}").to(dtype) for i, shape in enumerate(self.latent_shapes)]
        assert len(noise.index) == n
        h = self.inverse(latents, noise)
        if self.inverts:
            with torch.no_grad():
                back = self(h, noise)[0]
            require_inverse(_flat(back), _flat(latents), "the flow", _ADVICE)
        exploded = n - int(h.flatten(1).isfinite().all(1).sum())
        require(not exploded, f"The flow's inverse explodes in {exploded} of {n} images: {_ADVICE}.")
        return h

    def _layers(self) -> "list[Transform | FactorOut]":
        return cast("list[Transform | FactorOut]", list(self.layers))


class ImageFlow(DensityModel):
    """log P(x) >= E_u log p((x + u) / 256 - 1/2) - D log 256 with uniform u, one draw per image (Theis et al. 2016).

    Columns: log_px = log_pz + log_det, latent_norm (the base vector's), and log_px_scales (B, scales), what the latents
    that left at each scale contributed, of which log_px is the sum. A layer whose volume is less makes the whole so: an
    estimate, or a density on a manifold.
    """

    likelihood = Likelihood.LOWER_BOUND
    columns: ClassVar[tuple[str, ...]] = ("log_px", "log_pz", "log_det", "latent_norm", "log_px_scales")
    version = 2

    def __init__(self, shape: tuple[int, int, int], layers: Iterable[Transform | FactorOut]) -> None:
        super().__init__(shape)
        channels, height, width = shape
        self.flow = Flow((height, width, channels), layers)
        self.likelihood = _weaker(self.likelihood, self.flow.volume)

    def statistics(self, x: Tensor, noise: Noise) -> dict[str, Tensor]:
        """All columns, in nats and (B,), but log_px_scales (B, scales)."""
        latents, volumes = self.flow(self.dequantise(x, noise), noise)
        # Made where the volumes are: a copy of a list would make a GPU wait.
        sizes = torch.stack([volumes.new_full((), math.prod(e.shape[1:])) for e in latents])
        volumes = volumes - sizes * (self.dimensions / sizes.sum() * math.log(256))
        base = torch.stack([standard_normal(e) for e in latents], 1)
        log_pz, log_det = base.sum(1), volumes.sum(1)
        squared_norm = sum((e.square().flatten(1).sum(1) for e in latents), torch.zeros_like(log_pz))
        return {
            "log_px": log_pz + log_det,
            "log_pz": log_pz,
            "log_det": log_det,
            "latent_norm": squared_norm.sqrt(),
            "log_px_scales": base + volumes,
        }

    def dequantise(self, x: Tensor, noise: Noise) -> Tensor:
        """uint8 (B, C, H, W) -> (x + u) / 256 - 1/2 as float (B, H, W, C)."""
        dtype = next(self.parameters()).dtype
        u = noise.uniform(self.shape, "dequantisation").to(dtype)
        return ((x.to(dtype) + u) * (1 / 256) - 0.5).permute(0, 2, 3, 1)

    def sample(self, n: int, noise: Noise) -> Tensor:
        """uint8 (n, C, H, W)."""
        h = self.flow.sample(n, noise).permute(0, 3, 1, 2)
        return ((h + 0.5) * 256).floor().clamp(0, 255).to(torch.uint8)

    @torch.no_grad()
    def initialise(self, x: Tensor, noise: Noise) -> None:
        """The data-dependent start of every layer, one after another."""
        self.flow(self.dequantise(x, noise), noise, initialise=True)


class VectorFlow(ImageFlow):
    """A flow on vectors, and on images through the logits of their flattened pixels (Papamakarios et al. 2017).

    A subclass defines `layers_on`: the layers on vectors of any length, which a two-step model puts on its latents. It
    may name others, `on_images`, for the logits while they still are images.
    """

    def __init__(self, shape: tuple[int, int, int], on_images: Iterable[Transform] = (), /, **config: Any) -> None:
        channels, height, width = shape
        layers = self.layers_on(channels * height * width, **config)
        super().__init__(shape, [Logit(), *on_images, Flatten((height, width, channels)), *layers])

    @classmethod
    def layers_on(cls, dimensions: int, *args: Any, **config: Any) -> Iterable[Transform]:
        """The layers from vectors (B, dimensions) to the base; wrong configurations are an `OodbenchError`."""
        raise NotImplementedError


def standard_normal(e: Tensor) -> Tensor:
    """log N(e; 0, I) in nats (B,) of (B, ...)."""
    return -0.5 * e.square().flatten(1).sum(1) - 0.5 * math.log(2 * math.pi) * math.prod(e.shape[1:])


def _flat(latents: list[Tensor]) -> Tensor:
    """All latents of an image in one row: (B, d)."""
    return torch.cat([e.flatten(1) for e in latents], 1)


def _weaker(*kinds: Likelihood) -> Likelihood:
    """The one that says least."""
    return max(kinds, key=list(Likelihood).index)
