"""Data sets that need no download: made or cut out once, the same everywhere, in a second or two.

They exist to show the whole bench at work. `photos` (textured) against `glyphs` (smooth), and `digits` against
`glyphs8` (smaller, dimmer), are built so that a model of the first finds the second *more* likely: the failure this
project measures.
"""

from collections.abc import Callable

import numpy as np

from oodbench.data.store import RawImages
from oodbench.errors import OodbenchError
from oodbench.registry import register

__all__ = ["VERSION"]

VERSION = 2  # another number whenever a set below gets other pixels: prepared copies are found by it

_REGION, _CROP = 53, 32  # pixels of a halved photograph
_TEXTURE = 8  # least mean difference of a crop's neighbouring grey levels

# Of each photograph's 4 x 6 regions, counted row by row, those that are not for training. Both photographs take part in
# every split: most of the flower's background is too smooth, and its petals lie in regions 8, 9, 14, 15 and 21.
_TEST = ({8, 17, 20}, {9, 21})
_VALIDATION = ({13, 22}, {8})


@register.dataset("digits")
def digits(part: str) -> RawImages:
    """scikit-learn's handwritten digits, grey 8x8 in 17 levels: 1,297 to train, 500 to test"""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.images))
    index = np.sort(order[500:] if part == "train" else order[:500])
    pixels = np.rint(data.images[index, None] * (255 / 16)).astype(np.uint8)
    return RawImages(pixels, data.target[index], index)


@register.dataset("photos")
def photos(part: str) -> RawImages:
    """32x32 colour crops of scikit-learn's two photographs at half size, smooth ones left out

    The photographs are cut into 24 regions each. A crop lies in one region and a region belongs to one of train,
    validation and test, so that no pixel is seen in two of them. Crops of a region overlap.
    """
    from PIL import Image
    from sklearn.datasets import load_sample_images

    pixels, labels, held_out = [], [], []
    for label, photograph in enumerate(load_sample_images().images):
        half = np.asarray(Image.fromarray(photograph).reduce(2))
        for region in range(24):
            if (region in _TEST[label]) != (part == "test"):
                continue
            top, left = _REGION * (region // 6), _REGION * (region % 6)
            area = half[top : top + _REGION, left : left + _REGION]
            for y in range(0, len(area) - _CROP + 1, 2):
                for x in range(0, area.shape[1] - _CROP + 1):
                    crop = area[y : y + _CROP, x : x + _CROP]
                    if _texture(crop) >= _TEXTURE:
                        pixels.append(crop.transpose(2, 0, 1))
                        labels.append(label)
                        held_out.append(region in _VALIDATION[label])
    return RawImages(np.stack(pixels), np.array(labels), held_out=np.array(held_out))


def _texture(crop: np.ndarray) -> float:
    grey = crop.mean(axis=2)
    return float(np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean()) / 2


@register.dataset("glyphs")
def glyphs(part: str) -> RawImages:
    """Rendered house-number-like digits, colour 32x32, smooth and of low contrast: 4,000 to train, 1,000 to test"""
    from oodbench.data.glyphs import house_number

    return _rendered(part, house_number)


@register.dataset("glyphs8")
def glyphs8(part: str) -> RawImages:
    """Rendered small, dim digits, grey 8x8 in the 17 levels of `digits`: 4,000 to train, 1,000 to test"""
    from oodbench.data.glyphs import dim_digit

    return _rendered(part, dim_digit)


def _rendered(part: str, render: Callable[[np.random.Generator], tuple[np.ndarray, int]]) -> RawImages:
    index = np.arange(4000) if part == "train" else np.arange(4000, 5000)
    images, labels = zip(*(render(np.random.default_rng([0, int(i)])) for i in index), strict=True)
    # By position, not by bytes: another version of the font renderer must not move images to another part.
    return RawImages(np.stack(images), np.array(labels), index, held_out=index % 10 == 9)


@register.dataset("noise")
def noise(part: str) -> RawImages:
    """Uniform random pixels, colour 32x32: 2,000 test images"""
    _only_test("noise", part)
    return RawImages(np.random.default_rng(0).integers(0, 256, (2000, 3, 32, 32), np.uint8))


@register.dataset("constant")
def constant(part: str) -> RawImages:
    """One random colour an image, colour 32x32: 2,000 test images"""
    _only_test("constant", part)
    colours = np.random.default_rng(1).integers(0, 256, (2000, 3, 1, 1), np.uint8)
    return RawImages(np.broadcast_to(colours, (2000, 3, 32, 32)))


def _only_test(name: str, part: str) -> None:
    if part != "test":
        raise OodbenchError(f"{name} has no train split, only test: nothing is to be learnt from it.")
