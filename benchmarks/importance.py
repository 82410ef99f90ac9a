"""A VAE's importance-weighted likelihood: pythae's, a plain loop over draws and ours, of one architecture and weights.

784-512-64 and back, Bernoulli pixels, K draws an image. pythae takes an image after another, its K copies through the
encoder; the loop encodes a batch once and decodes it K times; ours folds draws into the decoder's batch.
"""

import math
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oodbench.engine.lanes import lanes
from oodbench.models.networks import Perceptron
from oodbench.models.nn import Linear, networks
from oodbench.models.noise import Noise
from oodbench.models.vae.latent import importance_weighted
from oodbench.models.vae.vae import VAE

__all__ = ["Loop", "OneHidden", "decoder_products", "in_batches", "ours", "pythae_vae"]

PIXELS, HIDDEN, LATENTS, SHAPE = 784, 512, 64, (1, 28, 28)


class OneHidden(VAE):
    """Our VAE with networks of one hidden layer, as pythae's are by default."""

    def __init__(self, draws: int) -> None:
        super().__init__(SHAPE, LATENTS, 1, draws=draws, network="dense", observation="bernoulli")
        self.encoder = nn.Sequential(nn.Flatten(), Perceptron(PIXELS, HIDDEN, 2 * LATENTS, zero=False))
        self.decoder = nn.Sequential(Perceptron(LATENTS, HIDDEN, PIXELS, zero=False), nn.Unflatten(1, SHAPE))

    def values(self, x: Tensor) -> Tensor:
        """uint8 -> 0 and 1."""
        return (x >= 128).to(torch.float32)


def ours(model: OneHidden, x: Tensor, batch: int, dtype: torch.dtype | None, side_by_side: bool) -> Callable[[], None]:
    """Our estimate of all images, batches in lanes as the engine runs them, or one after another."""
    noise = Noise.of(torch.arange(batch))

    def one(part: Tensor) -> None:
        with torch.inference_mode():
            importance_weighted(model, part, noise, model.draws)

    def run() -> None:
        with networks(dtype, fold=True), lanes(len(x) // batch if side_by_side else 1, x.device) as (_, each):
            for _ in each(one, x.split(batch)):
                pass

    return run


def pythae_vae(model: OneHidden) -> nn.Module:
    """pythae's VAE with its own networks and our weights."""
    from pythae import models

    theirs = models.VAE(models.VAEConfig(input_dim=SHAPE, latent_dim=LATENTS, reconstruction_loss="bce")).eval()
    (first, last), (up, out) = linear_maps(model.encoder), linear_maps(model.decoder)
    weights = [first.weight, first.bias]
    for half in range(2):
        weights += [last.weight.chunk(2)[half], last.bias.chunk(2)[half]]
    with torch.no_grad():
        for mine, here in zip(theirs.encoder.parameters(), weights, strict=True):
            mine.copy_(here)
        for mine, here in zip(theirs.decoder.parameters(), (up.weight, up.bias, out.weight, out.bias), strict=True):
            mine.copy_(here)
    return cast(nn.Module, theirs)


def linear_maps(network: nn.Module) -> list[Linear]:
    """The two of an encoder or a decoder."""
    return [layer for layer in network.modules() if isinstance(layer, Linear)]


def in_plain_torch(network: nn.Module) -> nn.Sequential:
    """The same map of vectors, with our weights in torch's own layers."""
    layers: list[nn.Module] = []
    for ours in linear_maps(network):
        theirs = nn.Linear(ours.weight.shape[1], ours.weight.shape[0])
        theirs.load_state_dict({"weight": ours.weight, "bias": ours.bias})
        layers += [theirs, nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


class Loop(nn.Module):
    """What one writes in plain torch: encode a batch, then for every draw decode it and keep the weight."""

    def __init__(self, model: OneHidden) -> None:
        super().__init__()
        self.encoder, self.decoder = in_plain_torch(model.encoder), in_plain_torch(model.decoder)
        self.draws = model.draws

    def forward(self, x: Tensor) -> Tensor:
        """0 and 1 (B, 1, 28, 28) -> log P (B,) in nats."""
        x = x.flatten(1)
        mean, log_variance = self.encoder(x).chunk(2, 1)
        std = torch.exp(0.5 * log_variance)
        weights = []
        for _ in range(self.draws):
            e = torch.randn_like(mean)
            z = mean + std * e
            logits = self.decoder(z)
            likelihood = -F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)
            weights.append(likelihood + 0.5 * (e.square() - z.square() + log_variance).sum(1))
        return torch.logsumexp(torch.stack(weights), 0) - math.log(self.draws)


def in_batches(estimate: Callable[[Tensor], object], x: Tensor, batch: int) -> Callable[[], None]:
    """A peer's estimate of all images."""

    def run() -> None:
        with torch.inference_mode():
            for part in x.split(batch):
                estimate(part)

    return run


def decoder_products(model: OneHidden, images: int, rows: int, dtype: torch.dtype) -> Callable[[], None]:
    """The floor: the decoder's two matrix products of all images and draws, `rows` at a time, and nothing else."""
    layers = linear_maps(model.decoder)
    weights = [(layer.weight.detach().to(dtype).t(), layer.bias.detach().to(dtype)) for layer in layers]
    z = torch.randn(rows, LATENTS).to(dtype)

    def run() -> None:
        with torch.inference_mode():
            for _ in range(0, images * model.draws, rows):
                h = z
                for weight, bias in weights:
                    h = torch.addmm(bias, h, weight)

    return run
