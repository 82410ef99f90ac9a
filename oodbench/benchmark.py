"""run(): images -> statistics -> detectors -> metrics -> records, on one page."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import numpy as np

from oodbench.data import safe_name
from oodbench.engine.device import choose_device
from oodbench.errors import OodbenchError
from oodbench.evaluation import METRICS_VERSION, count_nonfinite, evaluate_scores
from oodbench.files import check_writable, write_atomically
from oodbench.how import How, Options, listed, listed_seeds
from oodbench.models.base import bits_per_dim, has_bits
from oodbench.plugins import load_plugins
from oodbench.provenance import commit, device_name, versions
from oodbench.records import SCHEMA, Record, read_records, write_records
from oodbench.registry import DETECTORS
from oodbench.selection import check_names, contenders, pairs
from oodbench.trial import Scored, Trial, measure

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["run", "run_records", "trials"]


def run(
    in_: Sequence[str] | str | None = None,
    out: Sequence[str] | str | None = None,
    models: Sequence[str] | str | None = None,
    detectors: Sequence[str] | str | None = None,
    *,
    results: Path | str | None = None,
    scores: Path | str | None = None,
    seeds: Sequence[int] | int = (),
    **options: Unpack[Options],
) -> "pd.DataFrame":
    """`run_records` as a table: one row a record, nested keys joined by dots (`metrics.auroc.value`).

    `options` are the fields of `oodbench.how.How`: data_root, weights, plugins, seed, training_seed, device,
    batch_size, precision ("float32" or "bfloat16"), limit and progress.
    """
    import pandas as pd

    found = run_records(in_, out, models, detectors, results=results, scores=scores, seeds=seeds, **options)
    return pd.json_normalize(found)


def run_records(
    in_: Sequence[str] | str | None = None,
    out: Sequence[str] | str | None = None,
    models: Sequence[str] | str | None = None,
    detectors: Sequence[str] | str | None = None,
    *,
    results: Path | str | None = None,
    scores: Path | str | None = None,
    seeds: Sequence[int] | int = (),
    must_apply: bool = True,
    **options: Unpack[Options],
) -> list[Record]:
    """Measures detectors on pairs of data sets and returns one record a model, detector and group size.

    Without `in_` the embedded pairs; without `models` all with weights for the in-distribution set, and the model-free
    controls; without `detectors` all that apply. Records are kept in the folder `results`, per-image scores in the
    folder `scores`. With `seeds`, everything is measured on the weights of each of these training seeds (of a named
    model they are trained first where they are missing). The other keywords are the fields of `How`. Wrong names,
    images or weights raise `OodbenchError` before anything is computed, and so does, if it `must_apply`, a named
    detector that applies to no model.
    """
    how = How(**options)
    load_plugins(how.plugins)
    results, scores = (folder and check_writable(folder) for folder in (results, scores))
    old = read_records(results) if results else []
    records: list[Record] = []
    todo: list[Trial] = []
    training_seeds: Sequence[int | None] = listed_seeds(seeds) or [how.training_seed]
    for training_seed in training_seeds:
        known = {trial.test.name for trial in todo if trial.contender.model is None}
        of_seed = trials(in_, out, models, detectors, replace(how, training_seed=training_seed), must_apply)
        todo += [trial for trial in of_seed if trial.contender.model or trial.test.name not in known]
    for trial, name, scored in measure(todo, how):
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # the bootstrap lets other threads run
            made = list(pool.map(partial(_record, trial, name, old=old, how=how), scored))
        records += made
        if results and made:
            write_records(results, made)
        if scores:
            _write_scores(trial, scores, name, scored, how.seed)
    if must_apply and not records:
        raise OodbenchError("No detector gave scores: see above why, or name others with --detector.")
    return records


def trials(
    in_: Sequence[str] | str | None,
    out: Sequence[str] | str | None,
    models: Sequence[str] | str | None,
    detectors: Sequence[str] | str | None,
    how: How,
    must_apply: bool = True,
) -> Iterator[Trial]:
    """Everything that will be computed. All names and images are checked before weights are loaded or trained."""
    in_, out, models, detectors = listed(in_), listed(out), listed(models), listed(detectors)
    check_names(models, detectors)
    choose_device(how.device)
    sets = [
        (how.load(name, "test"), how.load(name, "validation"), [how.load(other, "test") for other in others])
        for name, others in pairs(in_, out).items()
    ]
    for test, validation, _ in sets:
        if validation.shape != test.shape:
            raise OodbenchError(
                f"{test.name} has training images of shape {validation.shape} but test images of shape {test.shape}: "
                "bring them to one size."
            )
    for test, validation, outs in sets:
        for contender in contenders(validation, models, detectors, how, must_apply):
            yield Trial(contender, validation, test, outs)


def _record(trial: Trial, out: str, scored: Scored, *, old: list[Record], how: How) -> Record:
    """What one detector came to on one pair; metrics of scores that were measured before are taken over."""
    model = trial.contender.model
    inside, outside = scored.inside, scored.outside
    measured = b"|".join([str(METRICS_VERSION).encode(), scored.score_in.tobytes(), scored.score_out.tobytes()])
    scores_hash = hashlib.sha256(measured).hexdigest()[:16]
    known = [r for r in old if r["provenance"].get("scores") == scores_hash and r["seed"] == how.seed]
    metrics = known[0]["metrics"] if known else evaluate_scores(scored.score_in, scored.score_out, seed=how.seed)
    bits = {
        side: float(bits_per_dim(columns["log_px"].mean(dtype=np.float64), columns.dimensions))
        for side, columns in (("in", inside.columns), ("out", outside.columns))
        if "log_px" in columns and model and has_bits(model.module.likelihood)
    }
    return {
        "schema": SCHEMA,
        "in": trial.test.name,
        "out": out,
        "model": trial.contender.name,
        "preset": model.entry["preset"] if model else None,
        "training_seed": model.entry["seed"] if model else None,
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
        "remark": model.module.remark if model else "",
        "draws": model.module.statistic_parameters().get("draws") if model else None,
        "undertrained": bool(model and model.entry["undertrained"]),
        "nonfinite": count_nonfinite(scored.score_in, scored.score_out),
        "provenance": {
            "weights": model.weights if model else None,
            "background": trial.contender.background.weights if trial.contender.background else None,
            "plugin": None
            if DETECTORS.origin_of(scored.detector) == "oodbench"
            else DETECTORS.version_of(scored.detector),
            "data": {"in": trial.test.fingerprint, "out": outside.images.fingerprint},
            "adaptation": {n: trial.adaptations[n].describe() for n in (trial.test.name, out)},
            "limit": how.limit,
            "precision": how.precision,
            "bfloat16_error": trial.bfloat16_error,
            "parameters": model.module.statistic_parameters() if model else {},
            "scores": scores_hash,
            "versions": versions(),
            **commit(),
            "device": device_name(how.device),
            "seconds_per_image": outside.seconds_per_image,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    }


def _write_scores(trial: Trial, folder: Path, out: str, scored: list[Scored], seed: int) -> None:
    """`<out>.csv` in the contender's folder, or `<out>-seed1.csv`: an image a row: set, index there, every score.

    A detector that took a subset has empty cells elsewhere.
    """
    import pandas as pd

    single = [one for one in scored if one.group_size == 1]
    scores_in = {one.detector: pd.Series(one.score_in, one.inside.images.index) for one in single}
    scores_out = {one.detector: pd.Series(one.score_out, one.outside.images.index) for one in single}
    sides = []
    for images, columns in ((trial.test.name, scores_in), (out, scores_out)):
        side = pd.DataFrame(columns).rename_axis("index").reset_index()
        side.insert(0, "set", images)
        sides.append(side)
    name = safe_name(out) + (f"-seed{seed}" if seed else "")
    path = trial.contender.folder(folder, trial.test.name) / f"{name}.csv"
    with write_atomically(path) as file:
        file.write(pd.concat(sides).to_csv(index=False).encode())
