"""How everything is computed: the options that measuring, scoring and drawing have in common."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeGuard

from oodbench.data import Images, load
from oodbench.errors import OodbenchError
from oodbench.files import Paths

__all__ = ["How", "Options", "listed", "listed_seeds"]


@dataclass(frozen=True)
class How:
    """How everything is computed; what cannot be meant is an `OodbenchError`."""

    data_root: Path | str | None = None  # of prepared `<name>/<split>.npz`; None: `OODBENCH_DATA`, if anything
    weights: Path | str | None = None  # a file or a folder with an index; None: the usual places
    plugins: Paths = ()  # files that register detectors, statistics, models or data sets
    seed: int = 0  # of noise, subsets, groups and intervals
    training_seed: int | None = None  # of the weights; None: whichever come first
    device: str = "auto"
    batch_size: int | Literal["auto"] = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"  # of networks
    limit: int | None = None  # images of a seeded subset of every set
    progress: bool = True

    def __post_init__(self) -> None:
        listed_seeds([self.seed, *([] if self.training_seed is None else [self.training_seed])])
        if self.limit is not None and not (_whole(self.limit) and self.limit >= 1):
            raise OodbenchError(f"The limit {self.limit!r} is no number of images: give a whole one of at least 1.")

    def load(self, name: str, split: str) -> Images:
        """A data set's split, or the asked for number of its images."""
        images = load(name, split, self.data_root)
        return images if self.limit is None else images.limit(self.limit, self.seed)


class Options(TypedDict, total=False):
    """The fields of `How`, as the keywords of public functions."""

    data_root: Path | str | None
    weights: Path | str | None
    plugins: Paths
    seed: int
    training_seed: int | None
    device: str
    batch_size: int | Literal["auto"]
    precision: Literal["float32", "bfloat16"]
    limit: int | None
    progress: bool


def listed(names: Iterable[str] | str | None) -> list[str] | None:
    """A single name may stand for a list of one; a name that is there twice counts once; none at all is None."""
    if names is None:
        return None
    several = isinstance(names, Iterable) and not isinstance(names, str | os.PathLike)
    found: list[Any] = list(dict.fromkeys(names)) if several else [names]
    wrong = [name for name in found if not isinstance(name, str)]
    if wrong:
        raise OodbenchError(f"{wrong[0]!r} is not a name: give a text, such as 'digits', 'folder:PATH' or 'glow'.")
    return found or None


def listed_seeds(seeds: Iterable[int] | int) -> list[int]:
    """A single seed may stand for a list of one; what is none is an `OodbenchError`."""
    several = list(dict.fromkeys(seeds)) if isinstance(seeds, Iterable) and not isinstance(seeds, str) else [seeds]
    for seed in several:
        if not (_whole(seed) and 0 <= seed < 2**32):
            raise OodbenchError(f"{seed!r} is not a seed: give a whole number from 0 to {2**32 - 1}.")
    return several


def _whole(number: object) -> TypeGuard[int]:
    return hasattr(number, "__index__")  # NumPy's too
