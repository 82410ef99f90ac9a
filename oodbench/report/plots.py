"""Two pictures of one pair: score histograms and ROC curves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oodbench.errors import OodbenchError
from oodbench.evaluation import Levels, auroc, delong_interval
from oodbench.files import write_atomically
from oodbench.report.grid import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["histograms", "roc_curves"]

# Okabe and Ito's palette, which colour-blind readers can tell apart; the first is for the in-distribution set.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)))  # once round the palette, the next dash
_FORMATS = (".pdf", ".png", ".svg")
_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "text.parse_math": False,  # a "$" in a name is a "$"
    "pdf.fonttype": 42,  # text stays text
    "svg.fonttype": "none",
    "svg.hashsalt": "oodbench",  # the same picture is the same file
}
_CURVE_POINTS = 1000


def histograms(path: Path, scores: Mapping[str, Any], *, xlabel: str = "bits/dim", title: str = "") -> Path:
    """Overlaid densities of {label: scores (N,)}, the in-distribution set first; PNG, PDF or SVG by the suffix.

    All sets share their bins. The first set is always visible: another one's tower is cut off at four times its height,
    and what lies far beyond it is off the axis; the legend says so. Scores that are not finite are left out and counted
    in the legend. Raises `OodbenchError` for another suffix or a set without a finite score.
    """
    path = _checked(path)
    columns = {label: np.asarray(column, dtype=np.float64).reshape(-1) for label, column in scores.items()}
    finite = {label: column[np.isfinite(column)] for label, column in columns.items()}
    for label, column in finite.items():
        if len(column) == 0:
            raise OodbenchError(f"There is no finite score of {label} to draw: leave it out.")
    edges = _edges(list(finite.values()))
    densities = {
        label: np.histogram(column, edges)[0] / (len(column) * np.diff(edges)) for label, column in finite.items()
    }
    top = min(max(d.max() for d in densities.values()), 4 * next(iter(densities.values())).max())
    with _picture(path, (6.0, 3.2)) as axes:
        for i, (label, density) in enumerate(densities.items()):
            colour, dash = _line(i)
            missing, column = len(columns[label]) - len(finite[label]), finite[label]
            left, right = np.mean(column < edges[0]), np.mean(column > edges[-1])
            remarks = {
                f"{missing:,} not finite": missing > 0,
                f"{left:.0%} off the axis, left": left > 0.01,
                f"{right:.0%} off the axis, right": right > 0.01,
                "peak cut off": density.max() > 1.001 * top,
            }
            said = ", ".join(remark for remark, holds in remarks.items() if holds)
            visible = np.where(density > 0, density, np.nan)  # no coloured line along the axis where there is nothing
            # The first set is the ground under the others, and its outline lies over theirs.
            axes.stairs(visible, edges, fill=True, color=colour, alpha=0.16 if i else 0.4, linewidth=0, zorder=2 + i)
            width, height = (1.2, 20 + i) if i else (1.8, 99)
            axes.stairs(visible, edges, color=colour, linestyle=dash, linewidth=width, zorder=height)
            face = colour, 0.16 if i else 0.4
            text = f"{label} ({said})" if said else label
            axes.fill([], [], facecolor=face, edgecolor=colour, linestyle=dash, linewidth=width, label=text)
        axes.set(xlabel=xlabel, ylabel="density", title=title, xlim=(edges[0], edges[-1]), ylim=(0, 1.05 * top))
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        _legend_beside(axes)
    return path


def roc_curves(path: Path, scores: Mapping[str, tuple[Any, Any]], *, title: str = "") -> Path:
    """ROC curves of {label: (score_in (n,), score_out (m,))} with AUROC and interval in the legend.

    Larger scores are more out-of-distribution, a positive is an OOD image; an inversion runs below the diagonal and is
    drawn so. PNG, PDF or SVG by the suffix; raises `OodbenchError` for another one or empty scores.
    """
    path = _checked(path)
    curves = {label: Levels.of(*pair) for label, pair in scores.items()}
    with _picture(path, (6.0, 3.7)) as axes:
        axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
        for i, (label, levels) in enumerate(curves.items()):
            colour, dash = _line(i)
            low, high = delong_interval(levels)
            text = f"{auroc(levels):.3f} [{short(low)}, {short(high)}]  {label}" + ", inverted" * (high < 0.5)
            axes.plot(*_curve(levels), color=colour, linestyle=dash, linewidth=1.5, label=text, zorder=3, clip_on=False)
        axes.set(
            xlabel="in-distribution images flagged",
            ylabel="out-of-distribution images found",
            title=title,
            xlim=(0, 1),
            ylim=(0, 1),
            aspect="equal",
        )
        axes.set_xticks(np.linspace(0, 1, 6))
        axes.set_yticks(np.linspace(0, 1, 6))
        _legend_beside(axes, title="AUROC [95 % interval]")
    return path


@contextmanager
def _picture(path: Path, inches: tuple[float, float]) -> Iterator[Axes]:
    """The axes of a new figure, which is written to `path` when the block ends well."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=inches)
        yield figure.subplots()
        suffix = path.suffix[1:].lower()
        undated: dict[str, Any] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
        with write_atomically(path) as file:
            figure.savefig(file, format=suffix, dpi=200, bbox_inches="tight", metadata=undated.get(suffix))


def _checked(path: Path) -> Path:
    path = Path(path)
    if path.suffix.lower() not in _FORMATS:
        raise OodbenchError(f"Cannot draw {path.name}: its name must end in {', '.join(_FORMATS)}.")
    return path


def _line(i: int) -> tuple[str, Any]:
    return _COLOURS[i % len(_COLOURS)], _DASHES[i // len(_COLOURS) % len(_DASHES)]


def _legend_beside(axes: Axes, title: str | None = None) -> None:
    """Outside the axes, where it can hide nothing."""
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), borderaxespad=0, title=title, alignment="left")


def _edges(columns: list[np.ndarray]) -> np.ndarray:
    """Shared bin edges that hold 99.8 % of every set, but nothing 5 times farther out than the first set is wide."""
    ends = np.array([np.percentile(column, [0.1, 99.9]) for column in columns])
    (first_low, first_high), span = ends[0], ends[0, 1] - ends[0, 0]
    near = np.ones(len(ends), dtype=bool)
    if span > 0:
        ends = ends.clip(first_low - 5 * span, first_high + 5 * span)
        near = ends[:, 0] < ends[:, 1]  # a set that was clipped to a point lies off the axis
        near[0] = True
    low, high = ends[near, 0].min(), ends[near, 1].max()
    if high == low:
        return np.linspace(low - 0.5, high + 0.5, 21)
    fine = np.clip(3 * min(map(len, columns)) ** (1 / 3), 12, 60)  # bins on the first set: few images, wide bins
    count = int(np.clip(fine * (high - low) / span if span > 0 else 60, 20, 240))
    margin = 0.02 * (high - low)
    return np.linspace(low - margin, high + margin, count + 1)


def _curve(levels: Levels) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates from (0, 0) to (1, 1), thinned to what a page can show."""
    false = np.r_[0, np.cumsum(levels.inside[::-1])] / levels.n_in
    true = np.r_[0, np.cumsum(levels.outside[::-1])] / levels.n_out
    if len(false) > _CURVE_POINTS:  # evenly along the curve, so that steep parts keep their points
        along = (false + true) / 2
        kept = np.unique(np.searchsorted(along, np.linspace(0, 1, _CURVE_POINTS)).clip(max=len(along) - 1))
        kept = np.union1d(kept, [0, len(along) - 1])
        false, true = false[kept], true[kept]
    return false, true
