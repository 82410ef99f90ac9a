"""InFlow (Kumar et al. 2021): couplings that attention switches off for images unlike those of training."""

import math
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from oodbench.models.base import Likelihood
from oodbench.models.flows.attention import Attention
from oodbench.models.flows.flow import ImageFlow, standard_normal
from oodbench.models.flows.networks import ConvolutionNetwork
from oodbench.models.flows.transforms.base import Shape, Transform
from oodbench.models.flows.transforms.coupling import Coupling
from oodbench.models.flows.transforms.elementwise import Affine
from oodbench.models.flows.transforms.rotation import Rotation
from oodbench.models.flows.transforms.squeeze import Squeeze, check_halving
from oodbench.models.noise import Noise

__all__ = ["InFlow"]


class InFlow(ImageFlow):
    """Couplings y = exp(c s) x + c t, log|det| = c sum s, with one c of {0, 1} an image (Kumar et al. 2021).

    c is `Attention`'s: each image opens its own gate, whatever set or batch it comes in. Between the couplings are
    rotations only, so a closed flow (c = 0) leaves an image's norm and volume alone and log p(x) = log N(x; 0, I).
    As c depends on x the map is no bijection and the mass need not be 1: an estimate. Training goes through the open
    flow, as its images are in-distribution by definition; samples are the open flow's too.

    Reference:
        Kumar et al., "InFlow: Robust outlier detection utilizing Normalizing Flows", 2021, arXiv:2106.15894.

    Columns besides a flow's: log_px_open and log_px_closed, and attention_margin, which is negative where c = 0. The
    published gate, one c for 250 images, is the detector `inflow_published` on the first two.
    """

    likelihood = Likelihood.ESTIMATE
    columns: ClassVar[tuple[str, ...]] = (*ImageFlow.columns, "log_px_open", "log_px_closed", "attention_margin")

    def __init__(
        self,
        shape: tuple[int, int, int],
        levels: int = 2,
        steps: int = 8,
        hidden: int = 64,
        references: int = 5000,
        level: float = 0.05,
    ) -> None:
        super().__init__(shape, self.layers(shape, levels, steps, hidden))
        self.attention = Attention(shape, references, level)

    def layers(self, shape: tuple[int, int, int], levels: int, steps: int, hidden: int) -> Iterator[Transform]:
        """The layers from image to base."""
        check_halving(shape, levels, steps)
        generator = torch.Generator().manual_seed(0)
        element = Affine()
        state: Shape = shape[1], shape[2], shape[0]
        for _ in range(levels):
            yield (squeeze := Squeeze())
            state = squeeze.shape_after(state)
            channels = state[-1]
            kept = channels // 2
            for _ in range(steps):
                yield Rotation(channels, generator)
                yield Coupling(kept, ConvolutionNetwork(kept, hidden, element.parameters * (channels - kept)), element)

    def statistics(self, x: Tensor, noise: Noise) -> dict[str, Tensor]:
        """All columns, in nats and (B,), but log_px_scales (B, 1); the margin is a difference of kernel means."""
        opened = super().statistics(x, noise)
        h = self.dequantise(x, noise).flatten(1)
        log_pz, log_det = standard_normal(h), torch.full_like(h[:, 0], -self.dimensions * math.log(256))
        log_px = log_pz + log_det
        closed = {
            "log_px": log_px,
            "log_pz": log_pz,
            "log_det": log_det,
            "latent_norm": h.norm(dim=1),
            "log_px_scales": log_px[:, None],
        }
        margin = self.attention.margin(x)
        passes = margin >= 0
        gated = {
            name: torch.where(passes.reshape(-1, *[1] * (values.ndim - 1)), values, closed[name])
            for name, values in opened.items()
        }
        return gated | {
            "log_px_open": opened["log_px"],
            "log_px_closed": log_px,
            "attention_margin": margin.to(h.dtype),
        }

    def loss(self, x: Tensor, noise: Noise) -> Tensor:
        """-log p (B,) nats of the open flow."""
        return -super().statistics(x, noise)["log_px"]

    def calibrate(self, known: Tensor, held_out: Tensor) -> None:
        """Fits the gate, which no gradient trains."""
        self.attention.fit(known, held_out)
