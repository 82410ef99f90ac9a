"""What the whole project calls images, whatever they came from."""

import hashlib
import re
from dataclasses import dataclass, replace

import numpy as np

from oodbench.errors import OodbenchError

__all__ = ["SPLITS", "Images", "safe_name"]

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Images:
    """N images of one shape, with all that tells them from others."""

    name: str  # as it was asked for: "cifar10+hflip", "folder:photos"
    split: str  # "train", "validation" or "test"
    pixels: np.ndarray  # uint8 (N, C, H, W), a slice of the memory-mapped prepared copy until `take` picks some
    labels: np.ndarray | None  # int64 (N,), -1 where unknown
    index: np.ndarray  # int64 (N,), position in the official set: what an image's noise depends on
    fingerprint: str  # sha256 of the full prepared set these come from, the same for every subset
    rows: np.ndarray  # int64 (N,), row in that full prepared set: what cached columns are keyed on
    names: np.ndarray | None = None  # str (N,), the files of a folder, as paths in it

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, channels, height, width = self.pixels.shape
        return channels, height, width

    def take(self, positions: np.ndarray) -> "Images":
        """The images at these positions (int or bool (N,)), in that order, with their index and rows."""
        return replace(
            self,
            pixels=np.asarray(self.pixels[positions]),
            labels=None if self.labels is None else self.labels[positions],
            index=self.index[positions],
            rows=self.rows[positions],
            names=None if self.names is None else self.names[positions],
        )

    def limit(self, n: int, seed: int = 0) -> "Images":
        """A seeded subset of n images in increasing row order (all of them if there are fewer).

        For one seed, a smaller subset is part of every larger one, so that columns cached for it are of use.
        """
        if n < 1:
            raise OodbenchError(f"Cannot limit {self.name} to {n} images: give a number of at least 1.")
        if n >= len(self):
            return self
        return self.take(np.sort(np.random.default_rng(seed).permutation(len(self))[:n]))


def safe_name(name: str) -> str:
    """A file name for a data set: the name itself where it is harmless, else its harmless part and a short hash."""
    slug = re.sub(r"[^A-Za-z0-9_.+-]+", "_", name).strip("._")[-60:] or "_"
    return slug if slug == name else f"{slug}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
