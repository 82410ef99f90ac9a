"""Stochastic vector quantisation: P(code = k | z) proportional to exp(-|z - e_k|^2 / temperature), place by place."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["code_log_probs", "code_probs", "draw_codes", "means_of_clusters", "straight_through"]

_LEAST = -60.0  # log-probabilities below come to nothing, but as denormal numbers take fifty times as long


def code_log_probs(z: Tensor, codebook: Tensor, temperature: Tensor) -> Tensor:
    """log P(code | z) in nats (..., K), of vectors (..., d), a codebook (K, d) and a temperature ()."""
    # |z|^2 is the same for all codes: the softmax does not see it.
    products = z @ codebook.T
    return F.log_softmax((2 * products - codebook.square().sum(1)) / temperature, -1)


def code_probs(log_probs: Tensor) -> Tensor:
    """Their exponential."""
    return log_probs.clamp_min(_LEAST).exp()


def draw_codes(log_probs: Tensor, u: Tensor) -> Tensor:
    """int64 (..., n) codes drawn from log_probs (..., K) by their distribution function and uniforms u (..., n)."""
    distribution = code_probs(log_probs).cumsum(-1)
    # Rounding leaves some sums below 1. What lies beyond goes to the last code that adds anything, and not to the last
    # of all: where that one is as good as impossible, its importance weight would be huge.
    u = torch.minimum(u, distribution[..., -1:]).contiguous()
    return torch.searchsorted(distribution, u).clamp_max(log_probs.shape[-1] - 1)  # NaN would be beyond


def straight_through(codes: Tensor, log_probs: Tensor, codebook: Tensor) -> Tensor:
    """The vectors (..., d) of the codes (...), with a surrogate gradient in the probabilities log_probs (..., K).

    Their gradient is that of the mean vector sum_k P(k) e_k, without bias for what is linear in the vectors (Bengio et
    al. 2013). The codebook's own gradient is exact. Cohen et al. 2022 relax the draw by Gumbel noise to the same end.
    """
    probs = code_probs(log_probs)
    hard = F.one_hot(codes, log_probs.shape[-1]).to(probs.dtype)
    return (hard + probs - probs.detach()) @ codebook


def means_of_clusters(points: Tensor, count: int, rounds: int = 10) -> Tensor:
    """(count, d): k-means of (n, d), n >= count, from points evenly apart; an empty cluster restarts at an outlier."""
    centres = points[torch.linspace(0, len(points) - 1, count, device=points.device).long()].clone()
    for _ in range(rounds):
        distance, nearest = torch.cdist(points, centres).min(1)
        sizes = torch.bincount(nearest, minlength=count)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        empty = sizes == 0
        centres = sums / sizes.clamp_min(1)[:, None]
        centres[empty] = points[distance.topk(int(empty.sum())).indices]
    return centres
