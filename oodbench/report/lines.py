"""A plain table of texts and numbers in sections, in every readable format."""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field

from oodbench.report import latex, markdown, terminal
from oodbench.report.sheet import folds

__all__ = ["LAYOUTS", "Entry", "Lines", "Number", "Section"]

_GAP = 2  # spaces between columns
_LINES = 50  # of LaTeX's \footnotesize, 9.5 pt each, on a page of 9 in beside a long caption


@dataclass(frozen=True)
class Number:
    """A number as it is shown."""

    text: str
    interval: str = ""
    marks: str = ""  # explained in the notes; with a space before them where they stand apart
    bold: bool = False


Entry = str | Number | None  # None: not there


@dataclass(frozen=True)
class Section:
    """Lines under a headline of their own."""

    title: str
    rows: list[list[Entry]]


@dataclass(frozen=True)
class Lines:
    """A table: columns under their names, sections below one another, sentences at the end."""

    title: str
    head: list[str]
    sections: list[Section]
    notes: list[str] = field(default_factory=list)
    bold: str = ""  # what bold numbers are, for formats that have them
    labels: int = 1  # how many columns say what a row is


def _terminal(lines: Lines) -> str:
    """No wider than the terminal, as far as that can be: the columns that do not fit stand below with all labels."""
    rows = [[_plain(entry) for entry in row] for section in lines.sections for row in section.rows]
    widths = [max(len(row[i]) for row in [lines.head, *rows]) + _GAP for i in range(len(lines.head))]
    labels, room = range(lines.labels), shutil.get_terminal_size(terminal.ROOM).columns
    parts = folds([sum(widths[i] for i in labels), *widths[lines.labels :]], room + _GAP)
    shown = [_part(lines, [*labels, *(lines.labels - 1 + i for i in part)], widths) for part in parts]
    notes = [terminal.wrapped(note, room) for note in lines.notes]
    rule = shown[-1].partition("\n")[0]
    return "\n".join([lines.title, *shown, rule, *([""] if notes else []), *notes]) + "\n"


def _part(lines: Lines, columns: Sequence[int], widths: Sequence[int]) -> str:
    """With a rule above."""
    titles = [section.title for section in lines.sections]
    rule = "─" * max(sum(widths[i] for i in columns) - _GAP, *map(len, titles))

    def aligned(row: Sequence[Entry]) -> str:
        return "".join(_plain(row[i]).ljust(widths[i]) for i in columns).rstrip()

    text = [rule, aligned(lines.head)]
    for section in lines.sections:
        text += [rule, section.title, *map(aligned, section.rows)]
    return "\n".join(text)


def _plain(entry: Entry) -> str:
    if not isinstance(entry, Number):
        return "-" if entry is None else entry
    return " ".join(filter(None, [entry.text, entry.interval])) + entry.marks


def _markdown(lines: Lines) -> str:
    def line(row: Sequence[str]) -> str:
        return "| " + " | ".join(row) + " |"

    def shown(entry: Entry) -> str:
        if not isinstance(entry, Number):
            return "-" if entry is None else markdown.escape(entry)
        value = f"**{entry.text}**" if entry.bold else entry.text
        return " ".join(filter(None, [value, entry.interval])) + re.sub(r"([*<>])", r"\\\1", entry.marks)

    parts = [f"### {markdown.escape(lines.title)}"]
    for section in lines.sections:
        table = [line([*map(markdown.escape, lines.head)]), line(["---"] * len(lines.head))]
        table += [line([shown(entry) for entry in row]) for row in section.rows]
        parts += [f"**{markdown.escape(section.title)}**", "\n".join(table)]
    said = [lines.bold, *lines.notes] if lines.bold else lines.notes
    return "\n\n".join([*parts, " ".join(map(markdown.escape, said))]).rstrip() + "\n"


def _latex(lines: Lines) -> str:
    """A float with its notes in the caption, shrunk to `\\textwidth` where it is wider; another one a further page."""
    caption = " ".join(_tex(text) for text in [lines.title.rstrip(".") + ".", lines.bold, *lines.notes] if text)
    label = re.sub(r"[^A-Za-z0-9]+", "-", lines.title).strip("-").lower()[:60]
    text = ["% Needs \\usepackage{booktabs,graphicx}."]
    style, title = r"\footnotesize\setlength{\tabcolsep}{4pt}", lines.title.rstrip(".")
    for place, sections in enumerate(_pages(lines.sections)):
        text += latex.opened(style, title, caption, label, continued=place > 0)
        text += [
            r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{{'l' * len(lines.head)}}}",
            r"\toprule",
            " & ".join(map(_tex, lines.head)) + r" \\",
        ]
        for section in sections:
            text += [r"\midrule", rf"\multicolumn{{{len(lines.head)}}}{{l}}{{\emph{{{_tex(section.title)}}}}} \\"]
            text += [" & ".join(_tex(entry) for entry in row) + r" \\" for row in section.rows]
        text += [r"\bottomrule", r"\end{tabular}}", r"\end{table}", ""]
    return "\n".join(text)


def _pages(sections: Sequence[Section]) -> list[list[Section]]:
    """The sections in parts of at most `_LINES` lines, their titles counted; one is cut only where it is longer."""
    pages: list[list[Section]] = [[]]
    for section in sections:
        for start in range(0, len(section.rows), _LINES - 1):
            part = Section(section.title, section.rows[start : start + _LINES - 1])
            if sum(1 + len(each.rows) for each in [*pages[-1], part]) > _LINES:
                pages.append([])
            pages[-1].append(part)
    return [page for page in pages if page]


def _tex(entry: Entry) -> str:
    if entry is None:
        return "--"
    if isinstance(entry, str):
        escaped = latex.escape(entry)
        return re.sub(r"(?<![\w.$-])-(?=[.\d])", "$-$", escaped)  # a sign, not a hyphen
    value = rf"\textbf{{{_tex(entry.text)}}}" if entry.bold else _tex(entry.text)
    interval = rf" {{\scriptsize {_tex(entry.interval)}}}" if entry.interval else ""
    return value + interval + _tex_marks(entry.marks)


def _tex_marks(marks: str) -> str:
    """Symbols of mathematics and what follows them are raised together; a source in parentheses is not raised."""
    if any(symbol in _SYMBOLS for symbol in marks):
        return "$^{" + "".join(_SYMBOLS.get(mark, mark) for mark in marks) + "}$"
    return rf" {{\scriptsize {_tex(marks.strip())}}}" if marks.startswith(" ") else latex.escape(marks)


_SYMBOLS = {"†": r"\dagger ", "‡": r"\ddagger ", "§": r"\S "}

LAYOUTS = {"table": _terminal, "markdown": _markdown, "latex": _latex}
"""Functions from `Lines` to text that ends in a newline."""
