"""A block laid out as lines and columns: models across and detectors down, or the other way round."""

from collections.abc import Sequence
from dataclasses import dataclass

from oodbench.report.grid import UNDERTRAINED, Block, Cell

__all__ = ["ROWS", "Sheet", "sheet"]

ROWS = ("auto", "detectors", "models")
_MOST_COLUMNS = 6  # models side by side, before "auto" puts them below one another

Entry = str | Cell | None  # None: not applicable


@dataclass
class Sheet:
    """Lines of equal length, each with its label first. A control, a score without a model, has a line of its own."""

    pair: str
    images: tuple[int, int]
    head: list[list[str]]
    body: list[list[Entry]]
    controls: list[tuple[str, Cell]]

    @property
    def columns(self) -> int:
        """How many there are beside the labels, at least one."""
        return max([1, *(len(line) - 1 for line in self.head), *(len(line) - 1 for line in self.body)])

    @property
    def headline(self) -> tuple[str, str]:
        """`photos → glyphs` and `944 / 1,000 images`."""
        return self.pair, f"{self.images[0]:,} / {self.images[1]:,} images"


def sheet(block: Block, rows: str = "auto") -> Sheet:
    """The block with `rows` of "detectors" or "models"; "auto" takes models where there are many."""
    titles = [column.title + UNDERTRAINED * column.undertrained for column in block.columns]
    head: list[list[str]] = []
    body: list[list[Entry]] = []
    if rows == "models" or (rows == "auto" and len(titles) > _MOST_COLUMNS):
        facts = block.facts()
        if titles:
            head.append(["", *(label for label, _ in facts), *block.rows])
        for place, (title, column) in enumerate(zip(titles, block.columns, strict=True)):
            cells: Sequence[Cell | None] = [column.cells.get(label) for label in block.rows]
            body.append([title, *(texts[place] for _, texts in facts), *cells])
    else:
        if titles:
            head += [["", *titles], *([label, *texts] for label, texts in block.facts())]
        body += [[label, *(column.cells.get(label) for column in block.columns)] for label in block.rows]
    return Sheet(f"{block.source} → {block.out}", block.images, head, body, list(block.controls.items()))
