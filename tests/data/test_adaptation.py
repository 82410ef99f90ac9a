import numpy as np
import PIL
import pytest
from PIL import Image

from oodbench.data import Adaptation, Domain, Images, adaptation, in_domain
from oodbench.data.adaptation import cover, luma

RNG = np.random.default_rng(0)


def images_of(*shape: int) -> Images:
    pixels = np.zeros((2, *shape), np.uint8)
    return Images("x", "test", pixels, None, np.arange(2), "", np.arange(2))


@pytest.mark.parametrize(
    ("shape", "domain"),
    [((1, 28, 28), (1, 32, 32)), ((3, 28, 28), (3, 28, 28)), ((1, 8, 8), (1, 8, 8)), ((3, 32, 32), (3, 32, 32))],
)
def test_grey_28x28_alone_is_padded_as_in_distribution(shape, domain):
    assert in_domain(images_of(*shape)).shape == domain


def test_luma_is_pillows():
    colours = RNG.integers(0, 256, (1, 3, 64, 64), np.uint8)
    by_pillow = np.asarray(Image.fromarray(np.ascontiguousarray(colours[0].transpose(1, 2, 0))).convert("L"))
    assert np.array_equal(luma(colours)[0, 0], by_pillow)
    primaries = np.eye(3, dtype=np.uint8)[:, :, None, None] * 255
    assert luma(primaries).ravel().tolist() == [76, 150, 29]


def test_grey_becomes_rgb_by_repetition():
    grey = np.arange(8, dtype=np.uint8).reshape(2, 1, 2, 2)
    out = Adaptation((1, 2, 2), Domain(3, 2, 2))(grey)
    assert out.shape == (2, 3, 2, 2)
    assert (out == grey).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_28x28_is_padded_with_two_zeros(channels):
    pixels = RNG.integers(1, 256, (2, channels, 28, 28), np.uint8)
    out = Adaptation((channels, 28, 28), Domain(channels, 32, 32))(pixels)
    assert np.array_equal(out[:, :, 2:-2, 2:-2], pixels)
    assert out.astype(int).sum() == pixels.astype(int).sum()


def test_what_fits_is_unchanged_but_a_writable_copy():
    pixels = RNG.integers(0, 256, (2, 3, 4, 4), np.uint8)
    pixels.flags.writeable = False
    out = Adaptation((3, 4, 4), Domain(3, 4, 4))(pixels)
    assert np.array_equal(out, pixels)
    assert out.flags.writeable


def test_other_sizes_are_scaled_by_the_shorter_side_and_cropped_in_the_middle():
    wide = np.zeros((1, 1, 32, 96), np.uint8)
    wide[..., 32:64] = 200  # exactly the part that stays
    tall = wide.swapaxes(2, 3)
    assert (Adaptation((1, 32, 96), Domain(1, 32, 32))(wide) == 200).all()
    assert (Adaptation((1, 96, 32), Domain(1, 32, 32))(tall) == 200).all()
    # Shrunk to 8x24, where only what lies within the filter's reach of an edge mixes with the zeros.
    assert (Adaptation((1, 32, 96), Domain(1, 8, 8))(wide)[..., 2:-2] == 200).all()
    assert (Adaptation((1, 96, 32), Domain(1, 8, 8))(tall)[..., 2:-2, :] == 200).all()


def test_shrinking_is_antialiased():
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)[None, None]
    small = Adaptation((1, 64, 64), Domain(1, 16, 16))(board)
    assert np.abs(small.astype(int) - 127).max() < 20


def test_pillows_bicubic_is_the_filter():
    pixels = RNG.integers(0, 256, (1, 3, 48, 48), np.uint8)
    by_pillow = Image.fromarray(np.ascontiguousarray(pixels[0].transpose(1, 2, 0))).resize((32, 32), Image.BICUBIC)
    out = Adaptation((3, 48, 48), Domain(3, 32, 32))(pixels)
    assert np.array_equal(out[0], np.asarray(by_pillow).transpose(2, 0, 1))


@pytest.mark.parametrize("size", [(1, 1), (33, 32), (31, 77), (500, 333), (7, 64)])
def test_cover_always_gives_the_size_asked_for(size):
    assert cover(Image.new("RGB", size), 32, 24).size == (24, 32)


def test_the_description_names_every_step():
    assert Adaptation((3, 32, 32), Domain(3, 32, 32)).describe() == "3x32x32 to 3x32x32: unchanged"
    padded = adaptation(images_of(1, 28, 28), Domain(3, 32, 32)).describe()
    assert padded == "1x28x28 to 3x32x32: grey repeated to RGB, padded with 2 zeros on every side"
    scaled = adaptation(images_of(3, 96, 96), Domain(1, 32, 32)).describe()
    assert scaled == (
        "3x96x96 to 1x32x32: grey by ITU-R 601 luma, "
        "scaled to cover (Pillow bicubic, antialiased) and cropped in the middle"
    )


def test_the_key_is_the_description_unless_pillow_scales():
    for rule in (Adaptation((3, 32, 32), Domain(1, 32, 32)), Adaptation((1, 28, 28), Domain(3, 32, 32))):
        assert rule.key() == rule.describe()
    scaled = Adaptation((1, 28, 28), Domain(1, 33, 32))
    assert scaled.key() == f"{scaled.describe()} by Pillow {PIL.__version__}"


def test_images_of_another_shape_are_not_taken():
    with pytest.raises(ValueError, match="shape"):
        Adaptation((3, 8, 8), Domain(3, 8, 8))(np.zeros((1, 3, 8, 9), np.uint8))
