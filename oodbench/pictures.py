"""What a run computes, as pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from oodbench.benchmark import trials
from oodbench.data import safe_name
from oodbench.files import check_writable
from oodbench.models.base import bits_per_dim, has_bits
from oodbench.plugins import load_plugins
from oodbench.trial import How, measure

__all__ = ["plot"]


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
    """For every model and pair a histogram of bits/dim and the ROC curves of all detectors, beside the records.

    A density on a manifold has no bits/dim: its histogram is of nats.
    """
    from oodbench.report import histograms, roc_curves

    load_plugins(plugins)
    check_writable(results)
    how = How(data_root, seed, device, batch_size, precision, limit, progress=True)
    pictures = []
    for trial, other, scored in measure(list(trials(in_, out, models, detectors, weights, how)), how):
        name = trial.contender.name
        stem = results / safe_name(trial.test.name) / name / safe_name(other)
        title = f"{name if trial.contender.model else 'model-free controls'}, {trial.test.name} against {other}"
        sides = {n: trial.evaluations[n].columns for n in (trial.test.name, other)}
        model = trial.contender.model
        if model and all("log_px" in columns for columns in sides.values()):
            if has_bits(model.module.likelihood):
                kind, label = "bits", "bits/dim"
                values = {n: bits_per_dim(columns["log_px"], columns.dimensions) for n, columns in sides.items()}
            else:
                kind, label = "density", f"-log density in nats ({model.module.remark})"
                values = {n: -columns["log_px"] for n, columns in sides.items()}
            pictures.append(stem.with_name(f"{stem.name}-{kind}.png"))
            histograms(pictures[-1], values, xlabel=label, title=title)
        curves = {one.detector: (one.score_in, one.score_out) for one in scored if one.group_size == 1}
        pictures.append(stem.with_name(f"{stem.name}-roc.png"))
        roc_curves(pictures[-1], curves, title=title)
    return pictures
