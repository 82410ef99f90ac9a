"""The Glow of normflows, of nflows and ours, of one architecture: what `peers.py` times.

Peers get images that are dequantised already, ours dequantise with noise that belongs to each image. The density of
what leaves at a scale, given what stays, is for the peers an affine coupling of theirs with our one convolution.
"""

from collections.abc import Callable
from typing import Any

import torch
from likelihood import convolution_layers
from torch import Tensor, nn

from oodbench.models.flows.glow import Glow
from oodbench.models.nn import networks
from oodbench.models.noise import Noise

__all__ = [
    "LogProb",
    "check_sizes",
    "convolution_training",
    "log_prob",
    "nflows_glow",
    "normflows_glow",
    "our_training",
    "training",
]


def normflows_glow(shape: tuple[int, int, int], levels: int, steps: int, hidden: int) -> nn.Module:
    """normflows' GlowBlocks (Stimper et al. 2023); `log_prob` takes (B, C, H, W)."""
    import normflows as nf

    channels, height, width = shape
    bases, flows, merges = [], [], []
    for level in range(levels):
        channels, height, width = 4 * channels, height // 2, width // 2
        last = level == levels - 1
        # Layers stand in the order of sampling.
        end = nf.flows.AffineConstFlow((channels, 1, 1)) if last else nf.flows.AffineCouplingBlock(_prior(channels))
        flows.append([end, *(nf.flows.GlowBlock(channels, hidden) for _ in range(steps)), nf.flows.Squeeze()])
        if not last:
            merges.append(nf.flows.Merge())
            channels //= 2
        bases.append(nf.distributions.DiagGaussian((channels, height, width), trainable=False))
    return LogProb(nf.MultiscaleFlow(bases[::-1], flows[::-1], merges, class_cond=False), None)


def nflows_glow(shape: tuple[int, int, int], levels: int, steps: int, hidden: int) -> nn.Module:
    """nflows' ActNorm, OneByOneConvolution and AffineCouplingTransform (Durkan et al. 2020)."""
    from nflows import distributions, flows, transforms

    channels, height, width = shape
    whole = transforms.MultiscaleCompositeTransform(levels)
    for level in range(levels):
        channels, height, width = 4 * channels, height // 2, width // 2
        half, layers = channels // 2, [transforms.SqueezeTransform()]
        for _ in range(steps):
            layers.append(transforms.ActNorm(channels))
            layers.append(transforms.OneByOneConvolution(channels))
            network = _WithContext(_network(half, hidden, channels))
            layers.append(transforms.AffineCouplingTransform([0] * half + [1] * half, lambda *_, n=network: n))
        if level < levels - 1:  # there the first half leaves
            prior = _WithContext(_prior(channels))
            layers.append(transforms.AffineCouplingTransform([1] * half + [0] * half, lambda *_, n=prior: n))
        whole.add_transform(transforms.CompositeTransform(layers), (channels, height, width))
        channels = half
    return LogProb(flows.Flow(whole, distributions.StandardNormal([torch.Size(shape).numel()])))


class LogProb(nn.Module):
    """A peer whose call is its log_prob, so that it can be compiled."""

    def __init__(self, flow: nn.Module, *more: Any) -> None:
        super().__init__()
        self.flow, self.more = flow, more

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.flow.log_prob(x, *self.more)
        return out


class _WithContext(nn.Module):
    """A network as nflows calls it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, context: None = None) -> Tensor:
        out: Tensor = self.network(x)
        return out


def _network(inputs: int, hidden: int, outputs: int) -> nn.Module:
    last = nn.Conv2d(hidden, outputs, 3, padding=1)
    nn.init.zeros_(last.weight)
    first, second = nn.Conv2d(inputs, hidden, 3, padding=1), nn.Conv2d(hidden, hidden, 1)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)


def _prior(channels: int) -> nn.Module:
    prior = nn.Conv2d(channels // 2, channels, 3, padding=1)
    nn.init.zeros_(prior.weight)
    return prior


def check_sizes(models: dict[str, nn.Module], axes: int) -> None:
    """Prints how many parameters each has, and fails unless the networks' weights are equal and the rest nearly so.

    The weights are the parameters with so many axes: 4 of convolutions, 2 of matrix products. nflows stores triangular
    matrices without the zeros that normflows and we store.
    """
    whole, networks = {}, {}
    for name, model in models.items():
        numbers = [p for p in model.parameters() if p.requires_grad]
        weights = [p for p in numbers if p.ndim == axes and len(p) > 1]
        whole[name], networks[name] = (sum(p.numel() for p in some) for some in (numbers, weights))
        print(f"{name}: {whole[name]:,} parameters, {networks[name]:,} of them weights of networks")
    assert len(set(networks.values())) == 1, networks
    assert max(whole.values()) <= 1.02 * min(whole.values()), whole


def log_prob(
    model: nn.Module, x: Tensor, batch: int, channels_last: bool = False, compiled: bool = False
) -> Callable[[], None]:
    """A peer's log_prob of all images, a batch at a time; torch.compile (`compiled`) fails in inference mode."""
    kind = torch.channels_last if channels_last else torch.contiguous_format
    parts = [part.contiguous(memory_format=kind) for part in x.split(batch)]

    def run() -> None:
        model.to(memory_format=kind)
        with torch.no_grad() if compiled else torch.inference_mode():
            for part in parts:
                run_model(part)

    run_model = torch.compile(model) if compiled else model
    return run


def training(model: nn.Module, x: Tensor, channels_last: bool = False) -> Callable[[], None]:
    """One step of a peer: forward, backward, AdamW."""
    kind = torch.channels_last if channels_last else torch.contiguous_format
    model.train().to(memory_format=kind)
    x = x.contiguous(memory_format=kind)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, foreach=True)

    def run() -> None:
        loss = -model(x).mean() / x[0].numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return run


def our_training(model: Glow, x: Tensor, noise: Noise, dtype: torch.dtype | None) -> Callable[[], None]:
    """One step of ours, from 8-bit images."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, foreach=True)

    def run() -> None:
        with networks(dtype):
            loss = model.loss(x, noise).mean() / model.dimensions
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return run


def convolution_training(model: Glow, batch: int, dtype: torch.dtype) -> Callable[[], None]:
    """The floor of a training step: the couplings' convolutions and their backward passes, channels last."""
    couplings = convolution_layers(model, batch, dtype)
    for x, layers in couplings:
        for tensor in (x, *(t for weight, bias, _ in layers for t in (weight, bias))):
            tensor.requires_grad_()

    def run() -> None:
        for first, layers in couplings:
            x = first
            for weight, bias, padding in layers:
                x = torch.conv2d(x, weight, bias, 1, padding)
            torch.autograd.grad(x, [first, *(t for w, b, _ in layers for t in (w, b))], torch.ones_like(x))

    return run
