"""A model with one weight whose gradient is known, which writes down what training shows it."""

import math
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from oodbench.models.base import DensityModel, Likelihood
from oodbench.models.noise import Noise
from oodbench.training import Recipe


class Slope(DensityModel):
    """The loss is `gradients[step] * weight` nats a dimension; a validation image has 8 + weight bits a dimension."""

    likelihood = Likelihood.EXACT
    gradients: ClassVar[list[float]] = []
    seen: ClassVar[list[tuple[float, Tensor, Noise]]] = []  # (weight, images, noise) of each step
    validated: ClassVar[list[tuple[Tensor, Noise]]] = []
    initialised: ClassVar[list[Tensor]] = []

    def __init__(self, shape: tuple[int, int, int], start: float = 0.0) -> None:
        super().__init__(shape)
        self.start = start
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def loss(self, x: Tensor, noise: Noise) -> Tensor:
        gradient = self.gradients[len(self.seen)] if self.gradients else 1.0
        self.seen.append((float(self.weight.detach()), x.clone(), noise))
        return (gradient * self.dimensions * self.weight).expand(len(x))

    def log_prob(self, x: Tensor, noise: Noise) -> Tensor:
        self.validated.append((x.clone(), noise))
        return (-self.dimensions * math.log(2) * (8 + self.weight)).expand(len(x)).float()

    @torch.no_grad()
    def initialise(self, x: Tensor, noise: Noise) -> None:
        self.initialised.append(x.clone())
        self.weight.fill_(self.start)


def forget() -> None:
    """Clears what all `Slope`s wrote down."""
    Slope.gradients = []
    for record in (Slope.seen, Slope.validated, Slope.initialised):
        record.clear()


def recipe(steps: int = 20, **changed: object) -> Recipe:
    """A short recipe for `Slope`."""
    values = {"steps": steps, "batch_size": 100, "learning_rate": 0.01, "warmup": 5, "ema": 0.9}
    return Recipe(**(values | changed))


def adamw(gradients: list[float], rates: list[float], decay: float = 0.0) -> np.ndarray:
    """The weight before each step and after the last, by Loshchilov & Hutter's (2019) Algorithm 2."""
    weight, first, second, path = 0.0, 0.0, 0.0, [0.0]
    for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g * g
        weight -= rate * decay * weight
        weight -= rate * (first / (1 - 0.9**t)) / (math.sqrt(second / (1 - 0.999**t)) + 1e-8)
        path.append(weight)
    return np.array(path)
