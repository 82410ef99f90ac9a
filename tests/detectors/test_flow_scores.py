"""Scores of flows where their parts are known in closed form."""

import sys

import numpy as np
import pytest

from oodbench.detector import Columns
from oodbench.plugins import load_builtin
from oodbench.registry import DETECTORS

load_builtin()


def fitted(name: str, validation: Columns):
    detector = DETECTORS.get(name)()
    detector.fit(validation)
    return detector


def test_the_parts_of_a_scaling_flows_likelihood() -> None:
    # z = 3 x on D = 2 dimensions: log p(z) = -9 |x|^2 / 2 - log 2 pi, log|det| = 2 log 3 whatever x is.
    squares = np.array([0.0, 1.0, 4.0])
    log_pz = -4.5 * squares - np.log(2 * np.pi)
    parts = Columns({"log_pz": log_pz, "log_det": np.full(3, 2 * np.log(3)), "log_px": log_pz + 2 * np.log(3)}, 2)
    latent, volume = (fitted(name, parts).score(parts) for name in ("latent_likelihood", "volume"))
    np.testing.assert_allclose(latent - latent[0], [0, 4.5, 18], atol=1e-12)
    assert (volume == volume[0]).all()  # exactly: an AUROC of 0.5
    np.testing.assert_allclose(latent + volume, fitted("likelihood", parts).score(parts), atol=1e-12)


def test_inflow_scores_by_the_flow_where_the_gate_is_open_and_by_the_images_norm_where_not() -> None:
    parts = Columns(
        {
            "log_px_open": np.array([-10.0, -20.0, -30.0]),
            "log_px_closed": np.array([-1.0, -2.0, -3.0]),
            "attention_margin": np.array([0.2, -1e-9, 0.0]),
        },
        2,
    )
    np.testing.assert_array_equal(fitted("inflow", parts).score(parts), [10, 2, 30])


def batch(mean: float, rows: int, seed: int) -> Columns:
    encodings = np.random.default_rng(seed).normal(mean, 1, (rows, 32))
    logs = {"log_px_open": np.full(rows, -10.0), "log_px_closed": np.full(rows, -400.0)}
    return Columns({"attention_encoding": encodings, **logs}, 2, 250)


def test_the_published_gate_lets_batches_of_the_same_distribution_through_and_closes_out_others() -> None:
    detector = fitted("inflow_published", batch(0.0, 1000, 0))
    assert list(detector.score(batch(0.4, 500, 1))) == [400, 400]
    same = detector.score(batch(0.0, 40 * 250, 2))
    assert same.shape == (40,)
    assert (same == 400).mean() < 0.2  # 5 % of them, as for any such test
    assert set(same) <= {10.0, 400.0}


def test_the_permutation_tests_statistic_is_the_maximum_mean_discrepancy() -> None:
    """Its p-values are uniform where both are of one distribution, and agree with the direct definition's."""
    module = sys.modules[DETECTORS.get("inflow_published").__module__]
    random = np.random.default_rng(3)
    p_values = []
    for number in range(150):
        sample, references = random.normal(size=(10, 2)), random.normal(size=(40, 2))
        sums = module.row_sums(references, references, 1.0)
        p = module.permutation_p_value(sample, references, 1.0, sums)
        p_values.append(p)
        if number < 3:
            assert p == pytest.approx(direct_p_value(sample, references), abs=1e-9)
    quarters = np.histogram(p_values, bins=4, range=(0, 1 + 1e-9))[0]
    assert quarters.min() > 18  # of 37.5
    assert quarters.max() < 60


def direct_p_value(sample: np.ndarray, references: np.ndarray) -> float:
    def discrepancy(a: np.ndarray, b: np.ndarray) -> float:
        def mean(x: np.ndarray, y: np.ndarray) -> float:
            return float(np.exp(-0.5 * ((x[:, None] - y[None]) ** 2).sum(2)).mean())

        return mean(a, a) + mean(b, b) - 2 * mean(a, b)

    pool, n = np.concatenate([sample, references]), len(sample)
    random = np.random.Generator(np.random.Philox(key=[0, n]))
    orders = [random.permutation(len(pool)) for _ in range(100)]
    observed = discrepancy(sample, references)
    return float(np.mean([discrepancy(pool[o[:n]], pool[o[n:]]) >= observed - 1e-12 for o in orders]))
