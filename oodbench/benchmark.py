"""run(): images -> statistics -> detectors -> metrics -> records, on one page."""

import hashlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from oodbench.data import Domain, Images, adaptation, in_domain, load, safe_name
from oodbench.detector import Columns, Detector
from oodbench.engine import Evaluation, evaluate
from oodbench.engine.device import choose_device
from oodbench.errors import OodbenchError
from oodbench.evaluation import count_nonfinite, evaluate_scores
from oodbench.files import check_writable, write_atomically
from oodbench.models.base import bits_per_dim
from oodbench.plugins import load_plugins
from oodbench.provenance import commit, device_name, versions
from oodbench.records import Record, read_records, write_records
from oodbench.registry import DETECTORS
from oodbench.selection import BACKGROUND, Contender, check_names, contenders, pairs

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["plot", "run", "run_records", "score_images"]

PRECISION_IMAGES = 128  # on which the error of bfloat16 networks is measured


def run(*arguments: Any, **keywords: Any) -> "pd.DataFrame":
    """`run_records` as a table: one row a record, nested keys joined by dots (`metrics.auroc.value`)."""
    import pandas as pd

    return pd.json_normalize(run_records(*arguments, **keywords))


def run_records(
    in_: Sequence[str] | str | None = None,
    out: Sequence[str] | str | None = None,
    models: Sequence[str] | str | None = None,
    detectors: Sequence[str] | str | None = None,
    *,
    data_root: Path | None = None,
    results: Path | None = None,
    seed: int = 0,
    device: str = "auto",
    batch_size: int | Literal["auto"] = "auto",
    precision: Literal["float32", "bfloat16"] = "float32",
    limit: int | None = None,
    plugins: Sequence[Path] = (),
    weights: Path | None = None,
    scores: Path | None = None,
    progress: bool = True,
) -> list[Record]:
    """Measures detectors on pairs of data sets and returns one record a model, detector and group size.

    Without `in_` the embedded pairs; without `models` all with weights for the in-distribution set, and the model-free
    controls; without `detectors` all that apply. `limit` takes a seeded subset of every set. Records are kept in the
    folder `results`, per-image scores in the folder `scores`. Wrong names, images or weights raise `OodbenchError`
    before anything is computed.
    """
    load_plugins(plugins)
    for folder in filter(None, (results, scores)):
        check_writable(folder)
    old = read_records(results) if results else []
    how = _How(data_root, seed, device, batch_size, precision, limit, progress)
    trials = list(_trials(_names(in_), _names(out), _names(models), _names(detectors), weights, how))
    records: list[Record] = []
    for trial in trials:
        for name, scored in trial.run(how):
            made = [trial.record(name, one, old, how) for one in scored]
            records += made
            if results and made:
                write_records(results, made)
            if scores:
                trial.write_scores(scores, name, scored)
    return records


@dataclass(frozen=True)
class _How:
    """How everything is computed."""

    data_root: Path | None
    seed: int
    device: str
    batch_size: int | Literal["auto"]
    precision: Literal["float32", "bfloat16"]
    limit: int | None
    progress: bool

    def load(self, name: str, split: str) -> Images:
        images = load(name, split, self.data_root)
        return images if self.limit is None else images.limit(self.limit, self.seed)


@dataclass(frozen=True)
class _Scored:
    """One detector's scores of one pair, in groups."""

    detector: str
    group_size: int
    score_in: np.ndarray
    score_out: np.ndarray


class _Trial:
    """One model (or none) on one in-distribution set and all that is held against it."""

    def __init__(self, contender: Contender, validation: Images, test: Images, outs: list[Images]) -> None:
        if validation.shape != test.shape:
            raise OodbenchError(
                f"{test.name} has training images of shape {validation.shape} but test images of shape {test.shape}: "
                "bring them to one size."
            )
        self.contender, self.validation, self.test, self.outs = contender, validation, test, outs
        self.domain: Domain = in_domain(test)
        if contender.model and contender.model.module.shape != self.domain.shape:
            raise OodbenchError(
                f"The weights of {contender.name} take images of shape {contender.model.module.shape}, but {test.name} "
                f"has {self.domain.shape}: train the model on {test.name}."
            )
        self.adaptations = {images.name: adaptation(images, self.domain) for images in [validation, test, *outs]}
        self.evaluations: dict[str, Evaluation] = {}
        self.bfloat16_error: dict[str, float] | None = None

    def run(self, how: _How) -> Iterator[tuple[str, list[_Scored]]]:
        """(out-of-distribution set, scores of all detectors) after another; statistics of a set are computed once."""
        validation = self.evaluate(self.validation, how)
        if how.precision == "bfloat16" and self.contender.model:
            self.bfloat16_error = self.measure_bfloat16(how)
        fitted: dict[str, Detector] = {}
        for name in self.contender.detectors:
            with _skipping(name):
                detector = DETECTORS.get(name)()
                detector.fit(validation.columns)
                fitted[name] = detector
        inside = self.evaluations[self.test.name] = self.evaluate(self.test, how)
        for images in self.outs:
            outside = self.evaluations[images.name] = self.evaluate(images, how)
            scored = []
            for name, detector in fitted.items():
                with _skipping(name):
                    for size in detector.group_sizes:
                        sides = [_score(name, detector, one.columns, size, how.seed) for one in (inside, outside)]
                        if all(len(side) for side in sides):
                            scored.append(_Scored(name, size, *sides))
            yield images.name, scored

    def evaluate(self, images: Images, how: _How) -> Evaluation:
        """All columns that the detectors need, those of the companion model too."""
        needs = sorted({need for name in self.contender.detectors for need in DETECTORS.get(name).needs})
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
        return Evaluation(Columns(arrays, result.columns.dimensions), result.seconds_per_image, result.computed)

    def measure_bfloat16(self, how: _How) -> dict[str, float]:
        """What bfloat16 networks change in log_px of a few validation images, in nats."""
        few = self.validation.limit(PRECISION_IMAGES, how.seed)
        here, exact = (
            self.evaluate(few, replace(how, precision=precision)).columns["log_px"].astype(np.float64)
            for precision in (how.precision, "float32")
        )
        error = np.abs(here - exact)
        return {"mean_nats": float(error.mean()), "max_nats": float(error.max()), "n": len(few)}

    def record(self, out: str, scored: _Scored, old: list[Record], how: _How) -> Record:
        """What one detector came to on one pair; metrics of scores that were measured before are taken over."""
        model = self.contender.model
        outside = next(images for images in self.outs if images.name == out)
        inside_columns, outside_columns = (self.evaluations[n].columns for n in (self.test.name, out))
        scores_hash = hashlib.sha256(scored.score_in.tobytes() + b"|" + scored.score_out.tobytes()).hexdigest()[:16]
        known = [r for r in old if r["provenance"].get("scores") == scores_hash and r["seed"] == how.seed]
        metrics = known[0]["metrics"] if known else evaluate_scores(scored.score_in, scored.score_out, seed=how.seed)
        bits = {
            side: float(bits_per_dim(columns["log_px"].mean(dtype=np.float64), columns.dimensions))
            for side, columns in (("in", inside_columns), ("out", outside_columns))
            if "log_px" in columns
        }
        return {
            "schema": 1,
            "in": self.test.name,
            "out": out,
            "model": self.contender.name,
            "preset": model.entry["preset"] if model else None,
            "weights_short": model.weights[:8] if model else None,
            "detector": scored.detector,
            "seed": how.seed,
            "group_size": scored.group_size,
            "n_in": len(scored.score_in),
            "n_out": len(scored.score_out),
            "metrics": metrics,
            "inversion": metrics["auroc"]["high"] < 0.5,
            "bits_per_dim": bits or None,
            "likelihood": model.module.likelihood.value if model else None,
            "draws": model.module.statistic_parameters().get("draws") if model else None,
            "undertrained": bool(model and model.entry["undertrained"]),
            "nonfinite": count_nonfinite(scored.score_in, scored.score_out),
            "provenance": {
                "weights": model.weights if model else None,
                "background": self.contender.background.weights if self.contender.background else None,
                "data": {"in": self.test.fingerprint, "out": outside.fingerprint},
                "adaptation": {n: self.adaptations[n].describe() for n in (self.test.name, out)},
                "limit": how.limit,
                "precision": how.precision,
                "bfloat16_error": self.bfloat16_error,
                "parameters": model.module.statistic_parameters() if model else {},
                "scores": scores_hash,
                "versions": versions(),
                **commit(),
                "device": device_name(how.device),
                "seconds_per_image": self.evaluations[out].seconds_per_image,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
            },
        }

    def write_scores(self, folder: Path, out: str, scored: list[_Scored]) -> None:
        """`<folder>/<in>/<model>/<out>.csv`: a row an image: set, index there, every detector's score."""
        import pandas as pd

        outside = next(images for images in self.outs if images.name == out)
        sides = []
        for images, field in ((self.test, "score_in"), (outside, "score_out")):
            columns = {one.detector: getattr(one, field) for one in scored if one.group_size == 1}
            sides.append(pd.DataFrame({"set": images.name, "index": images.index, **columns}))
        path = folder / safe_name(self.test.name) / self.contender.name / f"{safe_name(out)}.csv"
        with write_atomically(path) as file:
            file.write(pd.concat(sides).to_csv(index=False).encode())


def _trials(
    in_: list[str] | None,
    out: list[str] | None,
    models: list[str] | None,
    detectors: list[str] | None,
    weights: Path | None,
    how: _How,
) -> Iterator[_Trial]:
    """Everything that will be computed. All names and images are checked before weights are loaded or trained."""
    check_names(models, detectors)
    choose_device(how.device)
    sets = [
        (how.load(name, "test"), how.load(name, "validation"), [how.load(other, "test") for other in others])
        for name, others in pairs(in_, out).items()
    ]
    for test, validation, outs in sets:
        for contender in contenders(validation, models, detectors, weights, how.data_root, how.device, how.progress):
            yield _Trial(contender, validation, test, outs)


@contextmanager
def _skipping(name: str) -> Iterator[None]:
    """Names a detector that cannot go on, on stderr, and lets the others live; a bug of our own is not hidden."""
    origin = DETECTORS.origin_of(name)
    try:
        yield
    except Exception as error:
        if not isinstance(error, OodbenchError) and origin == "oodbench":
            raise
        what = str(error) if isinstance(error, OodbenchError) else f"{type(error).__name__}: {error}"
        print(f"oodbench: skipped the detector {name!r} (from {origin}): {' '.join(what.split())}", file=sys.stderr)


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


def score_images(
    images: str,
    model: str,
    dataset: str,
    detector: Sequence[str] | None = None,
    output: Path | None = None,
    *,
    data_root: Path | None = None,
    seed: int = 0,
    device: str = "auto",
    batch_size: int | Literal["auto"] = "auto",
    precision: Literal["float32", "bfloat16"] = "float32",
    limit: int | None = None,
    plugins: Sequence[Path] = (),
    weights: Path | None = None,
) -> "pd.DataFrame":
    """Scores of a user's images by a model of `dataset`: a row an image and detector, also written to `output` as CSV.

    `percentile` is the share of validation images with a smaller or equal score, in percent; `p_value` is the conformal
    (1 + #{validation scores >= score}) / (1 + n): small means unlike the in-distribution images.
    """
    import pandas as pd

    load_plugins(plugins)
    if output is not None:
        check_writable(output.parent)
    how = _How(data_root, seed, device, batch_size, precision, limit, progress=True)
    check_names([model], detector)
    choose_device(device)
    validation, users = load(dataset, "validation", data_root), how.load(images, "test")
    tables = []
    for contender in contenders(validation, [model], detector, weights, data_root, device, progress=True):
        trial = _Trial(contender, validation, validation, [users])
        for _, scored in trial.run(how):
            for one in (s for s in scored if s.group_size == 1):
                reference = np.sort(one.score_in)
                below = np.searchsorted(reference, one.score_out, "left")
                up_to = np.searchsorted(reference, one.score_out, "right")
                table = {
                    "image": users.index,
                    "model": contender.name,
                    "detector": one.detector,
                    "score": one.score_out,
                    "percentile": 100 * up_to / len(reference),
                    "p_value": (1 + len(reference) - below) / (1 + len(reference)),
                }
                tables.append(pd.DataFrame(table))
    if not tables:
        raise OodbenchError("No detector gave scores of single images: name another one with --detector.")
    result = pd.concat(tables, ignore_index=True)
    if output is not None:
        with write_atomically(output) as file:
            file.write(result.to_csv(index=False).encode())
    return result


def plot(
    in_: Sequence[str] | None = None,
    out: Sequence[str] | None = None,
    models: Sequence[str] | None = None,
    detectors: Sequence[str] | None = None,
    *,
    data_root: Path | None = None,
    results: Path = Path("results"),
    seed: int = 0,
    device: str = "auto",
    batch_size: int | Literal["auto"] = "auto",
    precision: Literal["float32", "bfloat16"] = "float32",
    limit: int | None = None,
    plugins: Sequence[Path] = (),
    weights: Path | None = None,
) -> list[Path]:
    """For every model and pair a histogram of bits/dim and the ROC curves of all detectors, beside the records."""
    from oodbench.report import histograms, roc_curves

    load_plugins(plugins)
    check_writable(results)
    how = _How(data_root, seed, device, batch_size, precision, limit, progress=True)
    pictures = []
    for trial in list(_trials(_names(in_), _names(out), _names(models), _names(detectors), weights, how)):
        name = trial.contender.name
        for other, scored in trial.run(how):
            stem = results / safe_name(trial.test.name) / name / safe_name(other)
            title = f"{name if trial.contender.model else 'model-free controls'}, {trial.test.name} against {other}"
            sides = {n: trial.evaluations[n].columns for n in (trial.test.name, other)}
            if all("log_px" in columns for columns in sides.values()):
                pictures.append(stem.with_name(f"{stem.name}-bits.png"))
                bits = {n: bits_per_dim(columns["log_px"], columns.dimensions) for n, columns in sides.items()}
                histograms(pictures[-1], bits, title=title)
            curves = {one.detector: (one.score_in, one.score_out) for one in scored if one.group_size == 1}
            pictures.append(stem.with_name(f"{stem.name}-roc.png"))
            roc_curves(pictures[-1], curves, title=title)
    return pictures


def _names(names: Sequence[str] | str | None) -> list[str] | None:
    """A single name may stand for a list of one; a name that is there twice counts once."""
    return cast(list[str] | None, [names] if isinstance(names, str) else list(dict.fromkeys(names)) if names else None)
