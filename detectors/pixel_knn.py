"""A control without any model: the distance to the nearest known images, pixel by pixel."""

from typing import TYPE_CHECKING

import numpy as np

from oodbench.detector import Columns, Detector
from oodbench.errors import OodbenchError
from oodbench.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from oodbench.models.noise import Noise

__all__ = ["PixelNearestNeighbour", "pixels"]

_NEIGHBOUR = 5
_ROWS = 512  # scored at a time: with 5,000 validation images their distances take 20 MB
_COLUMNS = 1024  # 1,024 products of centred pixels sum to 2^24 at most, up to which float32 holds every integer


@register.statistic("pixels", needs_model=False, cached=False)
def pixels(model: None, x: "Tensor", noise: "Noise") -> "Tensor":
    """The image itself, as the model sees it: uint8 (B, C, H, W) to uint8 (B, D)"""
    return x.flatten(1)


@register.detector("pixel_knn")
class PixelNearestNeighbour(Detector):
    """||x - x_(5)||: a control, the Euclidean distance to the 5th nearest validation image in grey levels

    Exact: the squared distances are integers and are summed as such.

    Reference:
        Ramaswamy et al., "Efficient algorithms for mining outliers from large data sets", SIGMOD 2000: D^k(x),
        the distance to the k-th nearest neighbour, here on pixels and with k = 5 for every pair.
    """

    needs = ("pixels",)

    def fit(self, validation: Columns) -> None:
        """Keeps the validation images, at least 5 of them."""
        if validation.rows < _NEIGHBOUR:
            raise OodbenchError(
                f"pixel_knn needs {_NEIGHBOUR} validation images and there are {validation.rows}: "
                "take a larger data set."
            )
        self.known = _centred(validation["pixels"])
        self.squared_norms = _squared_norms(self.known)

    def score(self, columns: Columns) -> np.ndarray:
        """(N,) distances."""
        nearest = [self._distances(columns["pixels"][start : start + _ROWS]) for start in range(0, columns.rows, _ROWS)]
        return np.concatenate(nearest) if nearest else np.empty(0)

    def _distances(self, images: np.ndarray) -> np.ndarray:
        x = _centred(images)
        squared = _squared_norms(x)[:, None] + self.squared_norms
        for start in range(0, x.shape[1], _COLUMNS):
            part = slice(start, start + _COLUMNS)
            squared -= 2 * (x[:, part] @ self.known[:, part].T)
        nearest: np.ndarray = np.sqrt(np.partition(squared, _NEIGHBOUR - 1, axis=1)[:, _NEIGHBOUR - 1])
        return nearest


def _centred(images: np.ndarray) -> np.ndarray:
    """float32 (N, D) in -128 ... 127."""
    return images.astype(np.float32) - np.float32(128)


def _squared_norms(x: np.ndarray) -> np.ndarray:
    """float64 (N,)."""
    norms: np.ndarray = np.einsum("nd,nd->n", x, x, dtype=np.float64)
    return norms
