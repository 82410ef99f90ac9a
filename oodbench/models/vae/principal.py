"""Probabilistic principal components, which linear encoders and decoders start at."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Principal", "mean_alone", "probabilistic_pca"]

_LEAST_VARIANCE = 1e-6  # of a number on -1 ... 1, however alike the images are


@dataclass(frozen=True)
class Principal:
    """Probabilistic principal components of rows (N, d): x = W z + m + s e (Tipping & Bishop 1999, Equation 7)."""

    w: Tensor  # (d, R) = U (L - s^2)^(1/2)
    mean: Tensor  # (d,)
    kept: Tensor  # (R,): the largest variances L
    rest: float  # s^2, the mean of all others

    @property
    def gain(self) -> Tensor:
        """(R, d): q(z | x) = N(gain (x - m), s^2 / L)."""
        return (self.w / self.kept).T


def probabilistic_pca(rows: Tensor, mean: Tensor, most: int) -> Principal:
    """Of float64 rows (N, d) around `mean` (d,), with at most `most` components and at least one number left over."""
    centred = rows - mean
    variances, axes = torch.linalg.eigh(centred.T @ centred / len(rows))
    variances, axes = variances.flip(0).clamp_min(_LEAST_VARIANCE), axes.flip(1)
    rank = min(most, rows.shape[1] - 1)
    rest = float(variances[rank:].mean())
    kept = variances[:rank].clamp_min(rest * (1 + 1e-6))
    return Principal(axes[:, :rank] * (kept - rest).sqrt(), mean, kept, rest)


def mean_alone(rows: Tensor) -> Principal:
    """The mean of rows (N, d), all their variance left over: its one component says nothing."""
    mean = rows.mean(0)
    rest = (rows - mean).square().mean().clamp_min(_LEAST_VARIANCE)
    return Principal(rows.new_zeros(len(mean), 1), mean, rest[None], float(rest))
