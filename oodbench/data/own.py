"""The user's own images: `folder:PATH` and `npz:PATH`.

A path that holds `train` and `test` (folders, or `train.npz` and `test.npz`) has these two splits; any other is a test
split as a whole, because nothing tells which of its images a model may learn from.
"""

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from oodbench.data.adaptation import to_chw
from oodbench.data.npz import read_npz
from oodbench.data.store import Prepared, RawImages, prepared
from oodbench.errors import OodbenchError
from oodbench.files import expanded

__all__ = ["identity", "is_own", "prepared_own", "stamp_of"]

_GREY = {"1", "L", "LA", "La"}
_DEEP = {"I", "I;16", "I;16B", "I;16L", "I;16N", "F"}  # Pillow would clip these to 255
_DEEP_TILES = (";16B", ";16L", ";16N")  # and of these drop the lower half: 16 bits a channel in the file, 8 in the mode


def is_own(name: str) -> bool:
    """Whether the name is a path of the user's."""
    return name.startswith(("folder:", "npz:"))


def identity(name: str) -> str:
    """What tells a data set from any other: its name; of the user's images with the whole path, wherever one stands."""
    kind, _, path = name.partition(":")
    return f"{kind}:{expanded(path).resolve()}" if is_own(name) else name


def prepared_own(name: str, part: str) -> Prepared:
    """The prepared copy of `folder:PATH` or `npz:PATH`; `part` is "train" or "test"."""
    kind, _, given = name.partition(":")
    path = expanded(given)
    if not given or not path.exists():
        raise OodbenchError(f"There is no {given or 'path'!r} for {name!r}: give the path of your images.")
    path = path.resolve()
    return _folder(name, path, part) if kind == "folder" else _npz(name, path, part)


def stamp_of(path: Path) -> dict[str, str | int]:
    """What changes when a file does."""
    status = path.stat()
    return {"path": str(path), "bytes": status.st_size, "modified": status.st_mtime_ns}


def _npz(name: str, path: Path, part: str) -> Prepared:
    if path.is_dir():
        path = path / f"{part}.npz"
        if not path.is_file():
            raise OodbenchError(f"{name} has no {part} split: there is no {path}.")
    elif part == "train":
        raise OodbenchError(
            f"{name} has no train split: put train.npz and test.npz into a folder and give its path as npz:PATH."
        )
    return prepared(f"npz:{path}", part, stamp_of(path), lambda: read_npz(path), str(path))


def _folder(name: str, path: Path, part: str) -> Prepared:
    if not path.is_dir():
        raise OodbenchError(f"{path} is not a folder: give the folder that holds your images, or npz:PATH.")
    if (path / "train").is_dir() and (path / "test").is_dir():
        path = path / part
    elif part == "train":
        raise OodbenchError(f"{name} has no train split: put training images into {path / 'train'}, others into test.")
    files = sorted(
        (file for file in path.rglob("*") if file.is_file() and not _hidden(file.relative_to(path))),
        key=lambda file: file.relative_to(path).as_posix(),
    )
    if not files:
        raise OodbenchError(f"The folder {path} holds no images: put some there or give another folder.")
    listing = hashlib.sha256()
    for file in files:
        listing.update(repr((file.relative_to(path).as_posix(), *list(stamp_of(file).values())[1:])).encode())
    stamp = {"listing": listing.hexdigest(), "named": True}
    # A file's name may be any bytes, a table's text may not.
    names = [os.fsencode(file.relative_to(path).as_posix()).decode("utf-8", "backslashreplace") for file in files]
    return prepared(f"folder:{path}", part, stamp, lambda: replace(_read_files(files), names=names), str(path))


def _hidden(path: Path) -> bool:
    return any(name.startswith(".") for name in path.parts)


def _read_files(files: list[Path]) -> RawImages:
    """All files as images of one size: grey if every one is grey, else RGB."""
    first: tuple[int, int] | None = None
    pixels: list[np.ndarray] = []
    all_grey = True
    for file in files:
        image = _read(file)
        if first is not None and image.size != first:
            raise OodbenchError(
                f"{file} is {image.width}x{image.height} pixels but {files[0].name} is {first[0]}x{first[1]}: "
                "all images of a folder must have one size, so resize or move it."
            )
        first = image.size
        grey = image.mode == "L"
        if all_grey and not grey:
            pixels = [np.repeat(previous, 3, axis=0) for previous in pixels]
        all_grey = all_grey and grey
        pixels.append(to_chw(image if all_grey else image.convert("RGB")))
    return RawImages(np.stack(pixels))


def _read(file: Path) -> Image.Image:
    """An upright image of mode L or RGB."""
    try:
        with Image.open(file) as opened:
            tiles = str(getattr(opened, "tile", ""))
            if opened.mode in _DEEP or any(deep in tiles for deep in _DEEP_TILES):
                raise OodbenchError(f"{file} has more than 8 bits a channel: convert it to 8 bits first.")
            upright = ImageOps.exif_transpose(opened)
            return upright.convert("L" if opened.mode in _GREY else "RGB")
    except OodbenchError:
        raise
    except Exception as error:  # Pillow's plugins raise almost anything on a broken file
        raise OodbenchError(
            f"Cannot read {file} as an image ({type(error).__name__}): mend it or move it elsewhere."
        ) from error
