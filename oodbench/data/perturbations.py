"""Perturbed copies of any set: `cifar10+hflip`, `+vflip`, `+invert`, `+blur`, `+noise`, `+shuffle`, in any chain."""

from collections.abc import Callable

import numpy as np
from PIL import ImageFilter

from oodbench.data.adaptation import to_chw, to_pillow

__all__ = ["PERTURBATIONS", "VERSION", "perturb"]

VERSION = 1  # another number whenever a perturbation gives other pixels: prepared copies are found by it

_NOISE = 0.1 * 255  # standard deviation of "+noise", a clearly visible grain


def _blur(image: np.ndarray) -> np.ndarray:
    return to_chw(to_pillow(image).filter(ImageFilter.GaussianBlur(1)))


def _noise(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.clip(np.rint(image + rng.normal(0, _NOISE, image.shape)), 0, 255).astype(np.uint8)


def _shuffle(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return image.reshape(len(image), -1)[:, rng.permutation(image[0].size)].reshape(image.shape)


def _each(function: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    return lambda pixels, index: np.stack([function(image) for image in pixels])


def _each_random(
    function: Callable[[np.ndarray, np.random.Generator], np.ndarray], stream: int
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """An image's randomness comes from its index alone, so that every subset is perturbed alike."""
    return lambda pixels, index: np.stack(
        [
            function(image, np.random.Generator(np.random.Philox(key=[stream, i])))
            for image, i in zip(pixels, index, strict=True)
        ]
    )


PERTURBATIONS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "hflip": lambda pixels, index: pixels[..., ::-1],
    "vflip": lambda pixels, index: pixels[..., ::-1, :],
    "invert": lambda pixels, index: 255 - pixels,
    "blur": _each(_blur),  # Gaussian, standard deviation 1 pixel
    "noise": _each_random(_noise, 1),
    "shuffle": _each_random(_shuffle, 2),  # one permutation of positions an image, the same for its channels
}
"""Functions of pixels (uint8 (N, C, H, W)) and index (int64 (N,)) to pixels of the same shape."""


def perturb(pixels: np.ndarray, index: np.ndarray, names: list[str]) -> np.ndarray:
    """Applies the named perturbations one after the other to uint8 (N, C, H, W)."""
    for name in names:
        pixels = PERTURBATIONS[name](pixels, index)
    return np.ascontiguousarray(pixels)
