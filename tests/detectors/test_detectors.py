"""Every detector on columns, densities and images whose score is known in closed form."""

import math

import numpy as np
import pytest
import torch

from oodbench.detector import EVERY_COLUMN, Columns
from oodbench.errors import OodbenchError
from oodbench.models.noise import Noise
from oodbench.plugins import load_builtin
from oodbench.registry import DETECTORS, STATISTICS

load_builtin()

BUILTIN = [name for name in DETECTORS if DETECTORS.origin_of(name) == "oodbench"]
MODEL_COLUMNS = {"log_px", "log_px@background", "latent_norm", "log_pz", "log_det"}
MODEL_COLUMNS |= {"log_px_open", "log_px_closed", "attention_margin", EVERY_COLUMN}
MODEL_COLUMNS |= {"elbo", "reconstruction", "kl", "posterior_mean_norm", "posterior_std_norm", "log_px_members"}
D = 12


def columns(dimensions: int = D, group_size: int = 1, **values: np.ndarray) -> Columns:
    return Columns({name.replace("_AT_", "@"): value for name, value in values.items()}, dimensions, group_size)


def fitted(name: str, validation: Columns):
    detector = DETECTORS.get(name)()
    detector.fit(validation)
    return detector


def statistic(name: str, images: np.ndarray) -> np.ndarray:
    x = torch.from_numpy(images)
    return STATISTICS.get(name).function(None, x, Noise.of(torch.arange(len(x)))).numpy()


def random_columns(rows: int, seed: int) -> Columns:
    random = np.random.default_rng(seed)
    values = {name: -1000 * random.random(rows, dtype=np.float32) for name in ("log_px", "log_px@background")}
    values |= {name: -1000 * random.random(rows, dtype=np.float32) for name in ("log_px_open", "log_px_closed")}
    values |= {name: random.normal(size=rows) for name in ("log_pz", "log_det", "attention_margin")}
    values |= {"log_px_members": -1000 + 9 * random.normal(size=(rows, 4))}
    values |= {"attention_encoding": random.normal(size=(rows, 32))}
    values |= {name: 9 * random.random(rows) for name in ("latent_norm", "complexity_bits", "total_variation")}
    values |= {
        name: 50 * random.random(rows) for name in ("regret", "elbo", "reconstruction", "kl", "reconstruction_error")
    }
    values |= {name: random.random(rows) for name in ("posterior_mean_norm", "posterior_std_norm")}
    return Columns(values | {"pixels": random.integers(0, 256, (rows, D), dtype=np.uint8)}, D)


def test_the_promised_detectors_are_there() -> None:
    assert set(BUILTIN) == {
        "likelihood", "typicality", "input_complexity", "likelihood_ratio", "annulus",
        "compressed_size", "total_variation", "pixel_knn",
        "latent_likelihood", "volume", "inflow", "inflow_published", "likelihood_regret",
        "marginal", "waic", "disagreement", "weight_entropy", "likelihood_std",
        "elbo", "reconstruction", "kl", "lpath", "lpath_mahalanobis", "dose", "dose_svm",
    }  # fmt: skip


@pytest.mark.parametrize("name", BUILTIN)
def test_needs_are_statistics_or_columns_of_a_model(name: str) -> None:
    assert set(DETECTORS.get(name).needs) <= MODEL_COLUMNS | set(STATISTICS)


@pytest.mark.parametrize("name", BUILTIN)
def test_scores_are_float64_one_a_group_and_depend_on_the_group_alone(name: str) -> None:
    detector, test = fitted(name, random_columns(60, 0)), random_columns(50, 1)
    for size in detector.group_sizes:
        grouped = np.arange(50 // size * size)
        scores = detector.score(test.take(grouped, size))
        assert scores.dtype == np.float64
        assert scores.shape == (50 // size,)
        backwards = grouped.reshape(-1, size)[::-1].reshape(-1)
        np.testing.assert_allclose(detector.score(test.take(backwards, size)), scores[::-1], rtol=1e-12)


@pytest.mark.parametrize("name", BUILTIN)
def test_scoring_changes_nothing_that_was_fitted(name: str) -> None:
    detector, test = fitted(name, random_columns(60, 0)), random_columns(50, 1)
    first = detector.score(test)
    detector.score(random_columns(30, 2))
    np.testing.assert_array_equal(detector.score(test), first)


@pytest.mark.parametrize("name", BUILTIN)
def test_a_detector_reads_only_the_columns_it_names(name: str) -> None:
    needs = DETECTORS.get(name).needs
    validation, test = (
        all_ if EVERY_COLUMN in needs else all_.only(needs) for all_ in (random_columns(60, 0), random_columns(50, 1))
    )
    assert fitted(name, validation).score(test).shape == (50,)


@pytest.mark.parametrize("name", BUILTIN)
def test_validation_images_without_a_number_are_left_out(name: str) -> None:
    """A likelihood that failed on one of 400 images must not cost the other 399 their scores."""
    broken = random_columns(400, seed=1)
    for value, row in ((np.nan, 7), (-np.inf, 80), (np.inf, 300)):
        for column in broken.arrays.values():
            if column.dtype != np.uint8:
                column[row] = value
    detector = DETECTORS.get(name)
    needs = (
        [need for need in broken if need in detector.needs] if EVERY_COLUMN not in detector.needs else ["log_px", "kl"]
    )
    kept = broken.take(np.delete(np.arange(400), [7, 80, 300]))
    size = detector.group_sizes[0]
    asked = random_columns(3 * size, seed=3).only(needs).take(np.arange(3 * size), size)
    scores = [fitted(name, validation.only(needs)).score(asked) for validation in (broken, kept)]
    assert np.isfinite(scores[0]).all()
    if "pixels" not in needs:
        np.testing.assert_allclose(scores[0], scores[1], rtol=1e-9)
    few = random_columns(3, seed=2)
    for column in few.arrays.values():
        if column.dtype != np.uint8:
            column[:] = np.nan
    if name in ("typicality", "inflow_published", "lpath", "lpath_mahalanobis", "dose", "dose_svm"):
        with pytest.raises(OodbenchError, match="need"):
            fitted(name, few.only(needs))


def test_likelihood_is_the_negated_log_probability() -> None:
    score = fitted("likelihood", random_columns(9, 0)).score(columns(log_px=np.float32([-10000.0, -2.0])))
    np.testing.assert_array_equal(score, [10000, 2])


def test_typicality_of_a_gaussian_is_the_distance_of_half_the_squared_norm_from_half_the_dimension() -> None:
    # -log p(z) - H = (|z|^2 - d) / 2 under N(0, I), whose entropy H is d/2 log(2 pi e).
    d, constant = 50, 25 * math.log(2 * math.pi)
    random = np.random.default_rng(0)
    known = (random.standard_normal((200_000, d)) ** 2).sum(1)
    squared_norms = np.array([0.0, d, 2 * d])  # the mode, the shell, beyond it
    detector = fitted("typicality", columns(d, log_px=-known / 2 - constant))
    assert detector.entropy == pytest.approx(25 * math.log(2 * math.pi * math.e), abs=0.06)  # 5 s.d. / sqrt(200,000)
    score = detector.score(columns(d, log_px=-squared_norms / 2 - constant))
    np.testing.assert_allclose(score, [d / 2, 0, d / 2], atol=0.06)


def test_typicality_of_a_group_is_that_of_its_mean() -> None:
    detector = fitted("typicality", columns(log_px=np.array([-10.0, -20.0])))
    group = columns(
        group_size=2, log_px=np.array([-5.0, -25.0, -5.0, -7.0])
    )  # one too likely, one too unlikely: typical
    np.testing.assert_array_equal(detector.score(group), [0, 9])


@pytest.mark.parametrize("size", [1, 2, 10, 25])
def test_typicality_of_groups_has_the_auroc_that_normal_log_likelihoods_give_it(size: int) -> None:
    # For group means A ~ N(0, 1/b) and B ~ N(m, 1/b), |A| < |B| where the independent B - A and B + A have one sign:
    # AUROC = Phi(s)^2 + Phi(-s)^2, s = m sqrt(b / 2).
    random = np.random.default_rng(0)
    detector = fitted("typicality", columns(log_px=random.normal(0, 1, 100_000)))
    near, far = (detector.score(columns(group_size=size, log_px=random.normal(mean, 1, 100_000))) for mean in (0, 0.5))
    phi = (1 + math.erf(0.5 * math.sqrt(size / 2) / math.sqrt(2))) / 2
    auroc = np.searchsorted(np.sort(near), far).mean() / len(near)
    assert auroc == pytest.approx(phi**2 + (1 - phi) ** 2, abs=0.015)
    assert size in detector.group_sizes


def test_annulus_is_zero_on_the_shell_of_a_gaussian_and_large_at_its_mode() -> None:
    d = 3072
    norms = np.linalg.norm(np.random.default_rng(0).standard_normal((500, d)), axis=1)
    detector = fitted("annulus", columns(d, latent_norm=norms))
    # |z| is sqrt(d) up to a standard deviation of 1 / sqrt 2, whatever d.
    assert detector.score(columns(d, latent_norm=norms)).mean() == pytest.approx(1 / math.sqrt(math.pi), abs=0.1)
    exact = detector.score(columns(d, latent_norm=np.array([0.0, math.sqrt(d), 2 * math.sqrt(d)])))
    np.testing.assert_allclose(exact, [math.sqrt(d), 0, math.sqrt(d)], atol=1e-12)


def test_annulus_knows_that_a_surface_has_fewer_latents_than_an_image_has_numbers() -> None:
    norms = np.array([0.0, 4.0, math.sqrt(3072)])
    on_surface = Columns({"latent_norm": norms}, 3072, latents=16)
    expected = [4, 0, math.sqrt(3072) - 4]
    np.testing.assert_allclose(fitted("annulus", on_surface).score(on_surface), expected, atol=1e-12)
    np.testing.assert_allclose(fitted("annulus", on_surface).score(on_surface.take(np.arange(3))), expected, atol=1e-12)


def test_likelihood_ratio_of_two_gaussians_is_the_neyman_pearson_statistic() -> None:
    # log N(x; 1, 1) - log N(x; -1, 1) = 2x: the most powerful test rejects N(1, 1) for small x.
    x = np.random.default_rng(0).normal(0, 3, 100)
    values = columns(log_px=-((x - 1) ** 2) / 2, log_px_AT_background=-((x + 1) ** 2) / 2)
    np.testing.assert_allclose(fitted("likelihood_ratio", values).score(values), -2 * x, atol=1e-12)


def test_likelihood_ratio_ignores_what_both_models_share() -> None:
    random = np.random.default_rng(0)
    shared, own = random.normal(-3000, 500, 50), random.normal(0, 1, 50)
    values = columns(log_px=shared + own, log_px_AT_background=shared)
    np.testing.assert_allclose(fitted("likelihood_ratio", values).score(values), -own, atol=1e-9)


def test_input_complexity_is_zero_for_a_model_that_codes_as_well_as_the_compressor() -> None:
    bits = np.array([8.0, 800.0, 8000.0])
    values = columns(log_px=-bits * math.log(2), complexity_bits=bits)
    np.testing.assert_allclose(fitted("input_complexity", values).score(values), 0, atol=1e-12)


def test_input_complexity_is_in_bits_per_dimension() -> None:
    values = columns(log_px=np.array([-3 * D * math.log(2)]), complexity_bits=np.array([5.0 * D]))
    np.testing.assert_allclose(fitted("input_complexity", values).score(values), [3 - 5])


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 32, 32), (3, 32, 32), (3, 1, 1), (3, 17, 5)])
def test_complexity_of_noise_is_at_least_its_entropy_and_that_of_a_constant_far_less(
    shape: tuple[int, int, int],
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (4, *shape), dtype=np.uint8)
    constant = np.full((4, *shape), 77, dtype=np.uint8)
    noise_bits, constant_bits = statistic("complexity_bits", noise), statistic("complexity_bits", constant)
    assert noise_bits.dtype == np.float64
    assert (noise_bits >= 8 * math.prod(shape)).all()
    assert (constant_bits <= 8 * 60).all()  # a header and nothing else
    assert (noise_bits % 8 == 0).all()


def test_complexity_is_that_of_the_best_compressor_of_the_pixels_themselves() -> None:
    from io import BytesIO

    from PIL import Image

    images = np.random.default_rng(0).integers(0, 4, (3, 3, 16, 16), dtype=np.uint8) * 20
    for image, bits in zip(images, statistic("complexity_bits", images), strict=True):
        sizes = []
        for codec, options in (
            ("PNG", {"optimize": True}),
            ("WEBP", {"lossless": True, "quality": 80, "method": 2}),
            ("JPEG2000", {"irreversible": False, "no_jp2": True}),
        ):
            file = BytesIO()
            Image.fromarray(image.transpose(1, 2, 0)).save(file, codec, **options)
            sizes.append(8 * len(file.getvalue()))
            restored = np.asarray(Image.open(file).convert("RGB")).transpose(2, 0, 1)
            np.testing.assert_array_equal(restored, image)  # lossless, or its size would say nothing
        assert bits == min(sizes)


def test_a_pillow_without_a_codec_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import features

    monkeypatch.setattr(features, "check", lambda feature: feature != "jpg_2000")
    with pytest.raises(OodbenchError, match="without JPEG 2000"):
        statistic("complexity_bits", np.zeros((1, 1, 8, 8), np.uint8))


def test_complexity_of_five_channels_is_refused() -> None:
    with pytest.raises(OodbenchError, match="1 or 3 channels, not 5"):
        statistic("complexity_bits", np.zeros((1, 5, 8, 8), np.uint8))


def test_the_controls_call_simple_images_out_of_distribution() -> None:
    values = columns(complexity_bits=np.array([100.0, 900.0]), total_variation=np.array([1.0, 30.0]))
    for name in ("compressed_size", "total_variation"):
        simple, complex_ = fitted(name, values).score(values)
        assert simple > complex_


def test_total_variation_by_hand() -> None:
    image = np.array([[[[0, 10, 10], [0, 250, 10]]]], dtype=np.uint8)
    # right: 10 + 0 + 250 + 240; down: 0 + 240 + 0: seven pairs
    np.testing.assert_allclose(statistic("total_variation", image), [740 / 7])


def test_total_variation_counts_channels_apart_and_single_pixels_as_zero() -> None:
    image = np.zeros((1, 3, 4, 4), np.uint8)
    image[:, 1] = 200  # between channels nothing is compared
    np.testing.assert_array_equal(statistic("total_variation", image), [0])
    np.testing.assert_array_equal(statistic("total_variation", image[:, :, :1, :1]), [0])


def test_pixels_are_the_flattened_image_and_not_cached() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5), dtype=np.uint8)
    np.testing.assert_array_equal(statistic("pixels", images), images.reshape(2, 60))
    assert not STATISTICS.get("pixels").cached


def test_pixel_knn_agrees_with_scikit_learn() -> None:
    from sklearn.neighbors import NearestNeighbors

    random = np.random.default_rng(0)
    known, new = (random.integers(0, 256, (rows, 1500), dtype=np.uint8) for rows in (300, 700))
    new[:3] = known[:3]
    search = NearestNeighbors(n_neighbors=5, algorithm="brute").fit(known.astype(np.float64))
    expected = search.kneighbors(new.astype(np.float64))[0][:, -1]
    score = fitted("pixel_knn", columns(1500, pixels=known)).score(columns(1500, pixels=new))
    np.testing.assert_allclose(score, expected, rtol=1e-9)


def test_pixel_knn_is_exact_where_float32_would_cancel() -> None:
    # Five identical bright images and one that differs by one grey level in one of 3,072 pixels: distance 1, not 0.
    known = np.full((5, 3072), 255, dtype=np.uint8)
    new = known[:1].copy()
    new[0, 7] = 254
    np.testing.assert_array_equal(
        fitted("pixel_knn", columns(3072, pixels=known)).score(columns(3072, pixels=new)), [1]
    )


def test_pixel_knn_keeps_the_validation_images_and_nothing_else() -> None:
    validation, test = random_columns(60, 0), random_columns(50, 1)
    detector = fitted("pixel_knn", validation)
    detector.score(test)
    assert {name: len(value) for name, value in vars(detector).items()} == {"known": 60, "squared_norms": 60}
    with pytest.raises(OodbenchError, match="needs 5 validation images and there are 4"):
        fitted("pixel_knn", random_columns(4, 0))
