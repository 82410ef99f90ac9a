"""Scores on members' likelihoods: by hand, against the definitions, and at thousands of nats."""

from fractions import Fraction

import numpy as np
import pytest
from scipy.special import softmax

from oodbench.detector import Columns
from oodbench.errors import OodbenchError
from oodbench.plugins import load_builtin
from oodbench.registry import DETECTORS


def score(name: str, members: np.ndarray) -> np.ndarray:
    load_builtin()
    detector = DETECTORS.get(name)()
    return detector.score(Columns({"log_px_members": np.asarray(members)}, dimensions=10))


@pytest.fixture
def members() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 1.5, (200, 6))


def test_two_members_by_hand():
    """p = 1/4 and 3/4: mean 1/2, weights 1/4 and 3/4, ESS 16/10, entropy -1/4 log 1/4 - 3/4 log 3/4."""
    row = np.log([[0.25, 0.75]])
    low, high = row[0]
    assert score("marginal", row) == pytest.approx(np.log(2))
    assert score("disagreement", row) == pytest.approx(-np.log(float(Fraction(16, 10) - 1)))
    assert score("weight_entropy", row) == pytest.approx(-np.log(-0.25 * low - 0.75 * high))
    assert score("likelihood_std", row) == pytest.approx((high - low) / np.sqrt(2))
    assert score("waic", row) == pytest.approx((high - low) ** 2 / 2 - (low + high) / 2)


def test_against_the_definitions(members):
    w = softmax(members, axis=1)
    np.testing.assert_allclose(score("disagreement", members), -np.log(1 / (w**2).sum(1) - 1), rtol=1e-10)
    np.testing.assert_allclose(score("weight_entropy", members), -np.log(-(w * np.log(w)).sum(1)), rtol=1e-10)
    np.testing.assert_allclose(score("marginal", members), -np.log(np.exp(members).mean(1)), rtol=1e-10)
    np.testing.assert_allclose(score("waic", members), members.var(1, ddof=1) - members.mean(1), rtol=1e-12)


@pytest.mark.parametrize("name", ["disagreement", "weight_entropy", "likelihood_std"])
def test_a_common_shift_changes_no_disagreement(members, name):
    np.testing.assert_allclose(score(name, members - 10_000), score(name, members), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["disagreement", "weight_entropy"])
def test_gaps_of_hundreds_of_nats_are_still_told_apart(name):
    """Where ESS is 1 and the entropy 0 in float64, -log of either grows with the gap, one nat for one nat."""
    gaps = np.array([50.0, 51.0, 400.0, 2000.0])
    members = np.stack([np.full(4, -10_000.0), -10_000 - gaps, -10_000 - gaps - 5], 1)
    scores = score(name, members)
    assert np.isfinite(scores).all()
    assert (np.diff(scores) > 0).all()
    assert scores[1] - scores[0] == pytest.approx(1, abs=0.03)
    w = softmax(members, axis=1)
    assert (1 / (w**2).sum(1) == 1).all()  # what a direct computation would rank


def test_members_that_agree_are_the_least_surprising():
    agree, differ = np.full((1, 5), -3000.0), -3000 - np.arange(5.0)[None]
    for name in ("disagreement", "weight_entropy", "likelihood_std", "waic"):
        assert score(name, agree) < score(name, differ), name
    assert score("disagreement", agree) == pytest.approx(-np.log(4))  # ESS = M
    assert score("weight_entropy", agree) == pytest.approx(-np.log(np.log(5)))


@pytest.mark.filterwarnings("error")
def test_a_member_that_rules_an_image_out_has_no_weight():
    one, alone, none = [-100.0, -101.0, -np.inf], [-np.inf, -100.0, -np.inf], [-np.inf] * 3
    members = np.array([one, alone, none])
    for name in ("disagreement", "weight_entropy"):
        scores = score(name, members)
        assert scores[0] == pytest.approx(score(name, members[:1, :2])[0])
        assert scores[1] == np.inf  # ESS = 1, H = 0
        assert np.isnan(scores[2])


@pytest.mark.parametrize("name", ["marginal", "waic"])
def test_a_common_shift_of_the_log_likelihoods_shifts_their_averages(members, name):
    np.testing.assert_allclose(score(name, members - 10_000), score(name, members) + 10_000, rtol=1e-12)


def test_float32_columns_keep_their_order():
    members = (-10_000 - np.arange(12).reshape(3, 4) * np.array([[1], [10], [100]])).astype(np.float32)
    assert (np.diff(score("disagreement", members)) > 0).all()
    assert score("marginal", members).dtype == np.float64


def test_one_member_is_told_so():
    with pytest.raises(OodbenchError, match="at least 2 members"):
        score("waic", np.zeros((3, 1)))
    assert score("marginal", np.full((1, 1), -7.0)) == pytest.approx(7)
