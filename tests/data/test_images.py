import numpy as np
import pytest

from oodbench.data import Images, load, safe_name
from oodbench.errors import OodbenchError


def test_a_subset_keeps_index_rows_labels_and_fingerprint(root):
    images = load("toys", "train", root)
    taken = images.take(np.array([5, 2]))
    assert taken.fingerprint == images.fingerprint
    assert np.array_equal(taken.rows, images.rows[[5, 2]])
    assert np.array_equal(taken.index, images.index[[5, 2]])
    assert np.array_equal(taken.labels, images.labels[[5, 2]])
    assert np.array_equal(taken.pixels, images.pixels[[5, 2]])


def test_a_limit_is_seeded_sorted_and_nested(root):
    images = load("toys", "train", root)
    small, large = images.limit(20, seed=3), images.limit(60, seed=3)
    assert len(small) == 20
    assert (np.diff(small.rows) > 0).all()
    assert set(small.rows) < set(large.rows)
    assert np.array_equal(small.rows, images.limit(20, seed=3).rows)
    assert not np.array_equal(small.rows, images.limit(20, seed=4).rows)
    assert images.limit(10**6) is images


def test_a_limit_below_one_is_refused(root):
    with pytest.raises(OodbenchError, match="at least 1"):
        load("toys", "test", root).limit(0)


def test_shape_and_length(root):
    images = load("toys", "test", root)
    assert isinstance(images, Images)
    assert images.shape == (3, 6, 5)
    assert len(images) == 30


@pytest.mark.parametrize("name", ["cifar10", "cifar10+hflip", "emnist_letters", "a-b.c"])
def test_a_harmless_name_is_its_own_file_name(name):
    assert safe_name(name) == name


def test_other_names_become_harmless_and_stay_apart():
    names = ["folder:/a/b", "folder:/a_b", "../../etc", "..", ".hidden", "npz:x y", "", "x" * 300, "x" * 301, "ü"]
    safe = [safe_name(name) for name in names]
    assert len(set(safe)) == len(names)
    for name in safe:
        assert "/" not in name
        assert not name.startswith(".")
        assert 0 < len(name) < 80
