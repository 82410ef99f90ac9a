import numpy as np
import pytest

from oodbench.data import load
from oodbench.data.perturbations import PERTURBATIONS, perturb
from oodbench.errors import OodbenchError

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 3, 8, 7), np.uint8)
INDEX = np.array([3, 0, 8, 100, 7, 41])


@pytest.mark.parametrize("name", ["hflip", "vflip", "invert"])
def test_flips_and_inversion_undo_themselves(name):
    once = perturb(PIXELS, INDEX, [name])
    assert not np.array_equal(once, PIXELS)
    assert np.array_equal(perturb(once, INDEX, [name]), PIXELS)


def test_flips_go_the_right_way():
    image = np.array([[1, 2], [3, 4]], np.uint8)[None, None]
    index = np.array([0])
    assert perturb(image, index, ["hflip"]).ravel().tolist() == [2, 1, 4, 3]
    assert perturb(image, index, ["vflip"]).ravel().tolist() == [3, 4, 1, 2]
    assert perturb(image, index, ["invert"]).ravel().tolist() == [254, 253, 252, 251]


def test_a_shuffle_permutes_positions_alike_in_all_channels_and_otherwise_in_every_image():
    colours = PIXELS.reshape(6, 3, -1).transpose(0, 2, 1)
    shuffled = perturb(PIXELS, INDEX, ["shuffle"]).reshape(6, 3, -1).transpose(0, 2, 1)
    for before, after in zip(colours, shuffled, strict=True):
        assert sorted(map(tuple, before)) == sorted(map(tuple, after))
    places = np.arange(56, dtype=np.uint8).reshape(1, 1, 8, 7).repeat(2, axis=0)
    first, second = perturb(places, np.array([0, 1]), ["shuffle"])
    assert not np.array_equal(first, second)


def test_blur_and_noise_do_what_they_are_called():
    grey = np.full((40, 1, 32, 32), 128, np.uint8)
    assert np.array_equal(perturb(grey, np.arange(40), ["blur"]), grey)
    noisy = perturb(grey, np.arange(40), ["noise"]).astype(float)
    assert abs(noisy.mean() - 128) < 0.5
    assert abs(noisy.std() - 25.5) < 0.5
    smooth, rough = perturb(PIXELS, INDEX, ["blur"]).astype(float), PIXELS.astype(float)
    assert np.abs(np.diff(smooth, axis=3)).mean() < 0.5 * np.abs(np.diff(rough, axis=3)).mean()


@pytest.mark.parametrize("name", list(PERTURBATIONS))
@pytest.mark.parametrize("channels", [1, 3])
def test_an_images_perturbation_depends_on_its_index_only(name, channels):
    pixels = PIXELS[:, :channels]
    whole = perturb(pixels, INDEX, [name])
    some = np.array([4, 1])
    assert whole.dtype == np.uint8
    assert whole.shape == pixels.shape
    assert np.array_equal(perturb(pixels[some], INDEX[some], [name]), whole[some])


def test_a_perturbed_copy_is_prepared_with_its_own_fingerprint(root, cache):
    plain, flipped = load("toys", "test", root), load("toys+hflip", "test", root)
    assert np.array_equal(flipped.pixels, plain.pixels[..., ::-1])
    assert isinstance(flipped.pixels, np.memmap)
    assert flipped.fingerprint != plain.fingerprint
    assert flipped.name == "toys+hflip"
    assert np.array_equal(flipped.index, plain.index)
    assert np.array_equal(flipped.labels, plain.labels)
    assert len(list((cache / "prepared").iterdir())) == 2


def test_perturbations_chain_from_left_to_right(root):
    plain = load("toys", "test", root)
    chained = load("toys+noise+invert", "test", root)
    assert np.array_equal(chained.pixels, perturb(plain.pixels, plain.index, ["noise", "invert"]))
    assert not np.array_equal(chained.pixels, load("toys+invert+noise", "test", root).pixels)


def test_an_unknown_perturbation_is_told_the_nearest(root):
    with pytest.raises(OodbenchError, match="did you mean hflip"):
        load("toys+hflp", "test", root)
    with pytest.raises(OodbenchError, match="there are hflip, vflip"):
        load("toys+x", "test", root)


def test_a_set_whose_own_name_holds_a_plus_is_found(root):
    (root / "toys").rename(root / "toys+hflip")
    with np.load(root / "toys+hflip" / "test.npz") as source:
        original = source["images"].transpose(0, 3, 1, 2)
    assert np.array_equal(load("toys+hflip", "test", root).pixels, original)
    assert np.array_equal(load("toys+hflip+hflip", "test", root).pixels, original[..., ::-1])
