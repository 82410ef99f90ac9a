"""LaTeX with booktabs, a float a pair."""

import math
import re
from collections.abc import Iterator, Sequence

from oodbench.report.grid import INVERSION, NONFINITE, UNDERTRAINED, Block, heading, notes
from oodbench.report.sheet import Entry, Sheet, sheet

__all__ = ["escape", "latex"]

_SIDE_BY_SIDE = 5  # columns: at most 64 pt each, beside labels of at most 75
_ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "→": r"$\rightarrow$",
    "±": r"$\pm$",
    INVERSION: r"$^\dagger$",
    NONFINITE: r"$^\ddagger$",
    UNDERTRAINED: r"$^{\S}$",
} | {character: "\\" + character for character in "{}$&#_%"}


def latex(shown: list[Block], metric: str, rows: str = "auto") -> str:
    """One `table` float a block, with its notes in the caption; needs `\\usepackage{booktabs}`.

    At most five columns stand side by side, which fits 5.5 in (397 pt), the text of most conferences' pages; the others
    follow below, with the same rows.
    """
    return "\n".join(
        ["% Needs \\usepackage{booktabs}.", *(_block(block, sheet(block, rows), metric) for block in shown)]
    )


def _block(block: Block, sheet: Sheet, metric: str) -> str:
    pair, images = sheet.headline
    caption = " ".join([f"{heading(metric)}, {pair} ({images}).", *notes([block], bold=True)])
    lines = [
        r"\begin{table}",
        r"\centering\scriptsize\setlength{\tabcolsep}{2pt}",
        rf"\caption{{{escape(caption)}}}",
        rf"\label{{tab:{re.sub(r'[^A-Za-z0-9]+', '-', f'{block.source}-{block.out}-{metric}')}}}",
    ]
    stacked = list(_stacked(sheet))
    for columns in stacked:
        lines += _tabular(sheet, columns, last=columns is stacked[-1])
    return "\n".join([*lines, r"\end{table}", ""])


def _stacked(sheet: Sheet) -> Iterator[range]:
    """Which columns stand side by side: those of one kind, in parts as even as can be."""
    start = 1
    for count in sheet.parts:
        parts = math.ceil(count / _SIDE_BY_SIDE)
        for part in range(parts):
            yield range(start + part * count // parts, start + (part + 1) * count // parts)
        start += count
    if start == 1:
        yield range(1, 2)  # controls alone


def _tabular(sheet: Sheet, columns: range, last: bool) -> list[str]:
    def taken(lines: Sequence[Sequence[Entry]]) -> list[Sequence[Entry]]:
        """The columns of all lines but those that have something in other columns only."""
        parts = [[line[0], *(line[i] for i in columns)] for line in lines]
        return [part for part, line in zip(parts, lines, strict=True) if any(part[1:]) or not any(line[1:])]

    published = taken(sheet.published)
    lines = [rf"\begin{{tabular}}{{l{'l' * len(columns)}}}", r"\toprule"]
    if sheet.head:
        lines += [*map(_row, taken(sheet.head)), r"\midrule", *map(_row, taken(sheet.body))]
        lines += [r"\midrule"] * bool(published) + list(map(_row, published))
    if sheet.controls and last:
        lines += [r"\midrule"] * bool(sheet.head)
        lines.append(rf"\multicolumn{{{len(columns) + 1}}}{{l}}{{\emph{{without a model}}}} \\")
        for label, cell in sheet.controls:
            lines.append(rf"{escape(label)} & \multicolumn{{{len(columns)}}}{{l}}{{{_text(cell)}}} \\")
    return [*lines, r"\bottomrule", r"\end{tabular}" if last else r"\end{tabular}\\[1ex]"]


def _row(line: Sequence[Entry]) -> str:
    return " & ".join(map(_text, line)) + r" \\"


def _text(entry: Entry) -> str:
    if entry is None:
        return "--"
    if isinstance(entry, str):
        return escape(entry)
    value = rf"\textbf{{{entry.text}}}" if entry.best else entry.text
    value = value.replace("±", r"$\pm$")
    marks = r"\dagger" * entry.inversion + (rf"\ddagger{entry.nonfinite}" if entry.nonfinite else "")
    size = rf" {{\tiny {entry.size}}}" if entry.size else ""
    return rf"{value} {{\tiny {entry.interval}}}" + (f"$^{{{marks}}}$" if marks else "") + size


def escape(text: str) -> str:
    """The text with everything that LaTeX would read as a command written out."""
    return "".join(_ESCAPES.get(character, character) for character in " ".join(text.split()))
