"""What the trainer does with a posterior over weights, without data sets and checkpoints."""

from typing import Any

import pytest
import torch
from tiny_models import some_images
from torch import Tensor

from oodbench.models.noise import Noise
from oodbench.models.posteriors.posterior import WeightPosterior
from oodbench.registry import MODELS
from oodbench.training.recipe import Recipe


def recipe(steps: int, rate: float = 1e-3, **config: Any) -> Recipe:
    return Recipe(steps=steps, batch_size=4, learning_rate=rate, config=config)


def run(
    posterior: WeightPosterior, plan: Recipe, images: int, seed: int = 0, x: Tensor | None = None, batch: int = 4
) -> None:
    """Of so many images: always the same ones or, of given `x`, random batches."""
    generator = torch.Generator().manual_seed(seed)
    same = some_images(batch, posterior.shape)
    optimizer = posterior.optimizer(plan, images, seed)
    for step in range(plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate * posterior.rate(step, plan)
        rows = torch.arange(batch) if x is None else torch.randperm(len(x), generator=generator)[:batch]
        noise = Noise.of(rows, draw=step)
        loss = posterior.loss(same if x is None else x[rows], noise).mean() / posterior.dimensions
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        posterior.collect_after(step + 1, plan, optimizer)


def register(patch: pytest.MonkeyPatch, name: str, model: Any) -> None:
    """Makes a model of a test one of the models, for the test."""
    from oodbench.registry import _Entry

    patch.setitem(MODELS._entries, name, _Entry(model, "", "oodbench", None))
