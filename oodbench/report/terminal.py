"""Plain aligned text for a terminal."""

import shutil
import textwrap

from oodbench.report.grid import INVERSION, NONFINITE, Block, heading, notes
from oodbench.report.sheet import Entry, Sheet, sheet

__all__ = ["ROOM", "terminal", "wrapped"]


_GAP = 2  # spaces between columns
ROOM = (160, 24)  # columns and lines, where the output is no terminal and COLUMNS is not set


def terminal(shown: list[Block], metric: str, rows: str = "auto") -> str:
    """The blocks as text no wider than the terminal, as far as that can be, and the notes once at the end."""
    room = shutil.get_terminal_size(ROOM).columns
    parts = [_block(sheet(block, rows), metric, room) for block in shown]
    explained = [wrapped(note, room) for note in notes(shown)]
    return "\n\n".join(parts) + "\n" + ("\n" + "\n".join(explained) + "\n" if explained else "")


def wrapped(note: str, room: int) -> str:
    """A sentence in lines that fit."""
    return textwrap.fill(note, room, subsequent_indent="  ", break_long_words=False)


def _block(lines: Sheet, metric: str, room: int) -> str:
    """The columns that do not fit stand below, under a rule of their own."""
    pair, images = lines.headline
    parts = lines.folded([width + _GAP for width in _widths(lines)], room + _GAP)
    shown = [_part(part) for part in parts]
    return "\n".join([f"{pair}   {heading(metric)}   {images}", *shown, shown[-1].partition("\n")[0]])


def _part(lines: Sheet) -> str:
    """With a rule above."""
    widths = _widths(lines)
    free = [[label, _text(cell)] for label, cell in lines.controls]
    controls = _aligned(free, [widths[0], 0])
    rule = "─" * max(sum(widths) + _GAP * (len(widths) - 1), *map(len, controls), 0)
    text = [rule, *_aligned(lines.head, widths)] + [rule] * bool(lines.head) + _aligned(_texts(lines.body), widths)
    text += [rule] * bool(lines.published) + _aligned(_texts(lines.published), widths)
    if controls:  # a score without a model stands in the first column, under its own headline
        text += [rule] * bool(lines.body) + ["without a model"] + [rule] * (not lines.body) + controls
    return "\n".join(text)


def _widths(lines: Sheet) -> list[int]:
    """Characters of every column, the labels' first."""
    everything = [*lines.head, *_texts(lines.body), *_texts(lines.published)]
    labels = max(len(label) for label in [*(line[0] for line in everything), *(label for label, _ in lines.controls)])
    return [labels, *(max(map(len, column)) for column in zip(*(line[1:] for line in everything), strict=True))]


def _texts(lines: list[list[Entry]]) -> list[list[str]]:
    return [[_text(entry) for entry in line] for line in lines]


def _aligned(lines: list[list[str]], widths: list[int]) -> list[str]:
    gap = " " * _GAP
    return [gap.join(map(str.ljust, line, widths)).rstrip() for line in lines]


def _text(entry: Entry) -> str:
    if entry is None:
        return "-"
    if isinstance(entry, str):
        return entry
    marks = INVERSION * entry.inversion + (f"{NONFINITE}{entry.nonfinite}" if entry.nonfinite else "")
    return f"{entry.text} {entry.interval}{marks}" + (f" {entry.size}" if entry.size else "")
