"""A tiny density model that uses its noise, and images for it: what the engine's tests evaluate."""

import hashlib
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from oodbench.data import Adaptation, Images, adaptation, in_domain
from oodbench.engine import Evaluation, evaluate
from oodbench.models.base import DensityModel, Likelihood
from oodbench.models.noise import Noise

SHAPE = (1, 8, 8)


class Factorised(DensityModel):
    """Independent Gaussian pixels, dequantised; remembers how it was called."""

    likelihood = Likelihood.LOWER_BOUND
    columns = ("log_px", "log_px_draws")

    def __init__(self, shape: tuple[int, int, int] = SHAPE, draws: int = 3, pause: float = 0.0) -> None:
        super().__init__(shape)
        self.mean = nn.Parameter(torch.linspace(100, 150, self.dimensions).reshape(shape))
        self.draws = draws
        self.pause = pause
        self.batches: list[int] = []

    def statistic_parameters(self) -> dict[str, Any]:
        return {"draws": self.draws}

    def statistics(self, x: Tensor, noise: Noise) -> dict[str, Tensor]:
        self.batches.append(len(x))
        time.sleep(self.pause)
        each = noise.expand(0, self.draws)
        y = x.repeat_interleave(self.draws, 0) + each.uniform(self.shape, "dequantise")
        density = torch.distributions.Normal(self.mean, torch.full_like(self.mean, 40.0))
        log_p = density.log_prob(y).flatten(1).sum(1).reshape(len(x), self.draws)
        return {"log_px": log_p.logsumexp(1) - np.log(self.draws), "log_px_draws": log_p}


@dataclass
class Trained:
    """What the engine reads of a `TrainedModel`."""

    module: DensityModel = field(default_factory=Factorised)
    name: str = "factorised"
    dataset: str = "nothing"
    weights: str = "0" * 64
    config: dict[str, Any] = field(default_factory=dict)


def some_images(n: int = 150, seed: int = 0) -> Images:
    """n random images whose official positions differ from their rows."""
    pixels = np.random.default_rng(seed).integers(0, 256, (n, *SHAPE), dtype=np.uint8)
    index = np.arange(n) * 3 + 1
    fingerprint = hashlib.sha256(pixels.tobytes() + index.tobytes()).hexdigest()
    return Images("random", "test", pixels, None, index, fingerprint, np.arange(n))


def identity(images: Images) -> Adaptation:
    """The rule that leaves these images as they are."""
    return adaptation(images, in_domain(images))


def run(images: Images, cache: Path, model: Any = None, names: tuple[str, ...] = (), **options: Any) -> Evaluation:
    """`evaluate` of all of the model's columns, quietly."""
    model = model or Trained()
    options = {"progress": False, "device": "cpu", **options}
    return evaluate(names or model.module.columns, images, identity(images), model=model, cache=cache, **options)


if __name__ == "__main__":  # a slow evaluation, started by a test that kills it
    import oodbench.engine.evaluate  # noqa: F401

    sys.modules["oodbench.engine.evaluate"].SECONDS_BETWEEN_CHUNKS = 0.0  # type: ignore[attr-defined]
    run(some_images(), Path(sys.argv[1]), Trained(Factorised(pause=0.05)), batch_size=5)
