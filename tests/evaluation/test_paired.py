"""The paired test against DeLong's own equations, against resampling, and against what a test promises."""

from itertools import permutations
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oodbench.errors import OodbenchError
from oodbench.evaluation import SMALLEST_P, Levels, Wins, auroc, delong_variance, difference, holm

tied = st.integers(-3, 3).map(float) | st.sampled_from([float("nan"), float("inf"), float("-inf")])
sizes = st.tuples(st.integers(2, 12), st.integers(2, 12))


def delong_covariance(scores):
    """DeLong 1988, equations 4 to 6, of k pairs of scores, over whole n x m matrices: (areas (k,), (k, k))."""
    areas, v10, v01 = [], [], []
    for score_in, score_out in scores:
        psi = np.array([[float(y > x) + 0.5 * float(y == x) for y in score_out] for x in score_in])
        areas.append(psi.mean())
        v01.append(psi.mean(axis=1))
        v10.append(psi.mean(axis=0))
    return np.array(areas), np.cov(v10) / len(v10[0]) + np.cov(v01) / len(v01[0])


def correlated(rng, n, m, rho, shifts=(1.0, 1.0), deviations=(1.0, 1.0)):
    """Two detectors' scores of n in- and m out-of-distribution images."""
    cov = [[1, rho], [rho, 1]]
    inside = rng.multivariate_normal([0, 0], cov, n).T
    outside = np.array(shifts)[:, None] + np.array(deviations)[:, None] * rng.multivariate_normal([0, 0], cov, m).T
    return [(inside[i], outside[i]) for i in (0, 1)]


@given(st.data())
def test_wins_are_counts_of_beaten_images_whatever_the_scores(data):
    n, m = data.draw(sizes)
    score_in = data.draw(st.lists(tied, min_size=n, max_size=n))
    score_out = data.draw(st.lists(tied, min_size=m, max_size=m))
    # A NaN harms the detector most.
    ranked_in = np.nan_to_num(np.clip(score_in, -9, 9), nan=10)
    ranked_out = np.nan_to_num(np.clip(score_out, -9, 9), nan=-10)
    wins = Wins.of(score_in, score_out)
    assert wins.outs.tolist() == [sum(2 * (y > x) + (y == x) for x in ranked_in) for y in ranked_out]
    assert wins.ins.tolist() == [sum(2 * (y > x) + (y == x) for y in ranked_out) for x in ranked_in]
    assert wins.auroc == pytest.approx(auroc(Levels.of(score_in, score_out)), abs=1e-15)


@pytest.mark.parametrize("decimals", [0, 1, 8])
def test_the_difference_is_the_contrast_of_delongs_covariance(decimals):
    rng = np.random.default_rng(1)
    for n, m in ((2, 2), (5, 31), (40, 17)):
        pairs = [(a.round(decimals), b.round(decimals)) for a, b in correlated(rng, n, m, 0.6, (0.4, 1.1))]
        areas, covariance = delong_covariance(pairs)
        contrast = np.array([1, -1])
        deviation = np.sqrt(contrast @ covariance @ contrast)
        found = difference(*(Wins.of(*pair) for pair in pairs))
        if deviation < 1e-12:
            assert found.bounded
            continue
        assert found.value == pytest.approx(areas[0] - areas[1], abs=1e-12)
        assert found.z == pytest.approx((areas[0] - areas[1]) / deviation)
        assert found.p == pytest.approx(2 * NormalDist().cdf(-abs(found.z)), rel=1e-6)
        assert found.low == pytest.approx(max(-1, found.value - 1.959964 * deviation), abs=1e-6)
        assert found.high == pytest.approx(min(1, found.value + 1.959964 * deviation), abs=1e-6)


def test_the_other_way_round_it_is_the_negative():
    a, b = (Wins.of(*pair) for pair in correlated(np.random.default_rng(2), 30, 40, 0.5, (0.5, 1.0)))
    one, other = difference(a, b), difference(b, a)
    assert (other.value, other.low, other.high, other.z, other.p) == (-one.value, -one.high, -one.low, -one.z, one.p)


def test_against_a_score_that_knows_nothing_the_variance_is_that_of_one_auroc():
    """All-equal scores have components of exactly 1/2, which take no part in the variance."""
    rng = np.random.default_rng(3)
    score_in, score_out = rng.normal(0, 1, 50), rng.normal(1, 1, 60)
    found = difference(Wins.of(score_in, score_out), Wins.of(np.zeros(50), np.zeros(60)))
    deviation = np.sqrt(delong_variance(Levels.of(score_in, score_out)))
    assert (found.high - found.low) / 2 == pytest.approx(1.959964 * deviation, rel=1e-6)


def test_the_interval_agrees_with_a_paired_bootstrap_and_pairing_matters():
    rng = np.random.default_rng(4)
    n, m = 300, 200
    pairs = correlated(rng, n, m, 0.9, (1.0, 1.2))
    found = difference(*(Wins.of(*pair) for pair in pairs))
    resampled = []
    for _ in range(1500):
        rows, others = rng.integers(0, n, n), rng.integers(0, m, m)
        a, b = (auroc(Levels.of(score_in[rows], score_out[others])) for score_in, score_out in pairs)
        resampled.append(a - b)
    deviation = (found.high - found.low) / (2 * 1.959964)
    assert deviation == pytest.approx(np.std(resampled), rel=0.07)  # known to 1.8 %
    unpaired = np.sqrt(sum(delong_variance(Levels.of(*pair)) for pair in pairs))
    assert deviation < 0.5 * unpaired


@pytest.mark.parametrize(("rho", "shift"), [(0.0, 0.0), (0.7, 1.0), (0.95, 1.5)])
def test_under_no_difference_the_test_rejects_as_often_as_it_says(rho, shift):
    rng = np.random.default_rng(5)
    trials = 1500
    found = [
        difference(*(Wins.of(*pair) for pair in correlated(rng, 70, 90, rho, (shift, shift)))) for _ in range(trials)
    ]
    for level in (0.05, 0.2):
        rejected = sum(one.p < level for one in found) / trials
        assert abs(rejected - level) < 4 * np.sqrt(level * (1 - level) / trials)
    assert all((one.p < 0.05) == (one.low > 0 or one.high < 0) for one in found)


def test_the_interval_covers_a_true_difference():
    rng = np.random.default_rng(6)
    truth = NormalDist().cdf(0.5 / np.sqrt(1 + 4)) - NormalDist().cdf(1 / np.sqrt(2))
    covered = 0
    for _ in range(1000):
        pairs = correlated(rng, 80, 60, 0.6, (0.5, 1.0), (2.0, 1.0))
        found = difference(*(Wins.of(*pair) for pair in pairs))
        covered += found.low <= truth <= found.high
    assert 920 <= covered <= 980  # 95 % of 1,000 within four standard deviations


def bound(k):
    return 1 - 0.025 ** (1 / k)


@pytest.mark.parametrize("scores", ["the same", "the same order", "two perfect ones", "two that know nothing"])
def test_no_difference_anywhere_is_no_evidence_of_one_and_has_an_interval(scores):
    rng = np.random.default_rng(7)
    n, m = 30, 50
    inside, outside = rng.normal(0, 1, n), rng.normal(0.5, 1, m)
    (a, b) = {
        "the same": ((inside, outside), (inside, outside)),
        "the same order": ((inside, outside), (np.exp(inside), np.exp(outside))),
        "two perfect ones": ((inside, outside + 100), (rng.normal(0, 1, n), rng.normal(100, 1, m))),
        "two that know nothing": ((np.zeros(n), np.zeros(m)), (np.ones(n), np.ones(m))),
    }[scores]
    found = difference(Wins.of(*a), Wins.of(*b))
    assert (found.value, found.z, found.p, found.bounded) == (0.0, None, 1.0, True)
    assert (found.low, found.high) == pytest.approx((-bound(30), bound(30)))


@pytest.mark.parametrize(("n", "m"), [(40, 70), (70, 40)])
def test_perfect_against_inverted_is_certain_though_the_variance_is_zero(n, m):
    low, high = np.arange(float(n)), 1e4 + np.arange(float(m))
    found = difference(Wins.of(low, high), Wins.of(-low, -high))
    assert (found.value, found.z, found.bounded) == (1.0, None, True)
    assert found.high == 1.0
    assert found.low == pytest.approx(1 - 2 * bound(40))
    assert found.p == pytest.approx(2 * 2.0**-40)


@pytest.mark.parametrize("k", [1, 2, 4, 5, 6, 8, 9, 10, 60])
def test_bounded_interval_and_p_value_tell_the_same(k):
    """d = 1/2 on every image: a perfect score against constant ones."""
    found = difference(Wins.of(np.arange(float(k)), 100 + np.arange(70.0)), Wins.of(np.zeros(k), np.zeros(70)))
    assert found.bounded
    assert found.value == 0.5
    assert 0 < found.p <= 1
    assert (found.p < 0.05) == (found.low > 0)


def test_p_values_never_become_zero():
    n = 20_000
    perfect, inverted = Wins.of(np.zeros(n), np.ones(n)), Wins.of(np.ones(n), np.zeros(n))
    assert difference(perfect, inverted).p == SMALLEST_P
    rng = np.random.default_rng(8)
    good, bad = Wins.of(rng.normal(0, 1, n), rng.normal(3, 1, n)), Wins.of(rng.normal(0, 1, n), rng.normal(0, 1, n))
    assert not difference(good, bad).bounded
    assert difference(good, bad).p == SMALLEST_P


def test_a_single_image_of_a_kind_proves_nothing():
    found = difference(Wins.of([0.0], [1.0, 2.0]), Wins.of([3.0], [1.0, 2.0]))
    assert (found.value, found.p, found.z) == (1.0, 1.0, None)
    assert found.low < 0


def test_scores_of_different_images_cannot_be_paired():
    with pytest.raises(OodbenchError, match="3 / 2 and of 4 / 2"):
        difference(Wins.of(np.zeros(3), np.zeros(2)), Wins.of(np.zeros(4), np.zeros(2)))


def stepwise(p, level):
    """Holm's procedure as it is defined: from the smallest p, reject while p_(i) <= level / (k - i)."""
    rejected = set()
    for place, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        if p[i] > level / (len(p) - place):
            break
        rejected.add(i)
    return rejected


@given(st.lists(st.floats(0.0001, 1), min_size=1, max_size=8), st.floats(0.001, 0.5))
def test_holm_rejects_what_the_stepwise_procedure_rejects(p, level):
    adjusted = holm(p)
    borderline = any(abs(a - level) < 1e-9 for a in adjusted)
    assert borderline or {i for i, a in enumerate(adjusted) if a <= level} == stepwise(p, level)


def test_holm_by_hand_in_any_order_and_below_bonferroni():
    expected = {0.01: 0.04, 0.02: 0.06, 0.03: 0.06, 0.04: 0.06}
    for p in permutations(expected):
        assert holm(p) == pytest.approx([expected[one] for one in p])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_keeps_the_family_wise_error():
    rng = np.random.default_rng(9)
    errors = sum(min(holm(rng.uniform(size=5))) < 0.05 for _ in range(4000))
    assert errors / 4000 == pytest.approx(1 - (1 - 0.05 / 5) ** 5, abs=4 * np.sqrt(0.05 * 0.95 / 4000))
