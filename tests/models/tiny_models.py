"""The built-in models at sizes that run in milliseconds, with weights that hide nothing, and images for them."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from oodbench.models.base import DensityModel
from oodbench.models.noise import Noise
from oodbench.registry import MODELS

SHAPE = (3, 8, 8)
SMALL_FLOW = {"count": 1, "hidden": 6}
CONFIGS: dict[str, dict[str, Any]] = {
    "glow": {"levels": 2, "steps": 2, "hidden": 12},
    "glow-cv": {"levels": 2, "steps": 2, "hidden": 12},
    "nice": {"couplings": 3, "hidden": 12, "blocks": 1},
    "realnvp": {"levels": 2, "steps": 2, "hidden": 8, "blocks": 1},
    "maf": {"layers": 2, "hidden": 24, "reach": 10},
    "iaf": {"layers": 1, "hidden": 24},
    "nsf": {"levels": 2, "steps": 2, "hidden": 8, "blocks": 1, "bins": 4},
    "nsf-ar": {"layers": 2, "hidden": 24, "bins": 4},
    "nxn-flow": {"levels": 2, "steps": 2, "hidden": 12},
    "iresnet": {"levels": 2, "blocks": 2, "hidden": 8, "terms": 3},
    "funnel": {"levels": 2, "steps": 1, "hidden": 12, "kept": 3, "components": 2},
    "inflow": {"levels": 1, "steps": 4, "hidden": 12, "references": 20},
    "vae": {"latents": 4, "hidden": 12, "mixtures": 2, "draws": 3},
    "vae-mlp": {"latents": 4, "hidden": 12, "draws": 3},
    "vae-dcgan": {"latents": 4, "hidden": 6, "draws": 3},
    "nf-vae": {"latents": 4, "hidden": 12, "draws": 3, "steps": 2, "context": 3},
    "iaf-vae": {"latents": 4, "hidden": 12, "draws": 3, "steps": 2, "context": 5, "width": 12},
    "svae": {"latents": 4, "hidden": 12, "draws": 3},
    "vlae": {"latents": 4, "hidden": 12, "draws": 3, "updates": 2},
    "cygen": {"latents": 4, "hidden": 12, "draws": 3, "training_draws": 2, "chain": 3},
    "vqvae-bridge": {"latents": 4, "codes": 8, "hidden": 12, "draws": 3, "steps": 3, "reverse_hidden": 16},
    "lidvae": {"latents": 4, "hidden": 12, "draws": 3},
    "lae": {"latents": 4, "hidden": 12, "draws": 3, "features": 8, "chain_steps": 6},
    "tsc-vae": {"latents": 4, "hidden": 12, "draws": 3, "width": 8},
    "pixelcnn": {"layers": 2, "filters": 12},
    "pixelcnn++": {"residuals": 1, "filters": 8, "mixtures": 2},
    "aef": {"latents": 4, "hidden": 6, "core_config": {"count": 1, "hidden": 6}, "prior_config": SMALL_FLOW},
    "conformal": {"latents": 4, "levels": 1, "channels": 6, "prior_config": SMALL_FLOW},
    "rectangular": {"latents": 4, "couplings": 1, "hidden": 8, "prior_config": SMALL_FLOW},
    "two-step": {"first_config": {"latents": 4, "hidden": 6}, "prior_config": SMALL_FLOW},
}


@torch.no_grad()
def perturb(module: nn.Module, scale: float = 0.5, seed: int = 0) -> None:
    """Adds seeded noise to every parameter: convolutions that start as zero would make a fresh model trivial."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 4
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / math.sqrt(fan_in)
        parameter.add_(scale * noise.to(parameter.dtype))


def tiny(
    name: str, shape: tuple[int, int, int] = SHAPE, double: bool = False, scale: float = 0.5, **config: Any
) -> DensityModel:
    """A tiny model with perturbed weights, the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module: DensityModel = MODELS.get(name)(shape, **(CONFIGS[name] | config))
    perturb(module, scale)
    return (module.double() if double else module).eval()


def some_images(n: int, shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> Tensor:
    """uint8 (n, *shape): random pixels, with both ends of the range among them."""
    x = torch.randint(0, 256, (n, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    x.view(n, -1)[:, 0], x.view(n, -1)[:, -1] = 0, 255
    return x


def smooth_images(n: int, shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> Tensor:
    """uint8 (n, *shape): random waves, to which a model can fit something."""
    generator = torch.Generator().manual_seed(seed)
    channels, height, width = shape
    rows, columns = torch.arange(height)[:, None] / height, torch.arange(width)[None] / width
    a, b, c = torch.rand(3, n, channels, 1, 1, generator=generator) * 6
    noise = torch.randn(n, *shape, generator=generator)
    return (128 + 80 * torch.sin(a * rows + b * columns + c) + 10 * noise).round().clamp(0, 255).to(torch.uint8)


def noise_of(n: int, first: int = 100, seed: int = 3) -> Noise:
    """The noise of images first, first + 7, ..."""
    return Noise.of(first + 7 * torch.arange(n), seed)
