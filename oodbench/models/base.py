"""The contract of every density model."""

import enum
import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from oodbench.models.noise import Noise

__all__ = ["DensityModel", "Likelihood", "bits_per_dim", "has_bits"]


class Likelihood(enum.Enum):
    """What a model's `log_prob` says of log P(discrete image)."""

    EXACT = "exact"
    LOWER_BOUND = "lower_bound"  # a dequantised bijection, an ELBO, an importance-weighted mean
    ESTIMATE = "estimate"
    MANIFOLD = "manifold"  # a density on an embedded surface: no bits/dim, never ranked beside the others
    BINARISED = "binarised"  # a lower bound, but of the image at one bit a number: never ranked beside the others


class DensityModel(nn.Module):
    """A probability distribution on 8-bit images.

    To add one: subclass, set `likelihood`, write `log_prob` and `sample`, decorate with `@register.model("name")`. The
    constructor takes the image shape (C, H, W) and keyword configuration that is plain data, and raises `OodbenchError`
    for a shape it cannot take. All randomness comes from `noise`, never from torch's global generator.

    A model whose forward pass gives more than log P names the columns in `columns` and returns them from `statistics`.
    """

    likelihood: Likelihood  # of the class, or of the instance where the configuration decides
    remark: str = ""  # what tables add to the likelihood: of which density a manifold's `log_px` speaks, say
    columns: ClassVar[tuple[str, ...]] = ("log_px",)
    progress: float = 1.0  # the share of training that is done, as the trainer tells it: for schedules of the loss
    version: int = 1  # of the class, raised when the same weights come to give other numbers (cached columns)

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.shape = shape
        self.dimensions = math.prod(shape)

    def log_prob(self, x: Tensor, noise: Noise) -> Tensor:
        """log P(x) in nats, float32 (B,), of uint8 images (B, C, H, W)."""
        return self.statistics(x, noise)["log_px"]

    def statistics(self, x: Tensor, noise: Noise) -> dict[str, Tensor]:
        """All of `columns`, each (B, ...), from one forward pass over uint8 images (B, C, H, W)."""
        return {"log_px": self.log_prob(x, noise)}

    def statistic_parameters(self) -> dict[str, Any]:
        """What else the columns depend on (the number of importance draws, say): recorded, part of the cache key."""
        return {}

    def loss(self, x: Tensor, noise: Noise) -> Tensor:
        """What training minimises: nats (B,)."""
        return -self.log_prob(x, noise)

    def sample(self, n: int, noise: Noise) -> Tensor:
        """uint8 (n, C, H, W); `noise` has n rows."""
        raise NotImplementedError(f"{type(self).__name__} must define sample().")

    def initialise(self, x: Tensor, noise: Noise) -> None:
        """Sets data-dependent initial parameters from a first training batch; most models have none."""

    def calibrate(self, known: Tensor, held_out: Tensor) -> None:
        """Fits what no gradient trains, once before training: on training and on validation images, uint8 (N, C, H, W).

        Most models have nothing of the kind. What it sets are buffers, which are saved with the weights, or parameters
        whose best start takes many images to find.
        """

    def after_step(self) -> None:
        """Called after every step of the optimiser: for what moves by a rule of its own, as Markov chains do.

        Most models have nothing of the kind. What it moves are parameters or buffers, as a killed run restores these.
        """

    @property
    def latent_dimensions(self) -> int:
        """How many numbers the column `latent_norm`, of a model that has it, is the norm of."""
        return self.dimensions

    @property
    def device(self) -> torch.device:
        """Where the parameters lie."""
        return next(self.parameters()).device


def has_bits(likelihood: Likelihood) -> bool:
    """Whether log P is of the discrete 8-bit image, so that bits/dim mean something."""
    return likelihood not in (Likelihood.MANIFOLD, Likelihood.BINARISED)


def bits_per_dim(log_px: Any, dimensions: int) -> Any:
    """-log P / (D ln 2): a view of nats, never stored."""
    return -log_px / (dimensions * math.log(2))
