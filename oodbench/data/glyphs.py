"""Digits drawn with matplotlib's fonts: a small stand-in for photographed house numbers."""

import functools
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

__all__ = ["dim_digit", "house_number"]

_SCALE = 3  # drawn larger, then averaged down
_FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSansMono-Bold")


@functools.cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf", size)


def house_number(rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """uint8 (3, 32, 32) and its digit: one in the middle, its neighbours at the edges, on a softly lit ground."""
    side = 32 * _SCALE
    font = _font(_FONTS[rng.integers(len(_FONTS))], int(rng.integers(19, 30)) * _SCALE)
    digits = [str(digit) for digit in rng.integers(0, 10, 3)]
    centre = side / 2 + rng.uniform(-2, 2, 2) * _SCALE
    width = font.getlength(digits[1]) * rng.uniform(1.0, 1.15)
    mask = Image.new("L", (side, side))
    draw = ImageDraw.Draw(mask)
    for place, digit in zip((-1, 0, 1), digits, strict=True):
        if place == 0 or rng.random() < 0.6:
            draw.text((centre[0] + place * width, centre[1]), digit, fill=255, font=font, anchor="mm")
    mask = mask.rotate(rng.uniform(-6, 6), Image.Resampling.BILINEAR)
    ink = mask.filter(ImageFilter.GaussianBlur(rng.uniform(0.7, 1.2) * _SCALE)).reduce(_SCALE)
    alpha = np.asarray(ink, np.float64)[None] / 255

    ground = np.clip(rng.normal(rng.uniform(50, 200), 8, (3, 1, 1)), 20, 235)
    contrast = rng.uniform(25, 75) * np.where(ground.mean() > rng.uniform(70, 180), -1, 1)
    colour = ground + contrast + rng.normal(0, 4, (3, 1, 1))
    y, x = np.mgrid[-1:1:32j, -1:1:32j]
    angle = rng.uniform(0, 2 * np.pi)
    light = rng.uniform(0, 14) * (np.cos(angle) * x + np.sin(angle) * y)
    image = ground + alpha * (colour - ground) + light + rng.normal(0, 0.5, (1, 32, 32))
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), int(digits[1])


def dim_digit(rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """uint8 (1, 8, 8), multiples of 255 / 16, and its digit: small and grey on black."""
    scale = 8
    digit = int(rng.integers(10))
    font = _font(_FONTS[rng.integers(len(_FONTS))], int(rng.integers(34, 44)))
    mask = Image.new("L", (8 * scale, 8 * scale))
    x, y = (4 + rng.uniform(-0.4, 0.4, 2)) * scale
    ImageDraw.Draw(mask).text((x, y), str(digit), fill=255, font=font, anchor="mm")
    ink = np.asarray(mask.filter(ImageFilter.GaussianBlur(0.3 * scale)).reduce(scale), np.float64) / 255
    levels = np.clip(np.rint(ink * rng.uniform(8, 16)), 0, 16)
    return np.rint(levels * (255 / 16)).astype(np.uint8)[None], digit
