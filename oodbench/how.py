"""How everything is computed: the options that measuring, scoring and drawing have in common."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict

from oodbench.data import Images, load

__all__ = ["How", "Options"]


@dataclass(frozen=True)
class How:
    """How everything is computed."""

    data_root: Path | None = None  # of prepared `<name>/<split>.npz`; None: `OODBENCH_DATA`, if anything
    weights: Path | None = None  # a file or a folder with an index; None: the usual places
    plugins: Sequence[Path] = ()  # files that register detectors, statistics, models or data sets
    seed: int = 0  # of noise, subsets, groups and intervals
    training_seed: int | None = None  # of the weights; None: whichever come first
    device: str = "auto"
    batch_size: int | Literal["auto"] = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"  # of networks
    limit: int | None = None  # images of a seeded subset of every set
    progress: bool = True

    def load(self, name: str, split: str) -> Images:
        """A data set's split, or the asked for number of its images."""
        images = load(name, split, self.data_root)
        return images if self.limit is None else images.limit(self.limit, self.seed)


class Options(TypedDict, total=False):
    """The fields of `How`, as the keywords of public functions."""

    data_root: Path | None
    weights: Path | None
    plugins: Sequence[Path]
    seed: int
    training_seed: int | None
    device: str
    batch_size: int | Literal["auto"]
    precision: Literal["float32", "bfloat16"]
    limit: int | None
    progress: bool
