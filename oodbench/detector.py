"""What a detector is, and the columns it reads."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

__all__ = ["EVERY_COLUMN", "Columns", "Detector"]

EVERY_COLUMN = "*"  # among a detector's needs: all that the model's forward pass gives, whichever model it is


@dataclass(frozen=True)
class Columns(Mapping[str, np.ndarray]):
    """Named per-image statistics of N images, in the images' order.

    With `group_size` b > 1, rows g*b ... g*b + b - 1 are the images of group g, and N is a multiple of b.
    """

    arrays: Mapping[str, np.ndarray]  # each (N, ...)
    dimensions: int  # D = channels x height x width of the model's domain
    group_size: int = 1
    latents: int | None = None  # how many numbers `latent_norm` is the norm of, where they are not D

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)

    @property
    def rows(self) -> int:
        """N, the number of images."""
        return len(next(iter(self.arrays.values()))) if self.arrays else 0

    def groups(self, name: str) -> np.ndarray:
        """The column as (N / group_size, group_size, ...)."""
        column = self[name]
        return column.reshape(-1, self.group_size, *column.shape[1:])

    def only(self, names: Iterable[str]) -> "Columns":
        """The columns of these names."""
        return replace(self, arrays={name: self[name] for name in names})

    def take(self, rows: np.ndarray, group_size: int = 1) -> "Columns":
        """The columns of `rows`, in that order, as groups of `group_size`."""
        taken = {name: column[rows] for name, column in self.arrays.items()}
        return Columns(taken, self.dimensions, group_size, self.latents)


class Detector:
    """A few lines of arithmetic on columns. **A larger score means more out-of-distribution.**

    To add one: subclass, name the columns in `needs`, write `score`, decorate with `@register.detector("name")`.
    `fit` sees the in-distribution validation images' columns (ungrouped) and nothing else. A column `log_px@background`
    is `log_px` of the companion model that was trained on mutated images; `EVERY_COLUMN` stands for all columns of the
    model's forward pass. `fit` and `score` get what was named and nothing else. The first line of the docstring says
    the formula; it is what `oodbench list detectors` shows.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    group_sizes: ClassVar[tuple[int, ...]] = (1,)  # every size is scored and recorded apart
    # Of what costs seconds an image: it runs only when named, on a seeded subset of so many images of every set.
    most_images: ClassVar[int | None] = None

    def fit(self, validation: Columns) -> None:
        """Learns from in-distribution images that the model did not train on; by default there is nothing to learn."""

    def score(self, columns: Columns) -> np.ndarray:
        """(N / group_size,) scores, larger = more out-of-distribution."""
        raise NotImplementedError(f"{type(self).__name__} must define score().")
