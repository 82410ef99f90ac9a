"""Prepared copies: any source becomes `.npy` files in the cache once, memory-mapped ever after."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from oodbench.data.images import safe_name
from oodbench.data.splits import held_out
from oodbench.errors import OodbenchError
from oodbench.files import cache_dir, check_writable, sha256, write_atomically

__all__ = ["Prepared", "RawImages", "fingerprint", "prepared"]

_SCHEMA = 1  # of the folder below: another number prepares everything anew


@dataclass(frozen=True, eq=False)
class RawImages:
    """What a source reads, before it is checked and stored."""

    pixels: np.ndarray  # uint8 (N, C, H, W), C = 1 or 3
    labels: np.ndarray | None = None  # integers (N,)
    index: np.ndarray | None = None  # integers (N,); None: 0 ... N - 1
    held_out: np.ndarray | None = None  # bool (N,), for a train split whose validation part is not told by bytes
    names: list[str] | None = None  # one an image, such as its file's

    def checked(self, what: str) -> "RawImages":
        """The same as contiguous uint8 and int64; raises `OodbenchError`, speaking of `what`, if it cannot be."""
        pixels = np.asarray(self.pixels)
        if pixels.dtype != np.uint8:
            raise OodbenchError(f"{what} holds {pixels.dtype} pixels: store them as uint8 from 0 to 255.")
        if pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
            raise OodbenchError(f"{what} has pixels of shape {pixels.shape}: (N, C, H, W) with C = 1 or 3 is needed.")
        if pixels.size == 0:
            raise OodbenchError(f"{what} is empty: it needs at least one image.")
        n = len(pixels)
        labels = None if self.labels is None else _integers(self.labels, n, f"the labels of {what}")
        index = np.arange(n) if self.index is None else _integers(self.index, n, f"the index of {what}")
        if index.min() < 0 or index.max() >= 2**32:
            raise OodbenchError(f"The index of {what} must lie between 0 and 2^32 - 1.")
        held_out = None if self.held_out is None else np.asarray(self.held_out, bool)
        if held_out is not None and held_out.shape != (n,):
            raise OodbenchError(f"What is held out of {what} must be told by {n} booleans, not {held_out.shape}.")
        return RawImages(np.ascontiguousarray(pixels), labels, index, held_out, self.names)


def _integers(values: np.ndarray, n: int, what: str) -> np.ndarray:
    values = np.asarray(values)
    if values.shape != (n,) or values.dtype.kind not in "iu":
        raise OodbenchError(f"Expected {what} to be {n} integers, found {values.dtype} of shape {values.shape}.")
    return values.astype(np.int64)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A full prepared set. Of a train split, the rows from `validation_from` on are the validation part."""

    pixels: np.ndarray  # uint8 (N, C, H, W), memory-mapped, read-only
    labels: np.ndarray | None  # int64 (N,)
    index: np.ndarray  # int64 (N,)
    fingerprint: str
    validation_from: int
    names: np.ndarray | None = None  # str (N,)


def prepared(key: str, part: str, stamp: Mapping[str, Any], build: Callable[[], RawImages], what: str) -> Prepared:
    """The prepared copy for `key` and `part` ("train" or "test"), built if there is none that is whole and up to date.

    `stamp` is plain data that changes whenever the source does; `what` names the source in errors. Held-out images are
    moved behind the others, so that train and validation are both slices of one memory map.
    """
    folder = cache_dir() / "prepared" / safe_name(f"{key}/{part}")
    full_stamp = json.loads(json.dumps({"schema": _SCHEMA, "key": key, **stamp}))
    about = _intact(folder)
    if about is None or about["stamp"] != full_stamp:
        check_writable(folder)
        about = _store(folder, part, full_stamp, build().checked(what))
    labels, index = (
        np.load(folder / f"{name}.npy") if name in about["files"] else None for name in ("labels", "index")
    )
    pixels = np.load(folder / "pixels.npy", mmap_mode="r")
    names = np.array(about["names"]) if "names" in about else None
    return Prepared(pixels, labels, np.asarray(index), about["fingerprint"], about["validation_from"], names)


def fingerprint(pixels: np.ndarray, index: np.ndarray) -> str:
    """SHA-256 as hex of the shape, the pixels (uint8 (N, C, H, W)) and the index (int64 (N,)) of a set."""
    digest = hashlib.sha256(repr(tuple(map(int, pixels.shape))).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    digest.update(np.ascontiguousarray(index, "<i8").data)
    return digest.hexdigest()


def _store(folder: Path, part: str, stamp: dict[str, Any], raw: RawImages) -> dict[str, Any]:
    assert raw.index is not None  # `checked` filled it
    if part == "train":
        away = held_out(raw.pixels) if raw.held_out is None else raw.held_out
    else:
        away = np.zeros(len(raw.pixels), bool)
    order = np.argsort(away, kind="stable")
    arrays = {"pixels": raw.pixels, "index": raw.index}
    if raw.labels is not None:
        arrays["labels"] = raw.labels
    if away.any():
        arrays = {name: array[order] for name, array in arrays.items()}
    # What describes the files comes last: a run that is killed before leaves nothing that a later one would believe.
    (folder / "about.json").unlink(missing_ok=True)
    about = {
        "stamp": stamp,
        "shape": list(raw.pixels.shape),
        "fingerprint": fingerprint(arrays["pixels"], arrays["index"]),
        "validation_from": int(len(away) - away.sum()),
        "files": {name: _write_array(folder / f"{name}.npy", array) for name, array in arrays.items()},
    }
    if raw.names is not None:
        about["names"] = [raw.names[row] for row in order]
    _write_about(folder, about)
    return about


def _write_array(path: Path, array: np.ndarray) -> dict[str, Any]:
    with write_atomically(path) as file:
        # Not np.save: its error on a full disk carries no error number.
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.data.cast("B"))
    return {"bytes": path.stat().st_size, "modified": path.stat().st_mtime_ns, "sha256": sha256(path)}


def _write_about(folder: Path, about: Mapping[str, Any]) -> None:
    with write_atomically(folder / "about.json") as file:
        file.write(json.dumps(about, indent=1).encode())


def _intact(folder: Path) -> dict[str, Any] | None:
    """What `about.json` says, or None if a file it speaks of is missing, cut short or changed.

    Files whose size and time are as recorded are believed; of others the checksum is computed once more.
    """
    try:
        about: dict[str, Any] = json.loads((folder / "about.json").read_bytes())
        touched = False
        for name, known in about["files"].items():
            path = folder / f"{name}.npy"
            status = path.stat()
            if status.st_size != known["bytes"]:
                return None
            if status.st_mtime_ns != known["modified"]:
                if sha256(path) != known["sha256"]:
                    return None
                known["modified"], touched = status.st_mtime_ns, True
        if not {"stamp", "fingerprint", "validation_from"} <= about.keys() or not {"pixels", "index"} <= set(
            about["files"]
        ):
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if touched:
        with contextlib.suppress(OodbenchError):  # a cache that may only be read is verified every time
            _write_about(folder, about)
    return about
