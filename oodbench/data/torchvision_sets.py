"""Public sets, downloaded and verified by torchvision, counted, turned upright and prepared here."""

import contextlib
import errno
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from oodbench.data.adaptation import cover, to_chw
from oodbench.data.npz import LAYOUT
from oodbench.data.store import Prepared, RawImages, prepared
from oodbench.errors import OodbenchError
from oodbench.files import cache_dir
from oodbench.messages import tell

__all__ = ["TORCHVISION", "prepared_torchvision"]

_VERSION = 1  # another number whenever a set below is prepared otherwise


def _train(part: str) -> dict[str, Any]:
    return {"train": part == "train"}


def _split(part: str) -> dict[str, Any]:
    return {"split": part}


@dataclass(frozen=True)
class _Set:
    summary: str
    class_name: str
    arguments: Callable[[str], dict[str, Any]]  # of "train" or "test"
    train: int  # the official number of images: an archive unpacked only in part is found by it
    test: int
    resized: bool = False  # scaled to cover 32x32 and cropped in the middle, as `Adaptation` does


TORCHVISION: dict[str, _Set] = {
    "mnist": _Set("Handwritten digits, grey 28x28", "MNIST", _train, 60_000, 10_000),
    "fashionmnist": _Set("Clothes, grey 28x28", "FashionMNIST", _train, 60_000, 10_000),
    "kmnist": _Set("Japanese characters, grey 28x28", "KMNIST", _train, 60_000, 10_000),
    "emnist_letters": _Set(
        "Handwritten letters, grey 28x28, upright",
        "EMNIST",
        lambda part: {"split": "letters", **_train(part)},
        124_800,
        20_800,
    ),
    "omniglot": _Set(
        "Characters of 50 alphabets, black on white 105x105; train is the background set",
        "Omniglot",
        lambda part: {"background": part == "train"},
        19_280,
        13_180,
    ),
    "cifar10": _Set("Objects of 10 classes, colour 32x32", "CIFAR10", _train, 50_000, 10_000),
    "cifar100": _Set("Objects of 100 classes, colour 32x32", "CIFAR100", _train, 50_000, 10_000),
    "svhn": _Set("Street-view house numbers, colour 32x32", "SVHN", _split, 73_257, 26_032),
    "celeba": _Set(
        "Faces, resized to colour 32x32",
        "CelebA",
        lambda part: {"split": part, "target_type": []},
        162_770,
        19_962,
        resized=True,
    ),
    "gtsrb": _Set("German traffic signs, resized to colour 32x32", "GTSRB", _split, 26_640, 12_630, resized=True),
    "flowers102": _Set(
        "Flowers of 102 kinds, resized to colour 32x32", "Flowers102", _split, 1_020, 6_149, resized=True
    ),
    "dtd": _Set("Textures (first partition), resized to colour 32x32", "DTD", _split, 1_880, 1_880, resized=True),
    "stl10": _Set("Objects of 10 classes, colour 96x96", "STL10", _split, 5_000, 8_000),
}


def prepared_torchvision(name: str, part: str) -> Prepared:
    """The prepared copy of one of the sets above; `part` is "train" or "test"."""
    return prepared(f"torchvision:{name}", part, {"version": _VERSION}, lambda: _read(name, part), name)


def _read(name: str, part: str) -> RawImages:
    import torchvision

    known = TORCHVISION[name]
    folder = cache_dir() / "downloads" / name
    tell(f"Getting {name} ({part}) with torchvision into {folder}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.redirect_stdout(sys.stderr):  # results alone go to stdout
            dataset = getattr(torchvision.datasets, known.class_name)(
                root=str(folder), download=True, **known.arguments(part)
            )
        raw = _images_of(dataset, known.resized, name)
    except Exception as error:  # torchvision and what it unpacks with raise almost anything
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OodbenchError(f"The disk is full: could not download {name} to {folder}; free some space.") from error
        reason = (str(error).splitlines() or [""])[0].rstrip(".:") or type(error).__name__
        raise OodbenchError(
            f"Could not get {name} ({reason}): check the network and run again (remove {folder} first if a download "
            f"was cut off there), or put {name}/{part}.npz ({LAYOUT}) under a data root and name that by --data-root "
            "or OODBENCH_DATA."
        ) from error
    expected = known.train if part == "train" else known.test
    if len(raw.pixels) != expected:
        raise OodbenchError(
            f"{name} has {len(raw.pixels)} {part} images where {expected} belong: remove {folder} and run again."
        )
    return raw


def _images_of(dataset: Any, resized: bool, name: str) -> RawImages:
    """The images of a torchvision data set as they are in memory, or read one by one."""
    if not hasattr(dataset, "data"):
        return _read_each(dataset, resized, name)
    pixels = np.asarray(dataset.data)
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.shape[3] == 3:
        pixels = pixels.transpose(0, 3, 1, 2)
    if type(dataset).__name__ == "EMNIST":
        pixels = pixels.swapaxes(2, 3)  # torchvision's copy lies on its side, mirrored
    labels = np.asarray(dataset.targets if hasattr(dataset, "targets") else dataset.labels).astype(np.int64)
    return RawImages(pixels, labels)


def _read_each(dataset: Any, resized: bool, name: str) -> RawImages:
    from tqdm import tqdm

    pixels, labels = [], []
    for position in tqdm(range(len(dataset)), desc=f"preparing {name}", unit="images"):
        image, label = dataset[position]
        if resized:
            image = cover(image.convert("RGB"), 32, 32)
        pixels.append(to_chw(image))
        labels.append(label)
    return RawImages(np.stack(pixels), None if labels[0] is None else np.array(labels, np.int64))
