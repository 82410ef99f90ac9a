"""Every metric against its definition, spelled out slowly, and against scikit-learn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from oodbench.errors import OodbenchError
from oodbench.evaluation import METRICS, Levels, aupr_in, aupr_out, auroc, count_nonfinite, evaluate_scores, fpr95

# Few distinct values, so that ties are the rule.
tied = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=40)


def auroc_by_pairs(score_in, score_out):
    return float(np.mean([(b > a) + 0.5 * (b == a) for a in score_in for b in score_out]))


def fpr95_by_definition(score_in, score_out):
    for t in sorted(set(score_out), reverse=True):
        if sum(s >= t for s in score_out) * 100 >= 95 * len(score_out):
            return float(np.mean(np.asarray(score_in) >= t))
    raise AssertionError("the smallest score is reached by all")


def labelled(score_in, score_out):
    return np.r_[np.zeros(len(score_in)), np.ones(len(score_out))], np.r_[score_in, score_out]


@given(tied, tied)
def test_auroc_is_the_share_of_pairs_won_and_ties_count_half(score_in, score_out):
    value = auroc(Levels.of(score_in, score_out))
    assert value == pytest.approx(auroc_by_pairs(score_in, score_out), abs=1e-12)
    assert value == pytest.approx(roc_auc_score(*labelled(score_in, score_out)), abs=1e-12)


@given(tied, tied)
def test_aupr_is_sklearns_average_precision_in_both_roles(score_in, score_out):
    levels = Levels.of(score_in, score_out)
    labels, scores = labelled(score_in, score_out)
    assert float(aupr_out(levels)) == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    assert float(aupr_in(levels)) == pytest.approx(average_precision_score(1 - labels, -scores), abs=1e-12)


@given(tied, tied)
def test_fpr95_is_its_definition_with_ties(score_in, score_out):
    assert float(fpr95(Levels.of(score_in, score_out))) == fpr95_by_definition(score_in, score_out)


@pytest.mark.parametrize("m", [1, 19, 20, 21, 40, 100, 1000])
def test_fpr95_lets_exactly_five_percent_go(m):
    score_out = np.arange(m, dtype=float)
    score_in = score_out - 0.5  # how many of them pass tells where the threshold stands
    assert float(fpr95(Levels.of(score_in, score_out))) == fpr95_by_definition(score_in, score_out)


@given(tied, tied)
def test_a_monotone_transform_changes_nothing(score_in, score_out):
    before = evaluate_scores(score_in, score_out)
    assert evaluate_scores(np.exp(score_in) * 1e-9 - 5e3, np.exp(score_out) * 1e-9 - 5e3) == before


@given(tied, tied)
def test_swapping_the_sets_and_the_sign_swaps_the_roles(score_in, score_out):
    levels = Levels.of(score_in, score_out)
    swapped = Levels.of(-np.asarray(score_out), -np.asarray(score_in))
    assert auroc(swapped) == pytest.approx(auroc(levels))
    assert float(aupr_in(swapped)) == pytest.approx(float(aupr_out(levels)))
    assert auroc(Levels.of(score_out, score_in)) == pytest.approx(1 - auroc(levels))


@pytest.mark.parametrize("offset", [10_000.0, -10_000.0])
def test_thousandths_of_a_nat_count_at_ten_thousand_nats(offset):
    rng = np.random.default_rng(0)
    order = rng.permutation(4000)
    score_in, score_out = order[:2500], order[2500:]
    near = evaluate_scores(offset + 1e-3 * score_in, offset + 1e-3 * score_out)
    assert near == evaluate_scores(score_in, score_out)
    split = evaluate_scores(offset + 1e-3 * np.arange(1000), offset + 1e-3 * np.arange(1000, 2000))
    assert [split[name]["value"] for name in METRICS] == [1.0, 1.0, 1.0, 0.0]


def test_scores_on_both_sides_of_zero_at_ten_thousand_nats():
    result = evaluate_scores(np.full(50, -10_000.0), np.full(50, 10_000.0))
    assert result["auroc"]["value"] == 1.0


def test_constant_scores_are_worth_nothing():
    result = evaluate_scores(np.full(300, 7.25), np.full(100, 7.25))
    assert result["auroc"]["value"] == 0.5
    assert result["aupr_out"]["value"] == 0.25  # the prevalence
    assert result["aupr_in"]["value"] == 0.75
    assert result["fpr95"]["value"] == 1.0


def test_nan_ranks_where_it_harms_the_detector_most():
    good_in, good_out = np.arange(10.0), np.arange(100.0, 110.0)
    result = evaluate_scores(np.r_[good_in, np.nan], np.r_[good_out, np.nan])
    assert result == evaluate_scores(np.r_[good_in, 1000.0], np.r_[good_out, -1000.0])
    assert evaluate_scores([np.nan], [np.nan])["auroc"]["value"] == 0.0


def test_infinite_scores_rank_naturally_and_are_counted():
    assert auroc(Levels.of([-np.inf, 0.0], [np.inf, 1e308])) == 1.0
    assert auroc(Levels.of([np.inf], [np.inf])) == 0.5
    assert count_nonfinite([np.nan, 1.0, -np.inf], [np.inf, 0.0]) == 3


def test_float32_scores_keep_their_order():
    score = np.nextafter(np.float32(3.0), np.float32(4.0))
    assert auroc(Levels.of(np.float32([3.0]), np.float32([score]))) == 1.0


@pytest.mark.parametrize("scores", [([], [1.0]), ([1.0], []), (np.zeros((3, 2)), [1.0])])
def test_scores_that_cannot_be_evaluated_are_told_so(scores):
    with pytest.raises(OodbenchError, match="scores"):
        evaluate_scores(*scores)
