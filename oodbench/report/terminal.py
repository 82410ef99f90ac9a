"""Plain aligned text for a terminal."""

from oodbench.report.grid import INVERSION, NONFINITE, UNDERTRAINED, Block, Cell, heading, notes

__all__ = ["terminal"]


def terminal(shown: list[Block], metric: str) -> str:
    """The blocks as text, the notes once at the end."""
    parts = [_block(block, metric) for block in shown]
    explained = notes(shown)
    return "\n\n".join(parts) + "\n" + ("\n" + "\n".join(explained) + "\n" if explained else "")


def _block(block: Block, metric: str) -> str:
    titles = [column.title + UNDERTRAINED * column.undertrained for column in block.columns]
    head = [["", *titles], *([label, *texts] for label, texts in block.facts())] if block.columns else []
    rows = [[label, *(_text(column.cells.get(label)) for column in block.columns)] for label in block.rows]
    # A score without a model stands in the first column, under its own headline.
    controls = [[label, _text(cell)] for label, cell in block.controls.items()]
    everything = head + rows + controls
    count = max(len(row) for row in everything)
    widths = [max(len(row[i]) for row in everything if i < len(row)) for i in range(count)]
    rule = "─" * (sum(widths) + 2 * (count - 1))
    n_in, n_out = block.images
    lines = [f"{block.source} → {block.out}   {heading(metric)}   {n_in:,} / {n_out:,} images", rule]
    lines += _aligned(head, widths) + [rule] * bool(head) + _aligned(rows, widths)
    if controls:
        lines += ["without a model", rule] if not rows else [rule, "without a model"]
        lines += _aligned(controls, widths)
    return "\n".join([*lines, rule])


def _aligned(rows: list[list[str]], widths: list[int]) -> list[str]:
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=False)).rstrip() for row in rows]


def _text(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    marks = INVERSION * cell.inversion + (f"{NONFINITE}{cell.nonfinite}" if cell.nonfinite else "")
    return f"{cell.text} {cell.interval}{marks}" + (f" {cell.size}" if cell.size else "")
