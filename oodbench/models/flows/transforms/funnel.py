"""Funnels (Klein et al. 2021): inference surjections (Nielsen et al. 2020), exact though they drop dimensions."""

import torch
from torch import Tensor, nn

from oodbench.models.flows.transforms.base import Shape, Transform, require
from oodbench.models.flows.transforms.elementwise import Elementwise
from oodbench.models.noise import Noise

__all__ = ["Decoder", "Funnel"]


class Decoder(nn.Module):
    """p(d | z): for every dropped number a mixture of `components` normals whose parameters a network makes of z.

    `network` takes (B, ..., kept) to (B, ..., 3 * components * dropped).
    """

    def __init__(self, network: nn.Module, components: int) -> None:
        super().__init__()
        self.network = network
        self.components = components
        # Components that start alike would stay alike.
        self.start = nn.Parameter(torch.linspace(-1, 1, components) if components > 1 else torch.zeros(1))

    def log_prob(self, dropped: Tensor, z: Tensor) -> Tensor:
        """log p(d | z) in nats (B,) of (B, ..., dropped)."""
        logits, means, log_scales = self._mixture(z)
        e = (dropped[..., None] - means) * (-log_scales).exp()
        log_normal = -0.5 * e.square() - log_scales - 0.5 * torch.log(torch.tensor(2 * torch.pi, dtype=z.dtype))
        return (logits.log_softmax(-1) + log_normal).logsumexp(-1).flatten(1).sum(1)

    def sample(self, z: Tensor, noise: Noise, stream: str) -> Tensor:
        """(B, ..., dropped) drawn from p(d | z)."""
        logits, means, log_scales = self._mixture(z)
        shape = tuple(means.shape[1:-1])
        u = noise.uniform(shape, f"{stream} component").to(z.dtype)[..., None]
        chosen = (logits.softmax(-1).cumsum(-1)[..., :-1] < u).sum(-1, keepdim=True)
        mean, log_scale = (t.gather(-1, chosen)[..., 0] for t in (means, log_scales))
        return mean + log_scale.exp() * noise.normal(shape, f"{stream} value").to(z.dtype)

    def _mixture(self, z: Tensor) -> list[Tensor]:
        """Logits, means and log-scales, each (B, ..., dropped, components)."""
        logits, means, log_scales = self.network(z).unflatten(-1, (3, -1, self.components)).unbind(-3)
        return [logits, means + self.start, log_scales]


class Funnel(Transform):
    """z = f(k; network(d)) of the `kept` first channels k, steered by the dropped ones d, which leave for good.

    log p(k, d) = log p(z) + log p(d | z) + log|det dz/dk| (Klein et al. 2021, arXiv:2112.08069, Equation 5): exact,
    though z has fewer dimensions. The inverse draws d from p(d | z), whose stream of noise is called `name`.
    """

    bijective = False

    def __init__(self, kept: int, network: nn.Module, element: Elementwise, decoder: Decoder, name: str) -> None:
        super().__init__()
        self.kept, self.network, self.element, self.decoder, self.name = kept, network, element, decoder, name

    def forward(self, h: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        kept, dropped = h[..., : self.kept].contiguous(), h[..., self.kept :].contiguous()
        z, volume = self.element.forward(kept, self.network(dropped))
        return z, volume + self.decoder.log_prob(dropped, z)

    def inverse(self, y: Tensor, noise: Noise) -> Tensor:
        """A right inverse: one of the states that `forward` takes to y."""
        dropped = self.decoder.sample(y, noise, self.name)
        return torch.cat([self.element.inverse(y, self.network(dropped)), dropped], -1)

    def shape_after(self, shape: Shape) -> Shape:
        require(
            0 < self.kept < shape[-1],
            f"A funnel from {shape[-1]} channels cannot keep {self.kept}: it keeps some of them and drops some.",
        )
        return *shape[:-1], self.kept
