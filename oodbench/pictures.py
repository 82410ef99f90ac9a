"""What a run computes, as pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

import numpy as np

from oodbench.benchmark import trials
from oodbench.data import safe_name
from oodbench.errors import OodbenchError
from oodbench.files import check_writable
from oodbench.how import How, Options
from oodbench.models.base import bits_per_dim, has_bits
from oodbench.plugins import load_plugins
from oodbench.trial import measure

__all__ = ["PICTURES", "plot"]

PICTURES = ("png", "pdf", "svg")


def plot(
    in_: Sequence[str] | str | None = None,
    out: Sequence[str] | str | None = None,
    models: Sequence[str] | str | None = None,
    detectors: Sequence[str] | str | None = None,
    *,
    results: Path | str = Path("results"),
    picture: str = "png",
    **options: Unpack[Options],
) -> list[Path]:
    """For every model and pair a histogram of bits/dim and the ROC curves of all detectors, beside the records.

    A density on a manifold has no bits/dim: its histogram is of nats. A posterior over weights has one more, of how far
    its members differ. `picture` is "png", "pdf" or "svg"; the other keywords are those of `run`. Where no detector
    gave scores it is an `OodbenchError`.
    """
    from oodbench.report import histograms, roc_curves

    if picture not in PICTURES:
        raise OodbenchError(f"There are no pictures of the kind {picture!r}: take {', '.join(PICTURES)}.")
    how = How(**options)
    load_plugins(how.plugins)
    results = check_writable(results)
    pictures = []
    for trial, other, scored in measure(list(trials(in_, out, models, detectors, how)), how):
        name = trial.contender.name
        stem = trial.contender.folder(results, trial.test.name) / safe_name(other)
        title = f"{name if trial.contender.model else 'model-free controls'}, {trial.test.name} against {other}"
        fullest = scored[0] if scored else None
        sides = {trial.test.name: fullest.inside.columns, other: fullest.outside.columns} if fullest else {}
        model = trial.contender.model
        if model and sides and all("log_px" in columns for columns in sides.values()):
            if has_bits(model.module.likelihood):
                kind, label = "bits", "bits/dim"
                values = {n: bits_per_dim(columns["log_px"], columns.dimensions) for n, columns in sides.items()}
            else:
                kind, label = "density", f"-log density in nats ({model.module.remark})"
                values = {n: -columns["log_px"] for n, columns in sides.items()}
            pictures.append(stem.with_name(f"{stem.name}-{kind}.{picture}"))
            histograms(pictures[-1], values, xlabel=label, title=title)
        members = {n: columns["log_px_members"] for n, columns in sides.items() if "log_px_members" in columns}
        if members and all(column.shape[1] > 1 for column in members.values()):  # a single member differs from nobody
            spread = {n: column.std(axis=1, ddof=1, dtype=np.float64) for n, column in members.items()}
            pictures.append(stem.with_name(f"{stem.name}-members.{picture}"))
            histograms(pictures[-1], spread, xlabel="standard deviation of log p over the members, nats", title=title)
        curves = {one.detector: (one.score_in, one.score_out) for one in scored if one.group_size == 1}
        if curves:
            pictures.append(stem.with_name(f"{stem.name}-roc.{picture}"))
            roc_curves(pictures[-1], curves, title=title)
    if not pictures:
        raise OodbenchError("There is nothing to draw: no detector gave scores of single images.")
    return pictures
