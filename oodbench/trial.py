"""One model on one in-distribution set: images -> statistics -> detectors, every statistic computed once."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from oodbench.data import Domain, Images, adaptation, in_domain
from oodbench.detector import Columns, Detector
from oodbench.engine import Evaluation, evaluate
from oodbench.errors import ModelError, OodbenchError, PluginError, StatisticError
from oodbench.how import How
from oodbench.registry import DETECTORS
from oodbench.selection import BACKGROUND, Contender, needs_of, tell_skipped

__all__ = ["Scored", "Trial", "measure"]

PRECISION_IMAGES = 128  # on which the error of bfloat16 networks is measured


@dataclass(frozen=True)
class Scored:
    """One detector's scores of one pair, in groups, and the images and columns that they are of."""

    detector: str
    group_size: int
    score_in: np.ndarray
    score_out: np.ndarray
    inside: Evaluation
    outside: Evaluation


class Trial:
    """One model (or none) on one in-distribution set and all that is held against it."""

    def __init__(self, contender: Contender, validation: Images, test: Images, outs: list[Images]) -> None:
        self.contender, self.validation, self.test, self.outs = contender, validation, test, outs
        self.detectors = contender.detectors  # less those whose statistic fails
        self.domain: Domain = in_domain(test)
        if contender.model and contender.model.module.shape != self.domain.shape:
            raise OodbenchError(
                f"The weights of {contender.name} take images of shape {contender.model.module.shape}, but {test.name} "
                f"has {self.domain.shape}: train the model on {test.name}."
            )
        self.adaptations = {images.name: adaptation(images, self.domain) for images in [validation, test, *outs]}
        self.bfloat16_error: dict[str, float] | None = None

    def run(self, how: How) -> Iterator[tuple[str, list[Scored]]]:
        """(out-of-distribution set, scores of all detectors) after another; statistics of a set are computed once.

        Raises `StatisticError` when plugins' statistics failed so that no detector is left, and `ModelError` when a
        plugin's model failed.
        """
        tiers = self._tiers()
        if how.precision == "bfloat16" and self.contender.model:
            self.bfloat16_error = self.measure_bfloat16(how)
        fitted = {name: detector for most in tiers for name, detector in self._fit(tiers[most], most, how)}
        inside = {most: self.evaluate(self.test, tiers[most], most, how) for most in tiers}
        for images in self.outs:
            scored: list[Scored] = []
            for most, names in tiers.items():
                sides = inside[most], self.evaluate(images, names, most, how)
                for name in (name for name in names if name in fitted and name in self.detectors):
                    with _skipping(name):
                        scored += self._score(name, fitted[name], sides, how)
            yield images.name, scored

    def _tiers(self) -> dict[int | None, list[str]]:
        """The detectors by how many images of a set they take at most; those that take all come first."""
        most = {name: DETECTORS.get(name).most_images for name in self.detectors}
        sizes = sorted(set(most.values()), key=lambda size: -math.inf if size is None else -size)
        return {size: [name for name in self.detectors if most[name] == size] for size in sizes}

    def _fit(self, names: Sequence[str], most: int | None, how: How) -> Iterator[tuple[str, Detector]]:
        """The detectors, fitted; what costs seconds an image is not computed where nothing is learned from it."""
        learning = [name for name in names if most is None or DETECTORS.get(name).fit is not Detector.fit]
        columns = self.evaluate(self.validation, learning, most, how).columns if learning else None
        for name in (name for name in names if name in self.detectors):
            with _skipping(name):
                detector = DETECTORS.get(name)()
                if columns is not None and name in learning:
                    detector.fit(columns.only(self._needs(name)))
                yield name, detector

    def _score(self, name: str, detector: Detector, sides: tuple[Evaluation, Evaluation], how: How) -> Iterator[Scored]:
        """Scores of every group size for which there are images enough."""
        for size in detector.group_sizes:
            score_in, score_out = (
                _score(name, detector, one.columns.only(self._needs(name)), size, how.seed) for one in sides
            )
            if len(score_in) and len(score_out):
                yield Scored(name, size, score_in, score_out, *sides)
            elif size == min(detector.group_sizes):  # larger groups are a plus where there are images enough
                few = min(one.columns.rows for one in sides)
                raise OodbenchError(f"it scores groups of {size} images and a set has {few}: take more.")

    def _needs(self, name: str) -> tuple[str, ...]:
        return needs_of(name, self.contender.model)

    def evaluate(self, images: Images, names: Sequence[str], most: int | None, how: How) -> Evaluation:
        """All columns that these detectors need, of `most` images at most.

        One whose statistic fails is named on stderr, and needs no more.
        """
        if most is not None:
            images = images.limit(most, how.seed)
        while True:
            try:
                return self._columns(images, [name for name in names if name in self.detectors], how)
            except StatisticError as error:
                readers = [name for name in self.detectors if error.statistic in self._statistics(name)]
                self.detectors = tuple(name for name in self.detectors if name not in readers)
                tell_skipped(f"the detector {', '.join(map(repr, readers))}", error)
                if not self.detectors:
                    raise

    def _columns(self, images: Images, names: Sequence[str], how: How) -> Evaluation:
        """The columns of the model and those of its companion."""
        needs = sorted({need for name in names for need in self._needs(name)})
        if self.contender.model and "log_px" in self.contender.model.module.columns:
            needs = sorted({"log_px", *needs})  # bits/dim stand in every record
        common: dict[str, Any] = {
            "seed": how.seed,
            "device": how.device,
            "batch_size": how.batch_size,
            "precision": how.precision,
            "progress": how.progress,
        }
        adapt = self.adaptations[images.name]
        own = [need for need in needs if not need.endswith(BACKGROUND)]
        result = evaluate(own, images, adapt, model=self.contender.model, **common)
        companion = [need.removesuffix(BACKGROUND) for need in needs if need.endswith(BACKGROUND)]
        if not companion:
            return result
        other = evaluate(companion, images, adapt, model=self.contender.background, **common)
        arrays = {**result.columns.arrays, **{f"{k}{BACKGROUND}": v for k, v in other.columns.arrays.items()}}
        seconds = sum(one.seconds_per_image or 0.0 for one in (result, other))
        columns = replace(result.columns, arrays=arrays)
        return Evaluation(images, columns, seconds, max(result.computed, other.computed))

    def _statistics(self, name: str) -> set[str]:
        """What a detector reads, of the model or of its companion."""
        return {need.removesuffix(BACKGROUND) for need in self._needs(name)}

    def measure_bfloat16(self, how: How) -> dict[str, float]:
        """What bfloat16 networks change in log_px of a few validation images, in nats."""
        few = self.validation.limit(PRECISION_IMAGES, how.seed)
        here, exact = (
            self._columns(few, (), replace(how, precision=precision)).columns["log_px"].astype(np.float64)
            for precision in (how.precision, "float32")
        )
        error = np.abs(here - exact)
        return {"mean_nats": float(error.mean()), "max_nats": float(error.max()), "n": len(few)}


def measure(trials: Iterable[Trial], how: How) -> Iterator[tuple[Trial, str, list[Scored]]]:
    """What `Trial.run` gives, of one trial after the other; the first `PluginError` at the end if every one raised one.

    A plugin's model that fails is named on stderr, and the others live.
    """
    faults: list[PluginError | None] = []
    for trial in trials:
        fault = None
        try:
            for out, scored in trial.run(how):
                yield trial, out, scored
        except PluginError as error:
            fault = error
            if isinstance(error, ModelError):
                tell_skipped(f"the model {trial.contender.name!r} on {trial.test.name}", error)
        faults.append(fault)
    first = next(iter(faults), None)
    if first is not None and all(faults):
        raise first


@contextmanager
def _skipping(name: str) -> Iterator[None]:
    """Names a detector that cannot go on, on stderr, and lets the others live; a bug of our own is not hidden."""
    origin = DETECTORS.origin_of(name)
    try:
        yield
    except Exception as error:
        if not isinstance(error, OodbenchError) and origin == "oodbench":
            raise
        tell_skipped(f"the detector {name!r} (from {origin})", error)


def _score(name: str, detector: Detector, columns: Columns, size: int, seed: int) -> np.ndarray:
    """Scores of disjoint groups of a seeded shuffle, the remainder dropped; of single images in their order."""
    if size > 1:
        order = np.random.Generator(np.random.Philox(key=[seed, size])).permutation(columns.rows)
        columns = columns.take(order[: columns.rows // size * size], size)
    if not columns.rows:
        return np.empty(0)
    score = np.asarray(detector.score(columns), dtype=np.float64)
    if score.shape != (columns.rows // size,):
        raise OodbenchError(
            f"The detector {name!r} gave scores of shape {score.shape} for {columns.rows // size} images or groups: "
            "score() must return one number each."
        )
    return score
