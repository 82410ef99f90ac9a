"""How images enter a model's domain: one declared rule, the same for everybody, recorded with every result."""

from dataclasses import dataclass

import numpy as np
import PIL
from PIL import Image

from oodbench.data.images import Images

__all__ = ["Adaptation", "Domain", "adaptation", "cover", "in_domain", "luma", "to_chw", "to_pillow"]


@dataclass(frozen=True)
class Domain:
    """The shape of the images a model speaks of."""

    channels: int
    height: int
    width: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.channels, self.height, self.width


def in_domain(images: Images) -> Domain:
    """The domain of models trained on these images: their own shape, but 1x32x32 for grey 28x28.

    Bits/dim of the grey sets thus count 1,024 dimensions, as in Nalisnick et al. (2019).
    """
    return Domain(1, 32, 32) if images.shape == (1, 28, 28) else Domain(*images.shape)


def adaptation(images: Images, domain: Domain) -> "Adaptation":
    """The rule that takes these images into that domain."""
    return Adaptation(images.shape, domain)


@dataclass(frozen=True)
class Adaptation:
    """First the channels, then the size.

    RGB becomes grey by ITU-R 601 luma, rounded as Pillow rounds it; grey becomes RGB by repetition. 28x28 becomes 32x32
    by two zeros on every side. Any other size is scaled, keeping its proportions, until it just covers the domain
    (Pillow's bicubic, which smooths before it shrinks), and cropped in the middle.
    """

    source: tuple[int, int, int]  # (C, H, W)
    domain: Domain

    def describe(self) -> str:
        """A sentence without a full stop, equal for equal rules: it is recorded."""
        steps = []
        if self.source[0] != self.domain.channels:
            steps.append("grey by ITU-R 601 luma" if self.domain.channels == 1 else "grey repeated to RGB")
        if self._padded:
            steps.append("padded with 2 zeros on every side")
        elif self._scaled:
            steps.append("scaled to cover (Pillow bicubic, antialiased) and cropped in the middle")
        return f"{_x(self.source)} to {_x(self.domain.shape)}: {', '.join(steps) or 'unchanged'}"

    def key(self) -> str:
        """The part of cache keys: the rule, and where Pillow scales its version, since another may round otherwise."""
        return f"{self.describe()} by Pillow {PIL.__version__}" if self._scaled else self.describe()

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (B, C, H, W) of the source's shape to a new, contiguous uint8 (B, *domain.shape)."""
        if pixels.shape[1:] != self.source:
            raise ValueError(f"this adaptation takes images of shape {self.source}, not {pixels.shape[1:]}")
        if self.domain.channels == 1 and self.source[0] == 3:
            pixels = luma(pixels)
        elif self.domain.channels == 3 and self.source[0] == 1:
            pixels = np.repeat(pixels, 3, axis=1)
        if self._padded:
            return np.pad(pixels, ((0, 0), (0, 0), (2, 2), (2, 2)))
        if not self._scaled:
            return np.array(pixels, order="C")  # a copy: what comes from the prepared file is read-only
        out = np.empty((len(pixels), *self.domain.shape), np.uint8)
        for row, image in zip(out, pixels, strict=True):
            row[:] = to_chw(cover(to_pillow(image), self.domain.height, self.domain.width))
        return out

    @property
    def _padded(self) -> bool:
        return self.source[1:] == (28, 28) and self.domain.shape[1:] == (32, 32)

    @property
    def _scaled(self) -> bool:
        return not self._padded and self.source[1:] != self.domain.shape[1:]


def luma(pixels: np.ndarray) -> np.ndarray:
    """uint8 (B, 3, H, W) to grey (B, 1, H, W): 0.299 R + 0.587 G + 0.114 B in Pillow's 16-bit fixed point."""
    red, green, blue = (pixels[:, c : c + 1].astype(np.uint32) for c in range(3))
    return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16).astype(np.uint8)


def cover(image: Image.Image, height: int, width: int) -> Image.Image:
    """Scales an image, keeping its proportions, until it just covers height x width, and crops it in the middle."""
    scale = max(width / image.width, height / image.height)
    scaled_width, scaled_height = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    left, top = (scaled_width - width) // 2, (scaled_height - height) // 2
    scaled = image.resize((scaled_width, scaled_height), Image.Resampling.BICUBIC)
    return scaled.crop((left, top, left + width, top + height))


def to_pillow(image: np.ndarray) -> Image.Image:
    """uint8 (1, H, W) or (3, H, W) as a Pillow image."""
    return Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))


def to_chw(image: Image.Image) -> np.ndarray:
    """A Pillow image of mode L or RGB as uint8 (1, H, W) or (3, H, W)."""
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _x(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
