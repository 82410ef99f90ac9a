"""Stratified bootstrap for the metrics that have no simple variance."""

from collections.abc import Callable, Collection, Iterator, Mapping

import numpy as np

from oodbench.evaluation.levels import Levels
from oodbench.evaluation.unseen import unseen_interval

__all__ = ["bootstrap_intervals"]

_CELLS = 1 << 16  # resamples x levels at a time: the working set stays in the cores' caches


def bootstrap_intervals(
    metrics: Mapping[str, Callable[[Levels], np.ndarray]],
    levels: Levels,
    *,
    seed: int = 0,
    n_resamples: int = 1000,
    confidence: float = 0.95,
    biased: Collection[str] = (),
) -> dict[str, tuple[float, float]]:
    """(low, high) of every metric: percentiles over resamples of n in- and m out-of-distribution images each.

    All metrics see the same resamples, and the same seed gives the same intervals. Those named in `biased` lie above
    the truth in samples and once more as far above it in resamples, by what the resamples' mean exceeds the metric's
    value: their percentiles are moved back by twice that. The interval is widened to hold the metric's own value where
    it does not; where it has no width, `unseen_interval` with min(n, m) images takes its place.
    """
    chunks: dict[str, list[np.ndarray]] = {name: [] for name in metrics}
    for resample in _resamples(levels, seed, n_resamples):
        for name, metric in metrics.items():
            chunks[name].append(metric(resample))
    intervals = {}
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    for name, metric in metrics.items():
        value = float(metric(levels))
        values = np.concatenate(chunks[name])
        low, high = (float(end) for end in np.quantile(values, tails))
        if name in biased and low < high:
            shift = 2 * (float(values.mean()) - value)
            low, high = max(0.0, low - shift), min(1.0, high - shift)
        low, high = min(low, value), max(high, value)
        if low == high:
            low, high = unseen_interval(value, min(levels.n_in, levels.n_out), confidence)
        intervals[name] = low, high
    return intervals


def _resamples(levels: Levels, seed: int, n_resamples: int) -> Iterator[Levels]:
    rng = np.random.default_rng(seed)
    size = len(levels.inside)
    at_in = np.repeat(np.arange(size), levels.inside)  # the level of every image
    at_out = np.repeat(np.arange(size), levels.outside)
    step = max(1, _CELLS // (size + len(at_in) + len(at_out)))
    for start in range(0, n_resamples, step):
        count = min(step, n_resamples - start)
        yield Levels(_draw(rng, at_in, size, count), _draw(rng, at_out, size, count))


def _draw(rng: np.random.Generator, at: np.ndarray, size: int, count: int) -> np.ndarray:
    """int64 (count, size): multinomial counts, by drawing images rather than levels (a binomial a level is slower)."""
    drawn = at[rng.integers(0, len(at), size=(count, len(at)), dtype=np.int32)]
    drawn += size * np.arange(count)[:, None]
    return np.bincount(drawn.reshape(-1), minlength=count * size).reshape(count, size)
