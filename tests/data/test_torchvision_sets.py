"""torchvision's classes are replaced by small ones: no test touches the network."""

import struct
import urllib.error
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from oodbench.data import load
from oodbench.data.torchvision_sets import TORCHVISION
from oodbench.errors import OodbenchError

RNG = np.random.default_rng(0)


@pytest.fixture
def fake(monkeypatch):
    """Puts a class in the place of torchvision's, and its number of images in the place of the official one."""

    def put(name, dataset, n):
        known = TORCHVISION[name]
        made = type(known.class_name, (), {"__init__": lambda self, **arguments: dataset(self, arguments)})
        monkeypatch.setattr(torchvision.datasets, known.class_name, made)
        monkeypatch.setitem(TORCHVISION, name, replace(known, train=n, test=n))
        return made

    return put


def test_every_set_names_a_class_that_torchvision_has():
    for known in TORCHVISION.values():
        assert hasattr(torchvision.datasets, known.class_name)


@pytest.mark.parametrize(
    ("name", "data", "attribute"),
    [
        ("mnist", torch.from_numpy(RNG.integers(0, 256, (9, 28, 28), np.uint8)), "targets"),
        ("cifar10", RNG.integers(0, 256, (9, 32, 32, 3), np.uint8), "targets"),
        ("svhn", RNG.integers(0, 256, (9, 3, 32, 32), np.uint8), "labels"),
        ("emnist_letters", torch.from_numpy(RNG.integers(0, 256, (9, 28, 28), np.uint8)), "targets"),
    ],
)
def test_arrays_become_channels_first_and_upright(fake, name, data, attribute):
    asked = []

    def dataset(self, arguments):
        asked.append(arguments)
        self.data = data
        setattr(self, attribute, list(range(9)))

    fake(name, dataset, 9)
    images = load(name, "test")
    upright = np.asarray(data).swapaxes(1, 2) if name == "emnist_letters" else np.asarray(data)
    if name == "cifar10":
        assert np.array_equal(images.pixels.transpose(0, 2, 3, 1), upright)
    else:
        assert np.array_equal(images.pixels, upright.reshape(9, -1, *upright.shape[-2:]))
    assert images.labels.tolist() == list(range(9))
    load(name, "test")
    assert len(asked) == 1
    assert asked[0]["download"] is True


def test_splits_are_asked_for_in_each_classes_own_words(fake):
    asked = {}

    def dataset(self, arguments):
        asked[arguments.get("split", arguments.get("train", arguments.get("background")))] = arguments
        self.data, self.targets = RNG.integers(0, 256, (60, 4, 4), np.uint8), [0] * 60

    for name, words in (("mnist", {True, False}), ("svhn", {"train", "test"}), ("omniglot", {True, False})):
        asked.clear()
        fake(name, dataset, 60)
        assert len(load(name, "train")) + len(load(name, "validation")) == 60
        load(name, "test")
        assert set(asked) == words


def test_sets_of_mixed_size_are_resized_by_the_rule(fake):
    def dataset(self, arguments):
        self.arguments = arguments

    made = fake("gtsrb", dataset, 2)
    wide = Image.fromarray(np.repeat(np.arange(3, dtype=np.uint8) * 100, 40)[None].repeat(40, 0)).convert("RGB")
    samples = [(wide, 4), (Image.new("RGB", (15, 99), (9, 8, 7)), 2)]
    made.__len__ = lambda self: 2
    made.__getitem__ = lambda self, position: samples[position]
    images = load("gtsrb", "test")
    assert images.shape == (3, 32, 32)
    assert (images.pixels[0][..., 2:-2] == 100).all()
    assert images.pixels[1][:, 0, 0].tolist() == [9, 8, 7]
    assert images.labels.tolist() == [4, 2]


@pytest.mark.parametrize(
    "error",
    [
        urllib.error.URLError("Temporary failure in name resolution"),
        RuntimeError("Error downloading train-images:\nTried http://a:\nno\n"),
        AssertionError(),
    ],
)
def test_a_failed_download_is_one_sentence_that_says_what_to_do(fake, error):
    def dataset(self, arguments):
        raise error

    fake("kmnist", dataset, 1)
    with pytest.raises(OodbenchError, match=r"kmnist/test\.npz .*images` uint8 .*--data-root or OODBENCH_DATA") as told:
        load("kmnist", "test")
    assert "\n" not in str(told.value)


def test_a_full_disk_is_told_apart_from_the_network(fake):
    def dataset(self, arguments):
        raise OSError(28, "No space left on device")

    fake("kmnist", dataset, 1)
    with pytest.raises(OodbenchError, match="disk is full"):
        load("kmnist", "test")


def test_an_archive_unpacked_in_part_is_not_believed(fake):
    def dataset(self, arguments):
        self.data, self.targets = np.zeros((7, 28, 28), np.uint8), [0] * 7

    fake("mnist", dataset, 9)
    with pytest.raises(OodbenchError, match="7 test images where 9 belong"):
        load("mnist", "test")


def test_torchvisions_own_reader_of_emnist_is_turned_upright(cache, monkeypatch):
    """With the real class on a tiny archive as it lies unpacked: an L written on its side stands up."""
    upright = np.zeros((28, 28), np.uint8)
    upright[4:24, 8] = upright[23, 8:18] = 255
    raw = cache / "downloads" / "emnist_letters" / "EMNIST" / "raw"
    raw.mkdir(parents=True)
    images = struct.pack(">IIII", 0x803, 2, 28, 28) + np.stack([upright.T, upright.T]).tobytes()
    (raw / "emnist-letters-test-images-idx3-ubyte").write_bytes(images)
    (raw / "emnist-letters-test-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, 2) + bytes([12, 12]))
    monkeypatch.setitem(TORCHVISION, "emnist_letters", replace(TORCHVISION["emnist_letters"], test=2))
    letters = load("emnist_letters", "test")
    assert np.array_equal(letters.pixels[0, 0], upright)
    assert letters.labels.tolist() == [12, 12]
