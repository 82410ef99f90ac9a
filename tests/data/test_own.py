import io
import os
import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from oodbench.data import load
from oodbench.errors import OodbenchError

RNG = np.random.default_rng(0)


def save(path, size=(5, 4), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    array = RNG.integers(0, 256, shape, np.uint8)
    Image.fromarray(array).save(path, **options)
    return array


def one_sentence(error) -> bool:
    text = str(error.value)
    return "\n" not in text and text.endswith(".")


def test_a_folder_is_read_in_sorted_order(tmp_path):
    arrays = [save(tmp_path / "x" / name) for name in ("b/1.png", "a.png", "c.bmp")]
    save(tmp_path / "x" / ".hidden.png", size=(9, 9))
    images = load(f"folder:{tmp_path / 'x'}", "test")
    assert np.array_equal(images.pixels, np.stack([arrays[1], arrays[0], arrays[2]]).transpose(0, 3, 1, 2))
    assert images.name == f"folder:{tmp_path / 'x'}"
    assert images.labels is None
    assert images.index.tolist() == [0, 1, 2]


def test_every_image_of_a_folder_keeps_its_file_name(tmp_path):
    folder = tmp_path / "x"
    for name in ("b/1.png", "a.png", "c.bmp", os.fsdecode(b"caf\xe9.png")):
        save(folder / name)
    names = ["a.png", "b/1.png", "c.bmp", r"caf\xe9.png"]
    for name in (f"folder:{folder}", f"folder:{folder}", f"folder:{folder}+invert"):  # prepared, found, perturbed
        images = load(name, "test")
        assert images.names.tolist() == names
        assert images.take(np.array([2, 0])).names.tolist() == ["c.bmp", "a.png"]
    (folder / "a.png").rename(folder / "again.png")
    assert load(f"folder:{folder}+invert", "test").names.tolist() == ["again.png", *names[1:]]


def test_training_images_keep_their_names_when_the_validation_part_is_moved(tmp_path):
    arrays = {f"{i:03}.png": save(tmp_path / "x" / "train" / f"{i:03}.png") for i in range(60)}
    save(tmp_path / "x" / "test" / "one.png")
    for split in ("train", "validation"):
        images = load(f"folder:{tmp_path / 'x'}", split)
        for name, pixels in zip(images.names, images.pixels, strict=True):
            assert np.array_equal(pixels, arrays[name].transpose(2, 0, 1))


def test_images_of_an_array_have_no_names(tmp_path):
    np.savez(tmp_path / "x.npz", images=RNG.integers(0, 256, (3, 4, 5), np.uint8))
    assert load(f"npz:{tmp_path / 'x.npz'}", "test").names is None


def test_grey_images_stay_grey_until_one_has_colours(tmp_path):
    grey = save(tmp_path / "x" / "a.png", mode="L")
    assert load(f"folder:{tmp_path / 'x'}", "test").shape == (1, 4, 5)
    save(tmp_path / "x" / "b.png")
    save(tmp_path / "x" / "c.png", mode="L")
    both = load(f"folder:{tmp_path / 'x'}", "test")
    assert both.shape == (3, 4, 5)
    assert (both.pixels[0] == grey).all()


def test_photographs_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    array = save(tmp_path / "x" / "a.png", exif=exif)
    assert np.array_equal(load(f"folder:{tmp_path / 'x'}", "test").pixels[0].transpose(1, 2, 0), np.rot90(array, -1))


def test_a_new_or_changed_file_is_seen(tmp_path):
    save(tmp_path / "x" / "a.png")
    before = load(f"folder:{tmp_path / 'x'}", "test")
    save(tmp_path / "x" / "b.png")
    assert len(load(f"folder:{tmp_path / 'x'}", "test")) == len(before) + 1


def test_folders_named_train_and_test_are_splits(tmp_path):
    for i in range(40):
        save(tmp_path / "x" / "train" / f"{i}.png")
    save(tmp_path / "x" / "test" / "a.png")
    name = f"folder:{tmp_path / 'x'}"
    assert len(load(name, "train")) + len(load(name, "validation")) == 40
    assert len(load(name, "test")) == 1


def spoil_mixed(x):
    save(x / "a.png"), save(x / "b.png", size=(6, 4))


def spoil_text(x):
    save(x / "a.png"), (x / "b.txt").write_text("hello")


def spoil_cut(x):
    save(x / "b.png", size=(64, 64))
    (x / "b.png").write_bytes((x / "b.png").read_bytes()[:5000])


def spoil_deep(x):
    x.mkdir(parents=True), Image.fromarray(np.full((4, 4), 9999, np.uint16)).save(x / "b.png")


def spoil_deep_colours(x):
    """A PNG of 16 bits a channel, which Pillow reads but does not write."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + bytes(range(24)) for _ in range(4)))
    x.mkdir(parents=True)
    chunks = [chunk(b"IHDR", header), chunk(b"IDAT", rows), chunk(b"IEND", b"")]
    (x / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (spoil_mixed, r"b\.png is 6x4 pixels but a\.png is 5x4"),
        (spoil_text, r"Cannot read .*b\.txt"),
        (spoil_cut, r"Cannot read .*b\.png"),
        (spoil_deep, r"b\.png has more than 8 bits"),
        (spoil_deep_colours, r"b\.png has more than 8 bits"),
        (lambda x: x.mkdir(), "holds no images"),
        (lambda x: None, "There is no"),
        (lambda x: x.write_text(""), "not a folder"),
    ],
)
def test_a_bad_folder_is_one_sentence_that_names_the_file(tmp_path, spoil, complaint):
    spoil(tmp_path / "x")
    with pytest.raises(OodbenchError, match=complaint) as error:
        load(f"folder:{tmp_path / 'x'}", "test")
    assert one_sentence(error)


@pytest.mark.parametrize("name", ["folder:", "npz:", "npz:/no/such.npz"])
def test_a_missing_path_is_one_sentence(name):
    with pytest.raises(OodbenchError, match="There is no") as error:
        load(name, "test")
    assert one_sentence(error)


@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_one_heap_of_images_is_never_taken_for_training(tmp_path, kind):
    save(tmp_path / "x" / "a.png")
    np.savez(tmp_path / "y.npz", images=np.zeros((3, 4, 4), np.uint8))
    name = f"folder:{tmp_path / 'x'}" if kind == "folder" else f"npz:{tmp_path / 'y.npz'}"
    for split in ("train", "validation"):
        with pytest.raises(OodbenchError, match="no train split"):
            load(name, split)
    assert len(load(name, "test")) > 0


def test_an_own_npz_with_perturbation(tmp_path):
    pixels = RNG.integers(0, 256, (3, 4, 4), np.uint8)
    np.savez(tmp_path / "a+b.npz", images=pixels)
    images = load(f"npz:{tmp_path / 'a+b.npz'}+invert", "test")
    assert np.array_equal(images.pixels[:, 0], 255 - pixels)


GOOD = np.zeros((3, 4, 4), np.uint8)


def npz_bytes(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a zip",
        npz_bytes(images=RNG.integers(0, 256, (50, 8, 8), np.uint8))[:1500],
        npz_bytes(images=GOOD).replace(b"\0" * 48, b"\1" * 48, 1),
        npz_bytes(pictures=GOOD),
        npz_bytes(images=GOOD.astype(np.float32)),
        npz_bytes(images=GOOD[:0]),
        npz_bytes(images=GOOD[0]),
        npz_bytes(images=np.zeros((3, 4, 4, 4), np.uint8)),
        npz_bytes(images=np.zeros((3, 0, 4), np.uint8)),
        npz_bytes(images=GOOD, labels=np.zeros(2, int)),
        npz_bytes(images=GOOD, index=np.zeros(3)),
        npz_bytes(images=np.array([GOOD, None], dtype=object)),
        pickle.dumps(GOOD),
    ],
    ids=range(14),
)
def test_a_bad_npz_is_one_sentence_that_names_it(tmp_path, content):
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(OodbenchError, match=r"bad\.npz") as error:
        load(f"npz:{tmp_path / 'bad.npz'}", "test")
    assert one_sentence(error)


def test_a_pickle_is_never_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    (tmp_path / "trap.npz").write_bytes(pickle.dumps(Trap()))
    np.savez(tmp_path / "deep.npz", images=np.array([Trap()], dtype=object))
    for name in ("trap", "deep"):
        with pytest.raises(OodbenchError, match="nothing is unpickled"):
            load(f"npz:{tmp_path / name}.npz", "test")
    assert not (tmp_path / "sprung").exists()
