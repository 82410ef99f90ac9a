"""LaTeX with booktabs, a float a pair."""

import re

from oodbench.report.grid import INVERSION, NONFINITE, UNDERTRAINED, Block, Cell, heading, notes

__all__ = ["latex"]

_ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "→": r"$\rightarrow$",
    INVERSION: r"$^\dagger$",
    NONFINITE: r"$^\ddagger$",
    UNDERTRAINED: r"$^{\S}$",
} | {character: "\\" + character for character in "{}$&#_%"}


def latex(shown: list[Block], metric: str) -> str:
    """One `table` float a block, with its notes in the caption; needs `\\usepackage{booktabs}`."""
    return "\n".join(["% Needs \\usepackage{booktabs}.", *(_block(block, metric) for block in shown)])


def _block(block: Block, metric: str) -> str:
    columns = max(1, len(block.columns))
    pair = f"{block.source} → {block.out}"
    n_in, n_out = block.images
    caption = " ".join([f"{heading(metric)}, {pair} ({n_in:,} / {n_out:,} images).", *notes([block], bold=True)])
    lines = [
        r"\begin{table}",
        r"\centering\footnotesize\setlength{\tabcolsep}{4pt}",
        rf"\caption{{{_escape(caption)}}}",
        rf"\label{{tab:{re.sub(r'[^A-Za-z0-9]+', '-', f'{block.source}-{block.out}-{metric}')}}}",
        rf"\begin{{tabular}}{{l{'l' * columns}}}",
        r"\toprule",
    ]
    if block.columns:
        lines.append(_row("", [_escape(column.title + UNDERTRAINED * column.undertrained) for column in block.columns]))
        lines += [_row(label, [_escape(text) for text in texts]) for label, texts in block.facts()]
        lines.append(r"\midrule")
        lines += [_row(label, [_text(column.cells.get(label)) for column in block.columns]) for label in block.rows]
    if block.controls:
        lines += [r"\midrule"] * bool(block.columns)
        lines.append(rf"\multicolumn{{{columns + 1}}}{{l}}{{\emph{{without a model}}}} \\")
        for label, cell in block.controls.items():
            lines.append(_row(label, [rf"\multicolumn{{{columns}}}{{l}}{{{_text(cell)}}}"]))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _row(label: str, cells: list[str]) -> str:
    return " & ".join([_escape(label), *cells]) + r" \\"


def _text(cell: Cell | None) -> str:
    if cell is None:
        return "--"
    value = rf"\textbf{{{cell.text}}}" if cell.best else cell.text
    marks = r"\dagger" * cell.inversion + (rf"\ddagger{cell.nonfinite}" if cell.nonfinite else "")
    size = rf" {{\scriptsize {cell.size}}}" if cell.size else ""
    return rf"{value} {{\scriptsize {cell.interval}}}" + (f"$^{{{marks}}}$" if marks else "") + size


def _escape(text: str) -> str:
    return "".join(_ESCAPES.get(character, character) for character in " ".join(text.split()))
