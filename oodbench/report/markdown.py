"""GitHub's Markdown."""

import re
from collections.abc import Sequence

from oodbench.report.grid import INVERSION, NONFINITE, Block, heading, notes
from oodbench.report.sheet import Entry, Sheet, sheet

__all__ = ["escape", "markdown"]

_NO_MODEL = "*without a model*"


def markdown(shown: list[Block], metric: str, rows: str = "auto") -> str:
    """A headline and a table a block, the notes once at the end."""
    parts = [_block(sheet(block, rows), metric) for block in shown]
    return "\n\n".join([*parts, " ".join(notes(shown, bold=True))]) + "\n"


def _block(sheet: Sheet, metric: str) -> str:
    titles, *facts = sheet.head or [["", ""]]
    body: list[Sequence[Entry]] = [*facts, *sheet.body, *sheet.published]
    if sheet.controls:
        body += [[_NO_MODEL]] * bool(sheet.body)
        body += [[label, cell] for label, cell in sheet.controls]
    lines = [[heading(metric), *map(escape, titles[1:])], ["---"] * (1 + sheet.columns)]
    lines += [[*map(_text, line), *[""] * (1 + sheet.columns - len(line))] for line in body]
    pair, images = sheet.headline
    return "\n".join([f"### {escape(pair)} ({images})", "", *("| " + " | ".join(line) + " |" for line in lines)])


def _text(entry: Entry) -> str:
    if entry is None:
        return "-"
    if isinstance(entry, str):
        return entry if entry is _NO_MODEL else escape(entry)
    marks = INVERSION * entry.inversion + (f"{NONFINITE}{entry.nonfinite}" if entry.nonfinite else "")
    value = f"**{entry.text}**" if entry.best else entry.text
    return f"{value} {entry.interval}{marks}" + (f" {entry.size}" if entry.size else "")


def escape(name: str) -> str:
    """The text with what Markdown would read as marks written out: names come from users' plugins and paths."""
    return re.sub(r"([\\`*|<>\[\]])", r"\\\1", " ".join(name.split()))
