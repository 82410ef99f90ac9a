"""One door to all table formats."""

import csv
import io
from collections.abc import Callable, Sequence

from oodbench.errors import OodbenchError
from oodbench.evaluation import METRICS
from oodbench.records import Record, to_json
from oodbench.report.grid import blocks
from oodbench.report.latex import latex
from oodbench.report.markdown import markdown
from oodbench.report.sheet import ROWS
from oodbench.report.terminal import terminal

__all__ = ["FORMATS", "table"]

_RENDERERS: dict[str, Callable[..., str]] = {"table": terminal, "markdown": markdown, "latex": latex}

FORMATS = (*_RENDERERS, "csv", "json")

_FACTS = ("schema", "in", "out", "model", "preset", "detector", "group_size", "seed", "training_seed", "n_in", "n_out")
_PROVENANCE = ("seconds_per_image", "weights")
_MORE = ("likelihood", "nonfinite", "inversion", "undertrained", "draws")


def table(
    records: Sequence[Record],
    format: str = "table",
    metric: str = "auroc",
    rows: str = "auto",
    published: bool = False,
) -> str:
    """The records as text that ends in a newline.

    `table`, `markdown` and `latex` show one metric ("auroc", "aupr_in", "aupr_out" or "fpr95") with its intervals, a
    block a pair, with `rows` of "detectors" (a model is a column) or "models" ("auto" by their number); several seeds
    of one cell are averaged, and the spread over training seeds stands beside the sampling interval. `published` adds
    papers' AUROCs of the same pairs and detectors. `csv` (a line a record) and `json` hold every metric. Raises
    `OodbenchError` for an unknown format, metric or kind of rows, and where these three have nothing to show.
    """
    if format not in FORMATS:
        raise OodbenchError(f"Unknown format {format!r}: there are {', '.join(FORMATS)}.")
    if metric not in METRICS:
        raise OodbenchError(f"Unknown metric {metric!r}: there are {', '.join(METRICS)}.")
    if rows not in ROWS:
        raise OodbenchError(f"Unknown rows {rows!r}: there are {', '.join(ROWS)}.")
    if format == "json":
        return to_json(list(records)) + "\n"
    if format == "csv":
        return _csv(records)
    if not records:
        raise OodbenchError("There are no results to show: make some with `oodbench run`.")
    return _RENDERERS[format](blocks(records, metric, published), metric, rows)


def _csv(records: Sequence[Record]) -> str:
    ends = [(metric, end) for metric in METRICS for end in ("value", "low", "high")]
    header = [*_FACTS, *(metric if end == "value" else f"{metric}_{end}" for metric, end in ends)]
    header += ["bits_per_dim_in", "bits_per_dim_out", *_MORE, *_PROVENANCE]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for record in records:
        bits = record.get("bits_per_dim") or {}
        writer.writerow(
            [
                *(record.get(key) for key in _FACTS),
                *((record["metrics"].get(metric) or {}).get(end) for metric, end in ends),
                bits.get("in"),
                bits.get("out"),
                *(record.get(key) for key in _MORE),
                *(record.get("provenance", {}).get(key) for key in _PROVENANCE),
            ]
        )
    return text.getvalue()
