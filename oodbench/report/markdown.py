"""GitHub's Markdown."""

import re

from oodbench.report.grid import INVERSION, NONFINITE, UNDERTRAINED, Block, Cell, heading, notes

__all__ = ["markdown"]


def markdown(shown: list[Block], metric: str) -> str:
    """A headline and a table a block, the notes once at the end."""
    parts = [_block(block, metric) for block in shown]
    return "\n\n".join([*parts, " ".join(notes(shown, bold=True))]) + "\n"


def _block(block: Block, metric: str) -> str:
    titles = [_escape(column.title) + UNDERTRAINED * column.undertrained for column in block.columns]
    free = ["no model"] if block.controls else []
    rows = [[heading(metric), *titles, *free], ["---"] * (1 + len(titles) + len(free))]
    rows += [[label, *texts, *("" for _ in free)] for label, texts in block.facts()]
    for label in block.rows:
        rows.append(
            [_escape(label), *(_text(column.cells.get(label)) for column in block.columns), *("" for _ in free)]
        )
    for label, cell in block.controls.items():
        rows.append([_escape(label), *("" for _ in titles), _text(cell)])
    n_in, n_out = block.images
    headline = f"### {_escape(block.source)} → {_escape(block.out)} ({n_in:,} / {n_out:,} images)"
    return "\n".join([headline, "", *("| " + " | ".join(row) + " |" for row in rows)])


def _text(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    marks = INVERSION * cell.inversion + (f"{NONFINITE}{cell.nonfinite}" if cell.nonfinite else "")
    value = f"**{cell.text}**" if cell.best else cell.text
    return f"{value} {cell.interval}{marks}" + (f" {cell.size}" if cell.size else "")


def _escape(name: str) -> str:
    """Names come from users' plugins and paths."""
    return re.sub(r"([\\`*|<>\[\]])", r"\\\1", " ".join(name.split()))
