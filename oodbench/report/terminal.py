"""Plain aligned text for a terminal."""

from oodbench.report.grid import INVERSION, NONFINITE, Block, heading, notes
from oodbench.report.sheet import Entry, Sheet, sheet

__all__ = ["terminal"]


def terminal(shown: list[Block], metric: str, rows: str = "auto") -> str:
    """The blocks as text, the notes once at the end."""
    parts = [_block(sheet(block, rows), metric) for block in shown]
    explained = notes(shown)
    return "\n\n".join(parts) + "\n" + ("\n" + "\n".join(explained) + "\n" if explained else "")


def _block(lines: Sheet, metric: str) -> str:
    body = [[_text(entry) for entry in line] for line in lines.body]
    # A score without a model stands in the first column, under its own headline.
    controls = [[label, _text(cell)] for label, cell in lines.controls]
    published = [[_text(entry) for entry in line] for line in lines.published]
    everything = [*lines.head, *body, *published, *controls]
    count = max(len(line) for line in everything)
    widths = [max(len(line[i]) for line in everything if i < len(line)) for i in range(count)]
    rule = "─" * (sum(widths) + 2 * (count - 1))
    pair, images = lines.headline
    text = [f"{pair}   {heading(metric)}   {images}", rule]
    text += _aligned(lines.head, widths) + [rule] * bool(lines.head) + _aligned(body, widths)
    text += [rule] * bool(published) + _aligned(published, widths)
    if controls:
        text += [rule] * bool(body) + ["without a model"] + [rule] * (not body) + _aligned(controls, widths)
    return "\n".join([*text, rule])


def _aligned(lines: list[list[str]], widths: list[int]) -> list[str]:
    return ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=False)).rstrip() for line in lines]


def _text(entry: Entry) -> str:
    if entry is None:
        return "-"
    if isinstance(entry, str):
        return entry
    marks = INVERSION * entry.inversion + (f"{NONFINITE}{entry.nonfinite}" if entry.nonfinite else "")
    return f"{entry.text} {entry.interval}{marks}" + (f" {entry.size}" if entry.size else "")
