"""LaTeX with booktabs, a float a pair, or several where it would not fit a page."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from oodbench.report.grid import INVERSION, NONFINITE, UNDERTRAINED, Block, heading, notes
from oodbench.report.sheet import Entry, Sheet, sheet

__all__ = ["escape", "latex", "opened"]

_ROOM = 397  # pt: 5.5 in
_LINES = 56  # a float, at 8 pt each, beside a caption of a dozen lines on a page of 9 in
_RULES = 3  # lines that a tabular's rules and the space below it take
_GAP, _MARK = 4, 4  # pt between columns and of a raised mark
_BOLD, _TINY = 1.16, 0.88  # as wide as regular text of \scriptsize
# pt of Computer Modern's characters in \scriptsize, rounded up: tables are cut where they would be too wide.
_WIDTHS = {2.3: ".,:;'|!`[]Iil", 3.2: " ()-fjrst", 4.0: "0123456789aceoz/*?{}$", 4.5: "bdghknpquvxy"}
_WIDTH_OF = {character: width for width, characters in _WIDTHS.items() for character in characters}
_WIDEST = 6.6  # of capitals, m, w, _ and @
_ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",  # there is no other in LaTeX's default encoding
    "→": r"$\rightarrow$",
    "±": r"$\pm$",
    INVERSION: r"$^\dagger$",
    NONFINITE: r"$^\ddagger$",
    UNDERTRAINED: r"$^{\S}$",
} | {character: "\\" + character for character in "{}$&#_%"}


def latex(shown: list[Block], metric: str, rows: str = "auto") -> str:
    """One `table` float a block, with its notes in the caption; needs `\\usepackage{booktabs}`.

    No line is wider than 5.5 in (397 pt), the text of most conferences' pages: the columns that do not fit follow
    below, with the same rows, and on further floats what is longer than a page.
    """
    return "\n".join(
        [
            "% Needs \\usepackage{booktabs}.",
            *(_block(block, sheet(block, rows), metric) for block in map(_alone, shown)),
        ]
    )


def _alone(block: Block) -> Block:
    """With the sources of published figures numbered from 1, as its caption names no others."""
    sources = sorted({number for found in block.published.values() for _, number in found})
    published = {
        label: [(figure, 1 + sources.index(number)) for figure, number in found]
        for label, found in block.published.items()
    }
    return replace(block, published=published)


def _block(block: Block, sheet: Sheet, metric: str) -> str:
    pair, images = sheet.headline
    said = f"{heading(metric)}, {pair}"
    caption = " ".join([f"{said} ({images}).", *notes([block], bold=True)])
    label = re.sub(r"[^A-Za-z0-9]+", "-", f"{block.source}-{block.out}-{metric}")
    lines = []
    for place, parts in enumerate(_floats(sheet.folded(_widths(sheet), _ROOM))):
        lines += opened(r"\scriptsize\setlength{\tabcolsep}{2pt}", said, escape(caption), label, continued=place > 0)
        for part in parts:
            lines += _tabular(part, last=part is parts[-1])
        lines += [r"\end{table}", ""]
    return "\n".join(lines)


def opened(style: str, title: str, caption: str, label: str, *, continued: bool) -> list[str]:
    """How a float begins; one that is `continued` has the number of the last, and of the caption the title alone."""
    return [
        r"\begin{table}",
        rf"\centering{style}\setlength{{\belowcaptionskip}}{{4pt}}",
        *([r"\addtocounter{table}{-1}"] if continued else []),
        rf"\caption{{{escape(f'{title}, continued.') if continued else caption}}}",
        *([] if continued else [rf"\label{{tab:{label}}}"]),
    ]


def _floats(parts: list[Sheet]) -> Iterator[list[Sheet]]:
    """The parts that fit one page together."""
    page: list[Sheet] = []
    for part in parts:
        if page and sum(map(_height, [*page, part])) > _LINES:
            yield page
            page = []
        page.append(part)
    yield page


def _height(part: Sheet) -> int:
    controls = 1 + len(part.controls) if part.controls else 0
    return len(part.head) + len(part.body) + len(part.published) + controls + _RULES


def _tabular(part: Sheet, last: bool) -> list[str]:
    lines = [rf"\begin{{tabular}}{{l{'l' * part.columns}}}", r"\toprule"]
    if part.head:
        lines += [*map(_row, part.head), r"\midrule", *map(_row, part.body)]
        lines += [r"\midrule"] * bool(part.published) + list(map(_row, part.published))
    if part.controls:
        lines += [r"\midrule"] * bool(part.head)
        lines.append(rf"\multicolumn{{{part.columns + 1}}}{{l}}{{\emph{{without a model}}}} \\")
        for label, cell in part.controls:
            lines.append(rf"{escape(label)} & \multicolumn{{{part.columns}}}{{l}}{{{_text(cell)}}} \\")
    return [*lines, r"\bottomrule", r"\end{tabular}" if last else r"\end{tabular}\\[1ex]"]


def _widths(sheet: Sheet) -> list[int]:
    """pt of every column, with the space beside it."""
    lines: list[Sequence[Entry]] = [*sheet.head, *sheet.body, *sheet.published]
    labels = [line[0] for line in lines] + [label for label, _ in sheet.controls]
    columns = [labels, *([line[i] for line in lines] for i in range(1, 1 + sheet.columns if lines else 1))]
    return [math.ceil(max(map(_width, column)) + _GAP) for column in columns]


def _width(entry: Entry) -> float:
    if entry is None:
        return 4
    if isinstance(entry, str):
        marks = sum(map(entry.count, (INVERSION, NONFINITE, UNDERTRAINED)))
        return sum(_WIDTH_OF.get(character, _WIDEST) for character in entry) - marks * (_WIDEST - _MARK)
    small = " ".join(filter(None, [entry.interval, entry.size]))
    marks = _MARK * (entry.inversion + bool(entry.nonfinite) * (1 + len(str(entry.nonfinite))))
    return _width(entry.text) * (_BOLD if entry.best else 1) + _width(f" {small}") * _TINY + marks


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
    escaped = "".join(_ESCAPES.get(character, character) for character in " ".join(text.split()))
    return escaped.replace(r" \%", r"~\%")  # a number and its unit stay on one line
