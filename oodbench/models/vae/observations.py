"""What a decoder's numbers say of the pixels: P(x | z), independent over places."""

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from oodbench.errors import OodbenchError
from oodbench.models.likelihoods import (
    by_image,
    logistic_mixture_channels,
    logistic_mixture_log_density,
    logistic_mixture_log_prob,
    logistic_mixture_mean,
    logistic_mixture_start,
    sample_logistic_mixture,
)
from oodbench.models.noise import Noise

__all__ = ["Bernoulli", "Categorical", "LogisticMixture", "Observation", "observation"]


_FACTORS = 120  # of at least 1/2, whose product is a normal float32


class Observation(Protocol):
    """P(x | parameters) of uint8 images (B, C, H, W), given parameters (B, outputs, H, W)."""

    outputs: int  # numbers a place
    location: tuple[int, int] | None  # which of them are means on -1 ... 1, `repeated` a channel; None: none are
    repeated: int
    binary: bool  # it speaks of the image at one bit a number
    idle: int  # how many of the first numbers say nothing: decoders may leave them out

    def start(self, variance: float) -> Tensor:
        """(outputs,): what to start training from, where means miss the pixels by this variance (on -1 ... 1)."""
        ...

    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        """log P(x) in nats (n,), of (n, outputs, H, W): of every image as many, one after another."""
        ...

    def mean(self, parameters: Tensor) -> Tensor:
        """The mean image (B, C, H, W), 0 ... 255 as -1 ... 1."""
        ...

    def sample(self, parameters: Tensor, noise: Noise) -> Tensor:
        """uint8 (B, C, H, W)."""
        ...


class LogisticMixture:
    """A mixture of discretised logistics (Salimans et al. 2017)."""

    binary = False

    def __init__(self, channels: int, mixtures: int) -> None:
        self.channels, self.repeated = channels, mixtures
        self.outputs = logistic_mixture_channels(channels, mixtures)
        self.location: tuple[int, int] | None = (mixtures, mixtures * (1 + channels))
        self.idle = int(mixtures == 1)  # the logit of one component alone

    def start(self, variance: float) -> Tensor:
        start = logistic_mixture_start(self.channels, self.repeated)
        scales = slice(self.repeated * (1 + self.channels), self.repeated * (1 + 2 * self.channels))
        start[scales] = 0.5 * math.log(3 * variance) - math.log(math.pi)  # a logistic's variance: (pi s)^2 / 3
        return start

    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        return logistic_mixture_log_prob(x, parameters, self.repeated)

    def log_density(self, value: Tensor, parameters: Tensor) -> Tensor:
        """Of continuous pixels (B, C, H, W) in -1 ... 1, as Gaussians, in nats (B,): for derivatives in the pixels."""
        return logistic_mixture_log_density(value, parameters, self.repeated)

    def mean(self, parameters: Tensor) -> Tensor:
        return logistic_mixture_mean(parameters, self.channels, self.repeated)

    def sample(self, parameters: Tensor, noise: Noise) -> Tensor:
        return sample_logistic_mixture(parameters, self.channels, self.repeated, noise, "pixels")


class Categorical:
    """256 probabilities for every number, by a softmax (van den Oord et al. 2016)."""

    binary = False
    location: tuple[int, int] | None = None
    repeated = 1
    idle = 0

    def __init__(self, channels: int) -> None:
        self.channels, self.outputs = channels, 256 * channels

    def start(self, variance: float) -> Tensor:
        return torch.zeros(self.outputs)

    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        levels = x.long().repeat_interleave(by_image(x, parameters).shape[1], 0)
        return -F.cross_entropy(self._logits(parameters), levels, reduction="none").flatten(1).sum(1)

    def mean(self, parameters: Tensor) -> Tensor:
        levels = torch.linspace(-1, 1, 256, dtype=parameters.dtype, device=parameters.device)
        return torch.einsum("blchw,l->bchw", self._logits(parameters).softmax(1), levels)

    def sample(self, parameters: Tensor, noise: Noise) -> Tensor:
        logits = self._logits(parameters)
        gumbel = -torch.log(-torch.log(noise.uniform(tuple(logits.shape[1:]), "pixels").to(logits.dtype)))
        return (logits + gumbel).argmax(1).to(torch.uint8)

    def _logits(self, parameters: Tensor) -> Tensor:
        """(B, 256, C, H, W)."""
        return parameters.reshape(len(parameters), 256, self.channels, *parameters.shape[2:])


class Bernoulli:
    """One bit a number, whether it is at least 128: of grey images what papers call binarised."""

    binary = True
    location: tuple[int, int] | None = None
    repeated = 1
    idle = 0

    def __init__(self, channels: int) -> None:
        self.outputs = channels

    def start(self, variance: float) -> Tensor:
        return torch.zeros(self.outputs)

    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        logits = by_image(x, parameters.flatten(1))
        half = (x >> 7).flatten(1).to(parameters.dtype).sub_(0.5)  # comparisons of bytes take ten times as long
        # log P = sum_i l_i (x_i - 1/2) - |l_i| / 2 + log sigmoid |l_i|, and of factors in [1/2, 1] one logarithm does.
        sizes = logits.abs()
        whole = torch.matmul(half[:, None], logits.mT)[:, 0] - 0.5 * sizes.sum(2)
        factors = sizes.sigmoid_().reshape(*sizes.shape[:2], -1, _most_factors(sizes.shape[2]))
        return (whole + factors.prod(3).log().sum(2)).flatten()

    def mean(self, parameters: Tensor) -> Tensor:
        return 2 * parameters.sigmoid() - 1

    def sample(self, parameters: Tensor, noise: Noise) -> Tensor:
        """0 and 255."""
        u = noise.uniform(tuple(parameters.shape[1:]), "pixels").to(parameters.dtype)
        return (u < parameters.sigmoid()).to(torch.uint8) * 255


def observation(name: str, channels: int, mixtures: int) -> Observation:
    """ "logistic" (a mixture of `mixtures`), "categorical" or "bernoulli"."""
    if name == "logistic":
        return LogisticMixture(channels, mixtures)
    if name == "categorical":
        return Categorical(channels)
    if name == "bernoulli":
        return Bernoulli(channels)
    raise OodbenchError(f"Unknown observation {name!r}: take logistic, categorical or bernoulli.")


def _most_factors(count: int) -> int:
    """The largest divisor of `count` that is at most `_FACTORS`."""
    return next(m for m in range(_FACTORS, 0, -1) if count % m == 0)
