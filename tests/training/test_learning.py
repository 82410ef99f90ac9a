"""Training makes every model better, and in a minute better than a Gaussian."""

import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from oodbench.data import Images, load
from oodbench.models.base import bits_per_dim
from oodbench.models.noise import Noise
from oodbench.registry import MODELS
from oodbench.training import load_recipe, train

# A surface begins at principal components, near where a tiny training ends.
ON_A_MANIFOLD = ("conformal", "rectangular", "two-step")
NAMES = [name for name in MODELS if MODELS.origin_of(name) == "oodbench"]
every_model = pytest.mark.parametrize("name", NAMES)


@every_model
def test_the_tiny_preset_learns(name):
    curve = train(name, "digits", preset="tiny", progress=False).entry["curve"]
    bits = [point[2] for point in curve]
    assert all(math.isfinite(value) for value in bits)
    assert bits[-1] < bits[len(bits) // 2] < bits[0] - (0.03 if name in ON_A_MANIFOLD else 0.1)
    assert bits[-1] < 8  # uniform noise


def gaussian_bits(fitted_to: Images, images: Images, ridge: float = 0.0) -> float:
    """Bits/dim on dequantised images of the full-covariance Gaussian of others, its variances raised by `ridge`."""
    rng = np.random.default_rng(0)
    x, y = ((i.pixels + rng.random(i.pixels.shape)).reshape(len(i), -1) for i in (fitted_to, images))
    dimensions = x.shape[1]
    factor = np.linalg.cholesky(np.cov(x.T) + ridge * np.eye(dimensions))
    z = np.linalg.solve(factor, (y - x.mean(0)).T)
    nats = -0.5 * (z**2).sum(0) - np.log(np.diag(factor)).sum() - 0.5 * dimensions * math.log(2 * math.pi)
    return float(bits_per_dim(nats.mean(), dimensions))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ON_A_MANIFOLD])
def test_a_minute_of_training_beats_a_full_covariance_gaussian(name):
    """On one core or so. A ridge helps the Gaussian, as some pixels are black in nearly all training images."""
    recipe = replace(load_recipe(name, "digits", "small"), precision="float32")
    model = train(name, "digits", recipe=recipe, progress=False)
    images, validation, test = (load("digits", split) for split in ("train", "validation", "test"))
    with torch.no_grad():
        log_px = model.module.log_prob(torch.tensor(test.pixels), Noise.of(torch.from_numpy(test.index)))
    ours = float(bits_per_dim(log_px, 64).mean())
    plain = gaussian_bits(images, test)
    ridge = min((1.0, 3.0, 10.0, 30.0), key=lambda value: gaussian_bits(images, validation, value))
    helped = gaussian_bits(images, test, ridge)
    seconds = model.entry["seconds"]
    print(f"{name}: {ours:.3f} bits/dim in {seconds} s, Gaussian {plain:.3f}, {helped:.3f}", file=sys.stderr)
    assert ours < plain
    if name != "glow-cv":  # constant volume needs longer for that
        assert ours < helped
