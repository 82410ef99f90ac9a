"""A flow that narrows to a few latents by funnels (Klein et al. 2021; surjections: Nielsen et al. 2020)."""

import math
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from oodbench.models.flows.flow import ImageFlow
from oodbench.models.flows.networks import ConvolutionNetwork
from oodbench.models.flows.transforms.base import Shape, Transform, require
from oodbench.models.flows.transforms.coupling import Coupling
from oodbench.models.flows.transforms.elementwise import Sigmoid
from oodbench.models.flows.transforms.funnel import Decoder, Funnel
from oodbench.models.flows.transforms.mixing import Mixing
from oodbench.models.flows.transforms.prior import Standardise
from oodbench.models.flows.transforms.squeeze import Squeeze, check_halving
from oodbench.models.noise import Noise

__all__ = ["FunnelFlow"]


class FunnelFlow(ImageFlow):
    """`levels` times: squeeze, `steps` steps as Glow's, and a funnel that keeps `kept` channels: few latents remain.

    A lower bound of the discrete image by dequantisation alone, as of a bijection. latent_norm is that of the few
    latents left. What is dropped counts as density, not as volume, and belongs to no scale's latents: there are no
    columns log_det and log_px_scales.
    """

    columns: ClassVar[tuple[str, ...]] = ("log_px", "log_pz", "latent_norm")

    def __init__(
        self,
        shape: tuple[int, int, int],
        levels: int = 4,
        steps: int = 3,
        hidden: int = 64,
        kept: int = 3,
        components: int = 3,
    ) -> None:
        require(components >= 1, f"A funnel's decoder needs at least one component, not {components}.")
        super().__init__(shape, self.layers(shape, levels, steps, hidden, kept, components))

    def layers(
        self, shape: tuple[int, int, int], levels: int, steps: int, hidden: int, kept: int, components: int
    ) -> Iterator[Transform]:
        """The layers from image to base."""
        check_halving(shape, levels, steps)
        generator = torch.Generator().manual_seed(0)
        element = Sigmoid()
        state: Shape = shape[1], shape[2], shape[0]
        for level in range(levels):
            yield (squeeze := Squeeze())
            state = squeeze.shape_after(state)
            channels = state[-1]
            require(
                0 < kept < channels, f"A funnel from {channels} channels cannot keep {kept}: keep 1 to {channels - 1}."
            )
            for _ in range(steps):
                yield Mixing(channels, generator)
                half = channels // 2
                yield Coupling(half, ConvolutionNetwork(half, hidden, element.parameters * (channels - half)), element)
            dropped = channels - kept
            steering = ConvolutionNetwork(dropped, hidden, element.parameters * kept)
            decoder = Decoder(ConvolutionNetwork(kept, hidden, 3 * components * dropped), components)
            yield (funnel := Funnel(kept, steering, element, decoder, f"funnel {level}"))
            state = funnel.shape_after(state)
        yield Mixing(kept, generator)
        yield Standardise(state)

    @property
    def latent_dimensions(self) -> int:
        return math.prod(self.flow.latent_shapes[-1])

    def statistics(self, x: Tensor, noise: Noise) -> dict[str, Tensor]:
        """log_px = log_pz + the rest, in nats (B,); log_pz and latent_norm are those of the last, few latents."""
        found = super().statistics(x, noise)
        return {name: found[name] for name in self.columns}
