import json
import os

import numpy as np
import pytest

from oodbench.data import load
from oodbench.data.store import RawImages, fingerprint, prepared
from oodbench.errors import OodbenchError

PIXELS = np.random.default_rng(0).integers(0, 256, (50, 3, 4, 5), np.uint8)


class Source:
    """Counts how often it is read."""

    def __init__(self, pixels=PIXELS):
        self.raw, self.reads = RawImages(pixels, np.arange(len(pixels)) % 3), 0

    def __call__(self):
        self.reads += 1
        return self.raw


def the_file(cache, name="pixels.npy"):
    (found,) = (cache / "prepared").glob(f"*/{name}")
    return found


def test_a_set_is_prepared_once_and_memory_mapped():
    source = Source()
    first = prepared("x", "test", {}, source, "x")
    again = prepared("x", "test", {}, source, "x")
    assert source.reads == 1
    assert isinstance(again.pixels, np.memmap)
    assert np.array_equal(first.pixels, PIXELS)
    assert np.array_equal(again.labels, source.raw.labels)
    assert again.fingerprint == first.fingerprint == fingerprint(PIXELS, np.arange(50))


@pytest.mark.parametrize("name", ["pixels.npy", "labels.npy", "index.npy", "about.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "remove"])
def test_damage_is_found_and_mended(cache, name, damage):
    source = Source()
    whole = prepared("x", "train", {}, source, "x").fingerprint
    path = the_file(cache, name)
    content = bytearray(path.read_bytes())
    content[-3] ^= 0xFF
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
    mended = prepared("x", "train", {}, source, "x")
    assert mended.fingerprint == whole
    assert source.reads == 2
    assert sorted(image.tobytes() for image in mended.pixels) == sorted(image.tobytes() for image in PIXELS)


def test_a_copied_cache_is_verified_not_prepared_again(cache):
    source = Source()
    prepared("x", "test", {}, source, "x")
    os.utime(the_file(cache), (1, 1))
    prepared("x", "test", {}, source, "x")
    assert source.reads == 1
    assert json.loads(the_file(cache, "about.json").read_text())["files"]["pixels"]["modified"] == 10**9


def test_another_stamp_prepares_again():
    source = Source()
    prepared("x", "test", {"version": 1}, source, "x")
    prepared("x", "test", {"version": 2}, source, "x")
    assert source.reads == 2


def test_a_changed_source_file_is_prepared_again(root):
    before = load("toys", "test", root).fingerprint
    np.savez(root / "toys" / "test.npz", images=np.zeros((4, 6, 5, 3), np.uint8))
    after = load("toys", "test", root)
    assert len(after) == 4
    assert after.fingerprint != before


def test_the_fingerprint_sees_pixels_shape_and_index():
    index = np.arange(50)
    changed = PIXELS.copy()
    changed[7, 1, 2, 3] ^= 1
    others = [
        fingerprint(changed, index),
        fingerprint(PIXELS.reshape(50, 3, 5, 4), index),
        fingerprint(PIXELS, index + 1),
        fingerprint(PIXELS[::-1], index),
    ]
    assert len({fingerprint(PIXELS, index), *others}) == 5
    assert fingerprint(PIXELS.copy(order="F"), index) == fingerprint(PIXELS, index)


def test_a_run_killed_while_writing_leaves_nothing_that_is_believed(cache, monkeypatch):
    source = Source()
    with monkeypatch.context() as patched:
        patched.setattr("oodbench.data.store._write_about", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepared("x", "test", {}, source, "x")
    assert len(prepared("x", "test", {}, source, "x").pixels) == 50
    assert source.reads == 2


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        (RawImages(PIXELS.astype(float)), "float64 pixels"),
        (RawImages(PIXELS[0]), "shape"),
        (RawImages(PIXELS[:, :2]), "shape"),
        (RawImages(PIXELS[:0]), "empty"),
        (RawImages(PIXELS, np.zeros(49, int)), "labels"),
        (RawImages(PIXELS, np.zeros(50)), "labels"),
        (RawImages(PIXELS, None, np.arange(49)), "index"),
        (RawImages(PIXELS, None, np.arange(50) - 1), "index"),
        (RawImages(PIXELS, held_out=np.zeros(49, bool)), "held out"),
    ],
)
def test_what_is_not_images_is_refused(raw, complaint):
    with pytest.raises(OodbenchError, match=complaint):
        prepared("x", "test", {}, lambda: raw, "x")
