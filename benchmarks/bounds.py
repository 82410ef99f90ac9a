"""How much a better posterior tightens a VAE's bound, all else alike: one trained decoder, several posteriors.

    python benchmarks/bounds.py --in fashionmnist --images 256 --annealed 64

log P of validation images with the committed `vae-mlp`: by K draws of its own encoder, by K draws of the Laplace
posterior that `vlae` searches for every image from where that encoder starts it, and by annealed importance sampling.
Differences are nats an image to the encoder's K = 64, paired, with their standard errors.
"""

import argparse
import math
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from oodbench import load_model
from oodbench.data import adaptation, in_domain, load
from oodbench.models.nn import networks
from oodbench.models.noise import Noise
from oodbench.models.vae.annealed import Annealing, annealed
from oodbench.models.vae.latent import LatentModel, importance_weighted
from oodbench.models.vae.vae import DenseVAE
from oodbench.models.vae.vlae import VLAE

_AT_A_TIME = 32


class Means(nn.Module):
    """What an encoder says of the posterior's mean alone: where a search starts."""

    def __init__(self, encoder: nn.Module, latents: int) -> None:
        super().__init__()
        self.encoder, self.latents = encoder, latents

    def forward(self, values: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, latents)."""
        out = cast(Tensor, self.encoder(values.float()))[:, : self.latents]
        return out.to(values.dtype)


def searched(model: DenseVAE, updates: int) -> VLAE:
    """The same decoder under a Laplace posterior, its mode found by so many updates."""
    latents, hidden = model.latents, model.decoder.layers[0].weight.shape[0]
    other = VLAE(model.shape, latents, hidden, draws=model.draws, updates=updates).eval()
    other.decoder.load_state_dict(model.decoder.state_dict())
    other.encoder = Means(model.encoder, latents)
    return other


def estimates(model: LatentModel, x: Tensor, noise: Noise, draws: int) -> Tensor:
    """The bound with K draws and the evidence bound, (2, B) nats."""
    parts = []
    with networks(fold=True), torch.inference_mode():
        for rows in parted(len(x)):
            found = importance_weighted(model, x[rows], noise.rows(rows), draws)
            parts.append(torch.stack([found["log_px"], found["elbo"]]).double())
    return torch.cat(parts, 1)


def by_annealing(model: LatentModel, x: Tensor, noise: Noise, how: Annealing) -> Tensor:
    """log P (B,) in nats."""
    return torch.cat([annealed(model, x[rows], noise.rows(rows), how)[0].double() for rows in parted(len(x))])


def parted(count: int) -> list[slice]:
    """Rows, a few at a time."""
    return [slice(first, first + _AT_A_TIME) for first in range(0, count, _AT_A_TIME)]


def show(name: str, value: Tensor, base: Tensor) -> None:
    """A line: mean in nats, and how far above the base."""
    gain = value - base[: len(value)]
    error = float(gain.std()) / math.sqrt(len(gain))
    print(f"{name:52} {float(value.mean()):10.1f} {float(gain.mean()):+8.2f} ± {error:.2f}   n = {len(value)}")


def main() -> None:
    """Prints a line a posterior."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--in", dest="in_", default="fashionmnist")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--annealed", type=int, default=64, help="of them are annealed as well")
    parser.add_argument("--updates", type=int, nargs="+", default=[1, 2, 4, 8])
    arguments = parser.parse_args()
    model: Any = load_model("vae-mlp", arguments.in_).module.eval()
    images = load(arguments.in_, "validation").limit(arguments.images, seed=0)
    adapt = adaptation(images, in_domain(load(arguments.in_, "train")))
    x = torch.from_numpy(adapt(np.asarray(images.pixels)))
    noise = Noise.of(torch.from_numpy(images.index))

    base, elbo = estimates(model, x, noise, 64)
    show("its encoder, K = 64", base, base)
    show("its encoder, evidence bound", elbo, base)
    some, noise_of_some = x[: arguments.annealed], noise.rows(slice(0, arguments.annealed))
    show("its encoder, K = 2000", estimates(model, some, noise_of_some, 2000)[0], base)
    for updates in arguments.updates:
        bound, elbo = estimates(searched(model, updates), x, noise, 64)
        show(f"Laplace posterior, {updates} updates, K = 64", bound, base)
        show(f"Laplace posterior, {updates} updates, evidence bound", elbo, base)
    how = Annealing(chains=8, temperatures=200, start="posterior")
    show("annealed from the encoder's, 8 chains of 200 steps", by_annealing(model, some, noise_of_some, how), base)


if __name__ == "__main__":
    main()
