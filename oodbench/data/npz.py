"""Arrays of images in `.npz` files: the form that a data root and `npz:PATH` share."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from oodbench.data.store import RawImages
from oodbench.errors import OodbenchError

__all__ = ["LAYOUT", "read_npz"]

_BROKEN = (
    OSError, ValueError, EOFError, KeyError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip

LAYOUT = "`images` uint8 (N, H, W) or (N, H, W, 3), optional int64 `labels` and `index` (N,)"


def read_npz(path: Path) -> RawImages:
    """Reads a file of the layout above; anything else is an `OodbenchError`. Nothing is ever unpickled."""
    arrays = {}
    try:
        with path.open("rb") as file:  # np.load of a path leaves the file open when the zip is broken
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise OodbenchError(f"{path} is a single array: save it with np.savez as {LAYOUT}.")
            arrays = {name: archive[name] for name in ("images", "labels", "index") if name in archive.files}
    except _BROKEN as error:
        raise OodbenchError(f"Cannot read {path} ({_short(error)}): write it again as {LAYOUT}.") from error
    if "images" not in arrays:
        raise OodbenchError(f"{path} has no array `images`: it needs {LAYOUT}.")
    images = arrays["images"]
    if images.ndim == 3:
        pixels = images[:, None]
    elif images.ndim == 4 and images.shape[3] == 3:
        pixels = images.transpose(0, 3, 1, 2)
    else:
        raise OodbenchError(f"{path} has `images` of shape {images.shape}: it needs {LAYOUT}.")
    return RawImages(pixels, arrays.get("labels"), arrays.get("index"))


def _short(error: Exception) -> str:
    text = str(error)
    if "allow_pickle" in text:
        return "it holds pickled objects or is no npz at all, and nothing is unpickled here"
    return (text.splitlines() or [type(error).__name__])[0].rstrip(".")
