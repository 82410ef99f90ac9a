"""LaTeX with booktabs, a float a pair."""

import re
from collections.abc import Sequence

from oodbench.report.grid import INVERSION, NONFINITE, UNDERTRAINED, Block, heading, notes
from oodbench.report.sheet import Entry, Sheet, sheet

__all__ = ["escape", "latex"]

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
    """One `table` float a block, with its notes in the caption; needs `\\usepackage{booktabs}`."""
    return "\n".join(
        ["% Needs \\usepackage{booktabs}.", *(_block(block, sheet(block, rows), metric) for block in shown)]
    )


def _block(block: Block, sheet: Sheet, metric: str) -> str:
    pair, images = sheet.headline
    caption = " ".join([f"{heading(metric)}, {pair} ({images}).", *notes([block], bold=True)])
    lines = [
        r"\begin{table}",
        r"\centering\footnotesize\setlength{\tabcolsep}{4pt}",
        rf"\caption{{{escape(caption)}}}",
        rf"\label{{tab:{re.sub(r'[^A-Za-z0-9]+', '-', f'{block.source}-{block.out}-{metric}')}}}",
        rf"\begin{{tabular}}{{l{'l' * sheet.columns}}}",
        r"\toprule",
    ]
    if sheet.head:
        lines += [*map(_row, sheet.head), r"\midrule", *map(_row, sheet.body)]
    if sheet.controls:
        lines += [r"\midrule"] * bool(sheet.head)
        lines.append(rf"\multicolumn{{{sheet.columns + 1}}}{{l}}{{\emph{{without a model}}}} \\")
        for label, cell in sheet.controls:
            lines.append(rf"{escape(label)} & \multicolumn{{{sheet.columns}}}{{l}}{{{_text(cell)}}} \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


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
    size = rf" {{\scriptsize {entry.size}}}" if entry.size else ""
    return rf"{value} {{\scriptsize {entry.interval}}}" + (f"$^{{{marks}}}$" if marks else "") + size


def escape(text: str) -> str:
    """The text with everything that LaTeX would read as a command written out."""
    return "".join(_ESCAPES.get(character, character) for character in " ".join(text.split()))
