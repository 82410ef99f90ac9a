"""The table of paired tests."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from oodbench.errors import OodbenchError
from oodbench.evaluation import SMALLEST_P
from oodbench.records import to_json
from oodbench.report.grid import NONFINITE, UNRANKED, short
from oodbench.report.lines import LAYOUTS, Lines, Number, Section

__all__ = ["comparison_table"]

BOUNDED, SIGNIFICANT = "=", "*"
LEVEL = 0.05

_SIDE = ("model", "detector", "auroc", "nonfinite", "likelihood", "weights")
_FACTS = ("schema", "in", "out", "n_in", "n_out", "seed")
_TEST = ("z", "p", "p_holm", "comparisons", "bounded")


def comparison_table(rows: Sequence[dict[str, Any]], format: str = "table") -> str:
    """Comparisons, as `oodbench.comparing.compare` makes them, as text that ends in a newline.

    `table`, `markdown` and `latex` show a section a pair of data sets; `csv` (a line a comparison) and `json` hold
    everything. Raises `OodbenchError` for an unknown format and where there is nothing to show.
    """
    if format == "json":
        return to_json(list(rows)) + "\n"
    if format == "csv":
        return _csv(rows)
    if format not in LAYOUTS:
        raise OodbenchError(f"Unknown format {format!r}: there are {', '.join([*LAYOUTS, 'csv', 'json'])}.")
    if not rows:
        raise OodbenchError("There are no comparisons to show: every score failed.")
    return LAYOUTS[format](_lines(rows))


def _lines(rows: Sequence[dict[str, Any]]) -> Lines:
    sections: dict[str, Section] = {}
    for row in rows:
        title = f"{row['in']} → {row['out']}, {row['n_in']:,} / {row['n_out']:,} images"
        sections.setdefault(title, Section(title, [])).rows.append(_row(row))
    head = ["A", "B", "AUROC of A", "of B", "A less B [95 % interval]", "p", "p (Holm)"]
    title = "Paired tests of AUROC on the same images"
    return Lines(title, head, list(sections.values()), _notes(rows), labels=2)


def _row(row: dict[str, Any]) -> list[str | Number | None]:
    found = row["difference"]
    interval = f"[{_signed(found['low'])}, {_signed(found['high'])}]"
    return [
        *(_label(row[key]) for key in ("a", "b")),
        *(_area(row[key]) for key in ("a", "b")),
        Number(f"{found['value']:+.3f}", interval, BOUNDED * row["bounded"]),
        _p(row["p"], row["p"] <= SMALLEST_P),
        Number(_p(row["p_holm"], row["p"] <= SMALLEST_P), marks=SIGNIFICANT * (row["p_holm"] < LEVEL)),
    ]


def _label(side: dict[str, Any]) -> str:
    return str(side["detector"]) if side["model"] == "none" else f"{side['model']} {side['detector']}"


def _area(side: dict[str, Any]) -> Number:
    return Number(f"{side['auroc']:.3f}", marks=f"{NONFINITE}{side['nonfinite']}" if side["nonfinite"] else "")


def _signed(number: float) -> str:
    """Three decimals with a sign: `-.012`, `+.836`."""
    return f"{number:+.3f}"[0] + short(abs(number))


def _p(p: float, smallest: bool) -> str:
    """`0.043`, `2.1e-09`, and `<1e-300` where doubles end."""
    return f"<{p:.0e}" if smallest else f"{p:.3f}" if p >= 0.001 else f"{p:.1e}"


def _notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    sides = [row[key] for row in rows for key in ("a", "b")]
    among = f"corrected for all {len(rows)} tests of this table" if len(rows) > 1 else "one test, nothing to correct"
    significant, bounded = any(row["p_holm"] < LEVEL for row in rows), any(row["bounded"] for row in rows)
    sentences = {
        f"p: DeLong's test of no difference; Holm: {among}.": True,
        f"{SIGNIFICANT} below {LEVEL:g} after the correction.": significant,
        f"{BOUNDED} no variance, since every image counts the same difference: interval and p are bounds.": bounded,
        f"{NONFINITE}k: k scores are not finite; NaN is ranked worst for the detector.": any(
            side["nonfinite"] for side in sides
        ),
        "A density on a manifold and one on the images answer different questions: a difference between two models' "
        "scores is no ranking there.": any(
            row["a"]["model"] != row["b"]["model"] and row[key]["likelihood"] in UNRANKED
            for row in rows
            for key in ("a", "b")
        ),
    }
    return [sentence for sentence, used in sentences.items() if used]


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    ends = ("value", "low", "high")
    names = [f"{key}_{side}" for side in ("a", "b") for key in _SIDE]
    writer.writerow([*_FACTS, *names, "difference", "difference_low", "difference_high", *_TEST])
    for row in rows:
        sides = [row[side][key] for side in ("a", "b") for key in _SIDE]
        tested = [row["difference"][end] for end in ends]
        writer.writerow([*(row[key] for key in _FACTS), *sides, *tested, *(row[key] for key in _TEST)])
    return text.getvalue()
