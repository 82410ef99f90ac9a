"""Likelihood regret: encoders refitted to all images of a batch at once, and, as in the public code, one after another.

The small presets on FashionMNIST: `vae-mlp`, 784-400-400-32 and back, and the convolutional `vae`; 100 steps of Adam an
image, both bounds with K draws. The weights are not trained ones: time does not depend on them.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from oodbench.engine.lanes import lanes
from oodbench.models.noise import Noise
from oodbench.models.vae.latent import LatentModel, importance_weighted
from oodbench.models.vae.refit import regret
from oodbench.registry import MODELS
from oodbench.training import load_recipe

__all__ = ["NAMES", "SHAPE", "one_by_one", "ours", "small_preset"]

SHAPE = (1, 28, 28)
NAMES = ("vae-mlp", "vae")


def small_preset(name: str) -> LatentModel:
    """A fresh model."""
    model: LatentModel = MODELS.get(name)(SHAPE, **load_recipe(name, "fashionmnist", "small").config)
    return model.eval().requires_grad_(False)


def ours(model: LatentModel, x: Tensor, batch: int) -> Callable[[], None]:
    """As the engine does: batches in lanes."""

    def one(rows: Tensor) -> None:
        with torch.inference_mode():
            regret(model, x[rows], Noise.of(rows))

    def run() -> None:
        rows = torch.arange(len(x)).split(batch)
        with lanes(len(rows), x.device) as (_, each):
            for _ in each(one, rows):
                pass

    return run


def one_by_one(model: LatentModel, x: Tensor, steps: int = 100) -> Callable[[], None]:
    """What one writes in plain torch: for every image a copy of the encoder and an optimiser of its own."""

    def run() -> None:
        for i in range(len(x)):
            image, noise, refitted = x[i : i + 1], Noise.of(torch.tensor([i])), copy.deepcopy(model)
            refitted.encoder.requires_grad_(True)
            optimizer = torch.optim.Adam(refitted.encoder.parameters(), lr=2e-4, weight_decay=5e-5)
            for step in range(steps):
                optimizer.zero_grad()
                (-importance_weighted(refitted, image, noise.expand(model.draws + step, 1), 1)["elbo"]).sum().backward()
                optimizer.step()
            with torch.no_grad():
                for each in (model, refitted):
                    importance_weighted(each, image, noise, model.draws)

    return run
