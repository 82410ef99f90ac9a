import numpy as np

from oodbench.data import load
from oodbench.data.splits import held_out

PIXELS = np.random.default_rng(0).integers(0, 256, (4000, 1, 4, 4), np.uint8)


def test_about_a_tenth_is_held_out():
    assert 0.08 < held_out(PIXELS).mean() < 0.12


def test_missing_shuffled_or_doubled_images_never_change_sides():
    all_of_them = held_out(PIXELS)
    order = np.random.default_rng(1).permutation(len(PIXELS))[:1500]
    assert np.array_equal(held_out(PIXELS[order]), all_of_them[order])
    doubled = held_out(np.concatenate([PIXELS[:50], PIXELS[:50]]))
    assert np.array_equal(doubled[:50], doubled[50:])


def test_membership_is_the_same_in_every_release():
    # Weights are trained on these parts: a change of the rule would leak training images into validation.
    assert np.flatnonzero(held_out(PIXELS[:60])).tolist() == [7, 10, 15, 17, 36, 43, 46, 47]


def test_train_and_validation_are_disjoint_and_complete(root):
    train, validation = load("toys", "train", root), load("toys", "validation", root)
    assert train.fingerprint == validation.fingerprint
    assert np.array_equal(np.sort(np.r_[train.rows, validation.rows]), np.arange(200))
    assert np.array_equal(np.sort(np.r_[train.index, validation.index]), np.arange(200) * 2)
    assert {image.tobytes() for image in train.pixels}.isdisjoint(image.tobytes() for image in validation.pixels)
    assert held_out(validation.pixels).all()
    assert not held_out(train.pixels).any()


def test_rows_index_and_labels_belong_to_their_images(root):
    with np.load(root / "toys" / "train.npz") as source:
        original, labels = source["images"].transpose(0, 3, 1, 2), source["labels"]
    for split in ("train", "validation"):
        images = load("toys", split, root)
        assert np.array_equal(images.pixels, original[images.index // 2])
        assert np.array_equal(images.labels, labels[images.index // 2])


def test_a_perturbed_image_stays_in_the_part_of_the_image_it_came_from(root):
    for split in ("train", "validation"):
        assert np.array_equal(load("toys+invert", split, root).index, load("toys", split, root).index)
