"""What scores on many weights share: importance weights of the members, in log-space."""

import numpy as np

from oodbench.errors import OodbenchError

__all__ = ["excess_sample_size", "of_members", "weight_entropy"]


def of_members(log_px_members: np.ndarray) -> np.ndarray:
    """The column in float64 (N, M); `OodbenchError` for a single member, which disagrees with nobody."""
    if log_px_members.ndim != 2 or log_px_members.shape[1] < 2:
        raise OodbenchError("Scores of disagreement need at least 2 members: train the posterior with more.")
    return log_px_members.astype(np.float64)


@np.errstate(invalid="ignore")  # where no member gives p > 0
def excess_sample_size(log_px: np.ndarray) -> np.ndarray:
    """log(ESS - 1) (N,) of members' log p (N, M), with ESS = 1 / sum_m w_m^2 and w = softmax over m.

    As sum w = 1, ESS - 1 = sum_{i != j} w_i w_j / sum_i w_i^2: a sum of positive terms, which stays exact where one
    member is ahead by tens of nats and ESS itself is 1 in every floating-point format. A member with p = 0 has no
    weight; NaN where all have, whose weights would be 0 / 0.
    """
    i, j = np.triu_indices(log_px.shape[1], 1)
    pairs = np.logaddexp.reduce(log_px[:, i] + log_px[:, j], axis=1)
    excess: np.ndarray = np.log(2) + pairs - np.logaddexp.reduce(2 * log_px, axis=1)
    return excess


@np.errstate(divide="ignore", invalid="ignore")  # the log(0) of a total that underflowed is replaced at once
def weight_entropy(log_px: np.ndarray) -> np.ndarray:
    """log H (N,), H = -sum_m w_m log w_m in nats, w = softmax over m of members' log p (N, M).

    The largest weight is 1 - r with a tiny r: its share of H is taken from r's logarithm, not from 1 - r. A member with
    p = 0 adds nothing; NaN where all have, whose weights would be 0 / 0.
    """
    ordered = np.sort(log_px, axis=1)
    gaps = ordered - ordered[:, -1:]  # the last is 0
    rest: np.ndarray = np.logaddexp.reduce(gaps[:, :-1], axis=1)  # log of r / (1 - r)
    total = np.log1p(np.exp(rest))  # -log of the largest weight
    log_weights = gaps - total[:, None]
    log_total = np.where(rest < -30, rest, np.log(total))
    surprise = np.concatenate([np.log(-log_weights[:, :-1]), log_total[:, None]], axis=1)
    surprise[np.isneginf(log_weights)] = 0.0  # w log w = 0 at w = 0
    entropy: np.ndarray = np.logaddexp.reduce(log_weights + surprise, axis=1)
    return entropy
