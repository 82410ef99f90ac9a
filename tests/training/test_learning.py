"""Training makes every model better, and in a minute better than a Gaussian."""

import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from oodbench.data import load
from oodbench.models.base import bits_per_dim
from oodbench.models.noise import Noise
from oodbench.registry import MODELS
from oodbench.training import load_recipe, train

every_model = pytest.mark.parametrize("name", [name for name in MODELS if MODELS.origin_of(name) == "oodbench"])


@every_model
def test_the_tiny_preset_learns(name):
    curve = train(name, "digits", preset="tiny", progress=False).entry["curve"]
    bits = [point[2] for point in curve]
    assert all(math.isfinite(value) for value in bits)
    assert bits[-1] < bits[len(bits) // 2] < bits[0] - 0.1
    assert bits[-1] < 8  # uniform noise


def gaussian_bits(train_images, test_images) -> float:
    """Bits/dim on test images of the full-covariance Gaussian of maximum likelihood on dequantised training images."""
    rng = np.random.default_rng(0)
    x, y = ((i.pixels + rng.random(i.pixels.shape)).reshape(len(i), -1) for i in (train_images, test_images))
    factor = np.linalg.cholesky(np.cov(x.T))
    z = np.linalg.solve(factor, (y - x.mean(0)).T)
    nats = -0.5 * (z**2).sum(0) - np.log(np.diag(factor)).sum() - 0.5 * x.shape[1] * math.log(2 * math.pi)
    return float(bits_per_dim(nats.mean(), x.shape[1]))


@pytest.mark.slow
@every_model
@torch.no_grad()
def test_a_minute_of_training_beats_a_full_covariance_gaussian(name):
    """On one core; constant volume needs no more than the others."""
    recipe = load_recipe(name, "digits", "small")
    with torch.enable_grad():
        model = train(name, "digits", recipe=replace(recipe, precision="float32"), progress=False)
    test = load("digits", "test")
    noise = Noise.of(torch.from_numpy(test.index))
    ours = float(bits_per_dim(model.module.log_prob(torch.from_numpy(test.pixels[:]), noise), 64).mean())
    theirs = gaussian_bits(load("digits", "train"), test)
    print(f"{name}: {ours:.3f} bits/dim in {model.entry['seconds']} s, Gaussian {theirs:.3f}", file=sys.stderr)
    assert ours < theirs
