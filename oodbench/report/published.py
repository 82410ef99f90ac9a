"""What papers report: AUROCs of others, each with the place where it was read."""

import csv
from dataclasses import dataclass
from functools import cache
from importlib import resources

__all__ = ["Figure", "figures"]


@dataclass(frozen=True)
class Figure:
    """One published AUROC, of single images or of groups."""

    detector: str
    group_size: int
    model: str
    auroc: float
    source: str


def figures(source: str, out: str) -> list[Figure]:
    """All that is known of a pair of data sets, in the file's order."""
    return _all().get((source, out), [])


@cache
def _all() -> dict[tuple[str, str], list[Figure]]:
    text = resources.files("oodbench.report").joinpath("published.csv").read_text(encoding="utf-8")
    found: dict[tuple[str, str], list[Figure]] = {}
    for row in csv.DictReader(text.splitlines()):
        figure = Figure(row["detector"], int(row["group_size"]), row["model"], float(row["auroc"]), row["source"])
        found.setdefault((row["in"], row["out"]), []).append(figure)
    return found
