"""The intervals against independent computations, and against what an interval promises."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oodbench.evaluation import (
    Levels,
    aupr_in,
    aupr_out,
    auroc,
    bootstrap_intervals,
    delong_interval,
    delong_variance,
    evaluate_scores,
    fpr95,
)

tied = st.lists(st.integers(-4, 4).map(float), min_size=2, max_size=30)


def delong_by_components(score_in, score_out):
    """DeLong 1988, equations 4 to 6, over the whole n x m matrix."""
    a, b = np.asarray(score_in)[:, None], np.asarray(score_out)[None, :]
    psi = (b > a) + 0.5 * (b == a)
    return psi.mean(axis=0).var(ddof=1) / psi.shape[1] + psi.mean(axis=1).var(ddof=1) / psi.shape[0]


@given(tied, tied)
def test_delong_variance_equals_the_structural_components(score_in, score_out):
    assert delong_variance(Levels.of(score_in, score_out)) == pytest.approx(
        delong_by_components(score_in, score_out), rel=1e-9, abs=1e-15
    )


def test_delong_variance_agrees_with_the_bootstrap():
    rng = np.random.default_rng(1)
    score_in, score_out = rng.normal(0, 1, 400).round(1), rng.normal(1, 1.5, 300).round(1)
    resampled = [auroc(Levels.of(rng.choice(score_in, 400), rng.choice(score_out, 300))) for _ in range(2000)]
    # The standard deviation of 2,000 draws is known to about 1.6 %.
    assert np.sqrt(delong_variance(Levels.of(score_in, score_out))) == pytest.approx(np.std(resampled), rel=0.06)


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.5])
def test_delong_interval_covers_the_truth(shift):
    from statistics import NormalDist

    truth = NormalDist().cdf(shift / np.sqrt(2))
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(1000):
        low, high = delong_interval(Levels.of(rng.normal(0, 1, 60), rng.normal(shift, 1, 80)))
        covered += low <= truth <= high
    assert 920 <= covered <= 980  # 95 % of 1,000 within four standard deviations


@pytest.mark.parametrize("shift", [-2.0, -0.5, 1.0])  # an inversion among them: AUROC 0.08, 0.36 and 0.76
def test_bootstrap_intervals_cover_the_truth(shift):
    rng = np.random.default_rng(3)
    metrics = {"aupr_in": aupr_in, "aupr_out": aupr_out, "fpr95": fpr95}
    many = Levels.of(rng.normal(0, 1, 400_000), rng.normal(shift, 1, 400_000))
    truth = {name: float(metric(many)) for name, metric in metrics.items()}
    covered = dict.fromkeys(metrics, 0)
    for trial in range(200):
        levels = Levels.of(rng.normal(0, 1, 200), rng.normal(shift, 1, 200))
        intervals = bootstrap_intervals(metrics, levels, seed=trial, n_resamples=200, biased=("aupr_in", "aupr_out"))
        for name, (low, high) in intervals.items():
            covered[name] += low <= truth[name] <= high
    assert min(covered.values()) >= 174, covered  # 95 % of 200 less five standard deviations


def test_bootstrap_resamples_are_stratified_and_of_full_size():
    seen = []

    def spy(levels):
        seen.append((np.atleast_2d(levels.inside), np.atleast_2d(levels.outside)))
        return np.zeros(levels.inside.shape[:-1])

    rng = np.random.default_rng(4)
    levels = Levels.of(rng.integers(0, 5, 300), rng.integers(0, 5, 70))
    bootstrap_intervals({"spy": spy}, levels, n_resamples=3000)
    inside, outside = np.concatenate([a for a, _ in seen[:-1]]), np.concatenate([b for _, b in seen[:-1]])
    assert len(inside) >= 3000 - 1
    assert (inside.sum(axis=1) == 300).all()
    assert (outside.sum(axis=1) == 70).all()
    # Multinomial counts: mean n p, variance n p (1 - p).
    share = levels.inside / 300
    np.testing.assert_allclose(inside.mean(axis=0), levels.inside, rtol=0.03)
    np.testing.assert_allclose(inside.var(axis=0), 300 * share * (1 - share), rtol=0.15)


def test_the_seed_alone_decides_the_bootstrap():
    rng = np.random.default_rng(5)
    scores = rng.normal(0, 1, 200), rng.normal(1, 1, 200)
    assert evaluate_scores(*scores, seed=7) == evaluate_scores(*scores, seed=7)
    assert evaluate_scores(*scores, seed=7)["fpr95"] != evaluate_scores(*scores, seed=8)["fpr95"]


@given(tied, tied)
def test_every_interval_holds_its_value_and_stays_in_the_unit_interval(score_in, score_out):
    for metric in evaluate_scores(score_in, score_out).values():
        assert 0.0 <= metric["low"] <= metric["value"] <= metric["high"] <= 1.0
        assert metric["low"] < metric["high"]


def test_auprs_of_an_inversion_are_corrected_and_fpr95_is_not():
    rng = np.random.default_rng(8)
    scores = rng.normal(0, 1, 100), rng.normal(-3.5, 1, 100)
    metrics = {"aupr_in": aupr_in, "aupr_out": aupr_out, "fpr95": fpr95}
    plain = bootstrap_intervals(metrics, Levels.of(*scores))
    given_out = evaluate_scores(*scores)
    truth = 0.3071  # aupr_out and aupr_in of a million images of each kind
    for name in ("aupr_in", "aupr_out"):
        assert not plain[name][0] <= truth <= plain[name][1]
        assert given_out[name]["low"] <= truth <= given_out[name]["high"]
    assert (given_out["fpr95"]["low"], given_out["fpr95"]["high"]) == plain["fpr95"]


def test_an_interval_that_misses_the_value_of_its_sample_is_widened():
    def one_above_its_resamples(levels):
        ends = levels.inside[..., 0] / levels.inside.sum(-1)
        return np.where(
            ends == 0.5, 0.9, ends / 2
        )  # the sample itself, and the few resamples that are alike, stand apart

    levels = Levels(np.array([500, 500]), np.array([500, 500]))
    low, high = bootstrap_intervals({"odd": one_above_its_resamples}, levels)["odd"]
    assert (low, high) == (pytest.approx(0.23, abs=0.01), 0.9)


def test_what_a_resample_adds_once_more_is_taken_off_twice():
    def lifted(levels):
        return levels.inside.max(-1) / levels.inside.sum(-1)  # of four equal levels the largest is more than a quarter

    levels = Levels(np.full(4, 100), np.full(4, 100))
    plain, moved = (bootstrap_intervals({"up": lifted}, levels, biased=biased)["up"] for biased in ((), ("up",)))
    rng = np.random.default_rng(0)
    lift = (rng.multinomial(400, np.full(4, 0.25), 100_000).max(1) / 400).mean() - 0.25
    assert plain[0] == 0.25  # widened down to the value
    assert plain[1] - moved[1] == pytest.approx(2 * lift, abs=0.002)
    assert moved[0] < 0.25 <= moved[1]


@pytest.mark.parametrize(("n", "m"), [(100, 40), (40, 100)])
def test_perfect_separation_has_the_exact_bound_of_the_smaller_set(n, m):
    low_scores, high_scores = np.arange(n, dtype=float), 1e4 + np.arange(m, dtype=float)
    perfect = evaluate_scores(low_scores, high_scores)
    bound = 0.025 ** (1 / 40)  # Clopper-Pearson for 40 of 40
    assert perfect["auroc"] == pytest.approx({"value": 1.0, "low": bound, "high": 1.0})
    assert perfect["aupr_in"] == perfect["aupr_out"] == perfect["auroc"]
    assert perfect["fpr95"] == pytest.approx({"value": 0.0, "low": 0.0, "high": 1 - bound})
    inverted = evaluate_scores(high_scores, low_scores)
    assert inverted["auroc"] == pytest.approx({"value": 0.0, "low": 0.0, "high": 1 - bound})


def test_the_exact_bound_agrees_with_clopper_and_pearson():
    from scipy.stats import binomtest

    exact = binomtest(40, 40).proportion_ci(0.95, "exact")
    low, high = delong_interval(Levels.of(np.zeros(40), np.ones(50)))
    assert (low, high) == pytest.approx((exact.low, exact.high))


def test_constant_scores_get_an_interval_around_one_half():
    low, high = delong_interval(Levels.of(np.zeros(50), np.zeros(60)))
    assert 0.4 < low < 0.5 < high < 0.6
    assert low + high == pytest.approx(1.0)


def test_ten_thousand_images_of_each_kind_take_seconds_at_most():
    rng = np.random.default_rng(6)
    scores = rng.normal(0, 1, 10_000), rng.normal(1, 1, 10_000)
    start = time.process_time()
    evaluate_scores(*scores)
    assert time.process_time() - start < 5  # about one; the slack is for a busy machine
