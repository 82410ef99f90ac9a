import numpy as np
import pytest

from oodbench.data import load
from oodbench.data.embedded import glyphs8, photos
from oodbench.data.glyphs import house_number
from oodbench.errors import OodbenchError


@pytest.fixture(scope="module")
def small_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("embedded")


@pytest.fixture(autouse=True)
def shared_cache(small_cache, cache, monkeypatch):
    """One cache for this file: the sets are made once."""
    monkeypatch.setenv("OODBENCH_CACHE", str(small_cache))


def roughness(pixels):
    grey = pixels.astype(float).mean(axis=1)
    return np.abs(np.diff(grey, axis=2)).mean(axis=(1, 2))


@pytest.mark.parametrize(("name", "shape"), [("digits", (1, 8, 8)), ("photos", (3, 32, 32)), ("glyphs8", (1, 8, 8))])
def test_sets_to_train_on_have_three_parts_without_common_images(name, shape):
    parts = {split: load(name, split) for split in ("train", "validation", "test")}
    seen = [{image.tobytes() for image in part.pixels} for part in parts.values()]
    assert all(part.shape == shape for part in parts.values())
    assert all(part.labels is not None for part in parts.values())
    assert len(parts["train"]) > 1000
    assert len(parts["validation"]) > 100
    assert len(parts["test"]) >= 500
    if name != "glyphs8":  # so few levels that two renderings may agree
        assert not seen[0] & seen[1]
        assert not (seen[0] | seen[1]) & seen[2]


def test_both_photographs_are_in_every_part():
    for split in ("train", "validation", "test"):
        assert np.bincount(load("photos", split).labels, minlength=2).min() > 100


def test_digits_span_the_8_bits_in_17_levels():
    levels = np.unique(load("digits", "train").pixels)
    assert len(levels) == 17
    assert levels[0] == 0
    assert levels[-1] == 255
    assert set(np.unique(load("glyphs8", "test").pixels)) <= set(levels)


def test_the_regions_of_photos_share_no_pixel():
    # Rows of pixels that occur in two parts would give a common region away; the texture makes them unique.
    def rows(images):
        return {row.tobytes() for image in images for row in image[0] if row.std() > 10}

    train, test = photos("train"), photos("test")
    held_out = train.held_out
    assert not rows(train.pixels[~held_out]) & rows(train.pixels[held_out])
    assert not rows(train.pixels) & rows(test.pixels)


def test_the_second_of_a_pair_is_the_simpler():
    assert np.median(roughness(load("photos", "test").pixels)) > 3 * np.median(roughness(load("glyphs", "test").pixels))
    assert np.median(roughness(load("digits", "test").pixels)) > 3 * np.median(
        roughness(load("glyphs8", "test").pixels)
    )


def test_a_glyph_depends_on_its_number_alone():
    assert np.array_equal(glyphs8("test").pixels, glyphs8("test").pixels)
    images = load("glyphs", "test")
    one, digit = house_number(np.random.default_rng([0, int(images.index[17])]))
    assert np.array_equal(images.pixels[17], one)
    assert images.labels[17] == digit
    assert images.shape == (3, 32, 32)


def test_noise_is_uniform_and_constant_is_constant():
    noise, constant = load("noise", "test"), load("constant", "test")
    assert noise.shape == constant.shape == (3, 32, 32)
    assert min(len(noise), len(constant)) >= 1000
    counts = np.bincount(noise.pixels.ravel(), minlength=256)
    assert np.abs(counts / counts.mean() - 1).max() < 0.05
    assert (constant.pixels == constant.pixels[:, :, :1, :1]).all()
    assert len(np.unique(constant.pixels[:, :, 0, 0], axis=0)) > 1900


@pytest.mark.parametrize("name", ["noise", "constant"])
def test_nothing_is_learnt_from_noise(name):
    for split in ("train", "validation"):
        with pytest.raises(OodbenchError, match=f"{name} has no train split"):
            load(name, split)
