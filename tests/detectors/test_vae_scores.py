"""Scores of models with latents: signs on models themselves, COPOD and DoSE against their definitions."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from oodbench.detector import Columns
from oodbench.errors import OodbenchError
from oodbench.plugins import load_builtin
from oodbench.registry import DETECTORS, STATISTICS

sys.path.append(str(Path(__file__).resolve().parents[1] / "models"))
from tiny_models import noise_of, smooth_images, tiny

load_builtin()

PATH = ("reconstruction_error", "posterior_mean_norm", "posterior_std_norm")


def fitted(name: str, validation: Columns):
    detector = DETECTORS.get(name)()
    detector.fit(validation)
    return detector


def path(values: np.ndarray) -> Columns:
    """Columns of (N, 3)."""
    return Columns(dict(zip(PATH, values.T, strict=True)), 12)


@torch.no_grad()
def columns_of(model: str) -> Columns:
    module = tiny(model, (1, 8, 8))
    found = module.statistics(smooth_images(9, (1, 8, 8)), noise_of(9))
    return Columns({name: column.numpy() for name, column in found.items()}, 64)


def test_the_bounds_two_terms_add_up_to_it() -> None:
    columns = columns_of("vae")
    scores = {name: fitted(name, columns).score(columns) for name in ("elbo", "reconstruction", "kl")}
    np.testing.assert_allclose(scores["reconstruction"] + scores["kl"], scores["elbo"], rtol=1e-5)
    assert (scores["kl"] >= 0).all()  # larger is further from the prior
    assert (scores["elbo"] >= scores["kl"]).all()  # of bytes: no log-probability is above 0


def test_an_image_that_gains_by_a_posterior_of_its_own_is_the_more_foreign() -> None:
    detector = DETECTORS.get("likelihood_regret")()
    scores = detector.score(Columns({"regret": np.array([0.5, 30.0, 2.0], dtype=np.float32)}, 64))
    np.testing.assert_array_equal(scores, [0.5, 30.0, 2.0])  # nats, unscaled: Equation 5 of Xiao et al. 2020


@pytest.mark.parametrize("model", ["rectangular", "conformal", "two-step"])
def test_on_a_manifold_the_reconstruction_grows_with_the_distance_from_the_surface(model: str) -> None:
    columns = columns_of(model)
    scores = fitted("reconstruction", columns).score(columns)
    assert (scores >= 0).all()  # weight x squared distance
    np.testing.assert_array_equal(scores, -columns["reconstruction"].astype(np.float64))


@torch.no_grad()
def test_the_reconstruction_error_is_the_distance_from_the_decoded_mean() -> None:
    module, x, noise = tiny("vae-mlp", (1, 8, 8)), smooth_images(5, (1, 8, 8)), noise_of(5)
    statistic = STATISTICS.get("reconstruction_error")
    assert statistic.applies(module)
    assert not statistic.applies(tiny("glow"))
    decoded = module.mean_image(module.encode(x)[0])
    expected = ((x / 127.5 - 1) - decoded).square().sum((1, 2, 3)).sqrt()
    torch.testing.assert_close(statistic.function(module, x, noise), expected)


def copod(known: np.ndarray, x: np.ndarray) -> float:
    """Algorithm 1 of the paper for one new image, by counting."""
    everything = np.concatenate([known, x[None]])
    left = [-math.log(np.mean(column <= value)) for column, value in zip(everything.T, x, strict=True)]
    right = [-math.log(np.mean(column >= value)) for column, value in zip(everything.T, x, strict=True)]
    third = [np.mean((column - column.mean()) ** 3) for column in known.T]
    skewed = [a if skewness < 0 else b for a, b, skewness in zip(left, right, third, strict=True)]
    return max(sum(left), sum(right), sum(skewed))


def test_copod_is_its_definition_ties_included() -> None:
    random = np.random.default_rng(0)
    known = np.round(random.gamma(2, 1, (80, 3)) * [1, -1, 1], 1)
    new = np.round(3 * random.normal(size=(50, 3)), 1)
    expected = [copod(known, x) for x in new]
    np.testing.assert_allclose(fitted("lpath", path(known)).score(path(new)), expected, rtol=1e-12)


def test_copod_of_the_corner_of_a_grid_by_hand() -> None:
    grid = np.arange(1.0, 100)[:, None].repeat(3, 1)
    scores = fitted("lpath", path(grid)).score(path(np.array([[0.0] * 3, [100.0] * 3, [50.0] * 3, [0.0, 50, 50]])))
    tail, middle = math.log(100), math.log(100 / 51)
    np.testing.assert_allclose(scores, [3 * tail, 3 * tail, 3 * middle, tail + 2 * middle], rtol=1e-12)


def test_copod_knows_no_units_and_no_common_direction() -> None:
    random = np.random.default_rng(1)
    known, new = random.gamma(2, 1, (200, 3)) * [1, -1, 1], 2 * random.normal(size=(100, 3))
    scores = fitted("lpath", path(known)).score(path(new))
    for scale, shift in (([3.0, 1e6, 1e-3], [1.0, -1e7, 0.0]), ([-1.0] * 3, [0.0] * 3)):
        other = fitted("lpath", path(known * scale + shift)).score(path(new * scale + shift))
        np.testing.assert_allclose(other, scores, rtol=1e-12)
    rotated = fitted("lpath", path(known @ np.linalg.qr(random.normal(size=(3, 3)))[0])).score(path(new))
    assert not np.allclose(rotated, scores)  # it does see the axes


def test_copod_finds_outliers_in_the_long_tails_of_columns_skewed_to_either_side() -> None:
    random = np.random.default_rng(2)
    known = random.exponential(size=(5000, 3)) * [1, -1, 1]
    outliers = path(np.array([[8.0, -0.7, 0.7], [0.7, -8.0, 0.7], [8.0, -8.0, 8.0], [0.7, -0.7, 0.7]]))
    first, second, all_, usual = fitted("lpath", path(known)).score(outliers)
    assert usual < first < all_
    assert usual < second < all_
    assert all_ > 3 * 7


def test_mahalanobis_is_the_distance_and_knows_no_linear_map() -> None:
    random = np.random.default_rng(0)
    mixing = np.array([[2.0, 0, 0], [1, 0.5, 0], [-1, 0.2, 3]])
    known, new = (random.normal(size=(rows, 3)) @ mixing.T + 5 for rows in (20_000, 40))
    scores = fitted("lpath_mahalanobis", path(known)).score(path(new))
    expected = np.linalg.norm(np.linalg.solve(mixing, (new - 5).T), axis=0)
    np.testing.assert_allclose(scores, expected, rtol=0.05, atol=0.05)
    turned = fitted("lpath_mahalanobis", path(known @ mixing)).score(path(new @ mixing))
    np.testing.assert_allclose(turned, scores, rtol=1e-7)
    constant = path(known * [1, 1, 0])
    flat = fitted("lpath_mahalanobis", constant).score(path(new * [1, 1, 0]))
    two = np.linalg.norm(np.linalg.solve(mixing[:2, :2], (new[:, :2] - 5).T), axis=0)
    np.testing.assert_allclose(flat, two, rtol=0.05, atol=0.05)


def test_the_density_of_states_integrates_to_one_and_is_the_mean_of_kernels() -> None:
    random = np.random.default_rng(0)
    known = random.gamma(3, 2, 500)
    detector = fitted("dose", Columns({"log_px": known}, 12))
    low, _, high = np.quantile(known, [0.25, 0.5, 0.75])
    width = 1.06 * (high - low) / 1.349 * 500**-0.2
    grid = np.linspace(-20, 60, 8001)
    scores = detector.score(Columns({"log_px": grid}, 12))
    kernels = np.exp(-0.5 * ((grid[:, None] - known) / width) ** 2) / (width * math.sqrt(2 * math.pi))
    with np.errstate(divide="ignore"):
        expected = -np.log(kernels.mean(1))
    near = expected < 500
    np.testing.assert_allclose(scores[near], expected[near], rtol=1e-9)
    assert np.trapezoid(np.exp(-scores), grid) == pytest.approx(1, abs=1e-6)


def test_the_density_of_states_agrees_with_scikit_learn_and_adds_over_statistics() -> None:
    from sklearn.neighbors import KernelDensity

    random = np.random.default_rng(0)
    known = {"log_px": random.normal(-3000, 40, 300), "kl": random.gamma(2, 5, 300)}
    new = {"log_px": random.normal(-3000, 80, 60), "kl": random.gamma(2, 9, 60)}
    expected = np.zeros(60)
    for name, values in known.items():
        low, high = np.quantile(values, [0.25, 0.75])
        tree = KernelDensity(bandwidth=1.06 * (high - low) / 1.349 * 300**-0.2).fit(values[:, None])
        expected -= tree.score_samples(new[name][:, None])
    np.testing.assert_allclose(fitted("dose", Columns(known, 12)).score(Columns(new, 12)), expected, rtol=1e-9)


def test_far_outliers_keep_distinct_and_finite_densities() -> None:
    known = np.random.default_rng(0).normal(-1000, 5, 400)
    known[7] = -1e13  # one image that the model has no idea of does not blur all others
    far = np.array([-1000.0, -1100, -2000, -2001, -1e5, -1e6, -1e9, -1.01e9])
    scores = fitted("dose", Columns({"log_px": known}, 12)).score(Columns({"log_px": far}, 12))
    assert np.isfinite(scores).all()
    assert (np.diff(scores) > 0).all()
    assert scores[1] - scores[0] > 100


@pytest.mark.parametrize("name", ["dose", "dose_svm"])
def test_both_tails_are_unusual(name: str) -> None:
    known = Columns({"log_px": np.random.default_rng(0).normal(-1000, 5, 1000)}, 12)
    middle, low, high = fitted(name, known).score(Columns({"log_px": np.array([-1000.0, -1020, -980])}, 12))
    assert middle < low
    assert middle < high


@pytest.mark.parametrize("name", ["dose", "dose_svm"])
def test_the_order_of_images_knows_no_units_and_no_constant_columns(name: str) -> None:
    random = np.random.default_rng(0)
    known, new = ({"a": random.normal(size=n), "b": random.gamma(2, 1, n)} for n in (300, 50))
    scores = fitted(name, Columns(known, 12)).score(Columns(new, 12))
    extra = {
        "b": lambda v: -1000 * v["b"],
        "a": lambda v: v["a"] + 5,
        "log_det": lambda v: np.float32(731.0625) + 1e-4 * (np.arange(len(v["a"])) % 2),  # rounding of float32
        "flag": lambda v: np.ones(len(v["a"]), np.uint8),
        "encoding": lambda v: np.random.default_rng(1).normal(size=(len(v["a"]), 4)),  # no scalar
    }
    changed = [Columns({key: make(v) for key, make in extra.items()}, 12) for v in (known, new)]
    other = fitted(name, changed[0]).score(changed[1])
    np.testing.assert_allclose(other - other[0], scores - scores[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["dose", "dose_svm", "lpath"])
def test_numbers_that_are_not_finite_are_no_part_of_the_fit_and_have_no_score(name: str) -> None:
    random = np.random.default_rng(0)
    clean = random.normal(size=(200, 3))
    dirty = np.concatenate([clean, [[np.nan, 0, 0], [0, -np.inf, 0]]])
    new = random.normal(size=(20, 3))
    expected = fitted(name, path(clean)).score(path(new))
    broken = np.concatenate([new, [[0, 0, np.nan]]])
    scores = fitted(name, path(dirty)).score(path(broken))
    assert math.isnan(scores[-1])
    np.testing.assert_allclose(scores[:-1], expected, rtol=1e-6 if name == "lpath" else 0.05, atol=0.02)


def test_a_model_of_which_every_statistic_is_constant_is_told_so() -> None:
    with pytest.raises(OodbenchError, match="needs a statistic that varies"):
        fitted("dose", Columns({"log_px": np.zeros(10)}, 12))


def test_dose_sees_in_two_statistics_what_neither_shows_alone_less_than_both() -> None:
    """Shifted by one standard deviation each, independent: the sum separates better than its parts."""
    random = np.random.default_rng(0)
    known, inside = ({"a": random.normal(size=n), "b": random.normal(size=n)} for n in (2000, 2000))
    out = {"a": random.normal(2, 1, 2000), "b": random.normal(2, 1, 2000)}

    def auroc(names: tuple[str, ...]) -> float:
        detector = fitted("dose", Columns({n: known[n] for n in names}, 12))
        a, b = (detector.score(Columns({n: side[n] for n in names}, 12)) for side in (inside, out))
        return float(np.searchsorted(np.sort(a), b).mean() / len(a))

    one = auroc(("a",))
    # |Z| against |Z + 2|, then squared norms: P(|Z| < |Z' + 2|) = Phi(s)^2 + Phi(-s)^2 with s = sqrt 2
    phi = (1 + math.erf(1.0)) / 2
    assert one == pytest.approx(phi**2 + (1 - phi) ** 2, abs=0.02)
    assert auroc(("a", "b")) > one + 0.03


@pytest.mark.parametrize(("name", "least"), [("lpath", 1), ("lpath_mahalanobis", 2)])
def test_too_few_validation_images_for_a_path_are_told(name: str, least: int) -> None:
    few = np.random.default_rng(0).normal(size=(least, 3))
    assert np.isfinite(fitted(name, path(few)).score(path(few))).all()
    few[0, 0] = np.inf  # of which nothing is learned
    with pytest.raises(OodbenchError, match=f"needs {least} validation images and there are {least - 1}"):
        fitted(name, path(few))
