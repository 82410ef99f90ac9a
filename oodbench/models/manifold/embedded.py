"""What the densities on an embedded surface have in common (Caterini et al. 2021; Ross & Cresswell 2021).

An embedding g: R^d -> R^D with a way back g+, and a flow p(z) on its latents, give with z = g+(x)

    log_p_latent    log p(z)                                          of the latents alone
    log_p_manifold  log p(z) - 1/2 log det J'J                        of g(z) on the surface, J the Jacobian of g at z
    reconstruction  -weight |x - g(z)|^2                              how far off the surface the image lies
    log_p_ambient   log_p_manifold + reconstruction                   of the image; not normalised over R^D

in nats, for pixels on the scale (byte + u) / 256 - 1/2. None is a probability of the discrete image, so there are no
bits/dim, and two such models compare only through their scores.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from oodbench.errors import OodbenchError
from oodbench.models.base import DensityModel, Likelihood
from oodbench.models.flows.flow import standard_normal
from oodbench.models.flows.transforms.base import require
from oodbench.models.manifold.jacobian import log_volume
from oodbench.models.manifold.latents import latent_flow
from oodbench.models.noise import Noise

__all__ = ["EmbeddedModel"]


class EmbeddedModel(DensityModel):
    """A density on a surface of `latents` dimensions; a subclass defines `encode` and `decode`.

    `log_px` is the column that `remark` names: it is what `log_prob` and all detectors on `log_px` read. `prior` is
    "couplings" or the name of a registered flow on vectors.
    """

    likelihood = Likelihood.MANIFOLD
    columns = (
        "log_px",
        "log_p_latent",
        "log_p_manifold",
        "log_p_ambient",
        "reconstruction",
        "log_volume",
        "latent_norm",
    )
    log_px_is: ClassVar[str]  # one of the columns

    def __init__(
        self,
        shape: tuple[int, int, int],
        latents: int,
        weight: float,
        prior: str,
        prior_config: Mapping[str, Any] | None,
    ) -> None:
        super().__init__(shape)
        if not 2 <= latents < self.dimensions:
            raise OodbenchError(
                f"A surface in {self.dimensions} dimensions has 2 to {self.dimensions - 1} latents, not {latents}."
            )
        if not 0 < weight < math.inf:
            raise OodbenchError(f"The weight of the reconstruction must be positive and finite, not {weight}.")
        self.latents, self.weight = latents, weight
        self.prior = latent_flow(latents, prior, prior_config)

    @property
    def latent_dimensions(self) -> int:
        return self.latents

    def encode(self, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """uint8 (B, C, H, W) -> (pixels (B, D) on the embedding's scale, z = g+(pixels) (B, d))."""
        raise NotImplementedError

    def decode(self, z: Tensor, noise: Noise) -> Tensor:
        """g: (B, d) -> pixels (B, D), row by row."""
        raise NotImplementedError

    def decode_with_volume(self, z: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """(g(z) (B, D), 1/2 log det J'J (B,)): exact, of d forward derivatives and a Cholesky factor."""
        decoded = self.decode(z, noise)  # before any derivative, so that folded weights are plain tensors
        return decoded, log_volume(lambda part, rows: self.decode(part, noise.rows(rows)), z)

    def statistics(self, x: Tensor, noise: Noise) -> dict[str, Tensor]:
        """All columns, each (B,), in nats but for the norm of the flow's base vector."""
        pixels, z = self.encode(x, noise)
        decoded, volume = self.decode_with_volume(z, noise)
        bases, volumes = self.prior(z, noise)
        log_p_latent = sum((standard_normal(e) for e in bases), volumes.sum(1))
        squared_norm = sum((e.square().flatten(1).sum(1) for e in bases), torch.zeros_like(volume))
        columns = {
            "log_p_latent": log_p_latent,
            "log_p_manifold": log_p_latent - volume,
            "reconstruction": self.reconstruction(pixels, decoded),
            "log_volume": volume,
            "latent_norm": squared_norm.sqrt(),
        }
        columns["log_p_ambient"] = columns["log_p_manifold"] + columns["reconstruction"]
        columns["log_px"] = columns[self.log_px_is]
        return {name: columns[name] for name in self.columns}

    def reconstruction(self, pixels: Tensor, decoded: Tensor) -> Tensor:
        """-weight |x - g(z)|^2 (B,) of pixels (B, D)."""
        return -self.weight * (pixels - decoded).square().sum(1)

    def dequantise(self, x: Tensor, noise: Noise) -> Tensor:
        """uint8 (B, C, H, W) -> (x + u) / 256 - 1/2 as float (B, H, W, C)."""
        dtype = next(self.parameters()).dtype
        u = noise.uniform(self.shape, "dequantisation").to(dtype)
        return ((x.to(dtype) + u) * (1 / 256) - 0.5).permute(0, 2, 3, 1)

    def sample(self, n: int, noise: Noise) -> Tensor:
        """uint8 (n, C, H, W): points of the surface, at the bytes that hold them; `OodbenchError` where one is none."""
        channels, height, width = self.shape
        pixels = self.decode(self.prior.sample(n, noise), noise).reshape(n, height, width, channels)
        exploded = n - int(pixels.flatten(1).isfinite().all(1).sum())
        require(not exploded, f"The decoder explodes in {exploded} of {n} images: take other weights.")
        return ((pixels.permute(0, 3, 1, 2) + 0.5) * 256).floor().clamp(0, 255).to(torch.uint8)
