"""A block laid out as lines and columns: models across and detectors down, or the other way round."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from oodbench.registry import MODELS
from oodbench.report.grid import UNDERTRAINED, Block, Cell
from oodbench.report.published import Figure

__all__ = ["ROWS", "Sheet", "folds", "sheet"]

ROWS = ("auto", "detectors", "models")
_MOST_COLUMNS = 6  # models side by side, before "auto" puts them below one another

Entry = str | Cell | None  # None: not applicable


@dataclass
class Sheet:
    """Lines of equal length, each with its label first. A control, a score without a model, has a line of its own.

    Published figures are the last column, or lines below the body where models are rows.
    """

    pair: str
    images: tuple[int, int]
    head: list[list[str]]
    body: list[list[Entry]]
    published: list[list[Entry]]
    controls: list[tuple[str, Cell]]

    @property
    def columns(self) -> int:
        """How many there are beside the labels, at least one."""
        return max([1, *(len(line) - 1 for line in self.head), *(len(line) - 1 for line in self.body)])

    @property
    def headline(self) -> tuple[str, str]:
        """`photos → glyphs` and `944 / 1,000 images`."""
        return self.pair, f"{self.images[0]:,} / {self.images[1]:,} images"

    def folded(self, widths: Sequence[int], room: int) -> list["Sheet"]:
        """The sheet in parts that stand below one another, as `folds` cuts its columns.

        Each has the labels, without the lines that have something in other columns only; the last has the controls.
        """
        cuts = folds(widths, room)
        return [
            replace(
                self,
                head=_taken(self.head, columns),
                body=_taken(self.body, columns),
                published=_taken(self.published, columns),
                controls=self.controls if columns is cuts[-1] else [],
            )
            for columns in cuts
        ]


def folds(widths: Sequence[int], room: int) -> list[range]:
    """Which columns stand side by side where a line has so much room: as few parts as can be, as even as can be.

    The first of the `widths`, each with the space beside it, is that of the labels, which every part repeats.
    """

    def cut(room: int) -> list[range]:
        starts, used = [1], widths[0]
        for place, width in enumerate(widths[1:], 1):
            if used + width > room and place > starts[-1]:
                starts, used = [*starts, place], widths[0]
            used += width
        return [range(*ends) for ends in zip(starts, [*starts[1:], max(2, len(widths))], strict=True)]

    fewest = len(cut(room))
    return next(parts for parts in map(cut, range(room + 1)) if len(parts) == fewest)


def _taken(lines: list[list[Any]], columns: range) -> list[list[Any]]:
    """The labels and these columns of the lines, without those that have something in others only."""
    taken = []
    for line in lines:
        part = [line[0], *(line[i] for i in columns)]
        if any(part[1:]) or not any(line[1:]):
            taken.append(part)
    return taken


def sheet(block: Block, rows: str = "auto") -> Sheet:
    """The block with `rows` of "detectors" or "models"; "auto" takes models where there are many."""
    titles = [column.title + UNDERTRAINED * column.undertrained for column in block.columns]
    facts = block.facts()
    head: list[list[str]] = []
    body: list[list[Entry]] = []
    published: list[list[Entry]] = []
    if rows == "models" or (rows == "auto" and len(titles) > _MOST_COLUMNS):
        if titles:
            head.append(["", *(label for label, _ in facts), *block.rows])
        for place, (title, column) in enumerate(zip(titles, block.columns, strict=True)):
            cells: Sequence[Cell | None] = [column.cells.get(label) for label in block.rows]
            body.append([title, *(texts[place] for _, texts in facts), *cells])
        for model in _published_models(block):
            of_model = [[f for f in block.published.get(label, []) if f[0].model == model] for label in block.rows]
            published.append([f"{model} (published)", *[None] * len(facts), *map(_figures, of_model)])
    else:
        more = ["published"] * bool(block.published)
        if titles:
            head += [["", *titles, *more], *([label, *texts, *[""] * len(more)] for label, texts in facts)]
        for label in block.rows:
            line: list[Entry] = [label, *(column.cells.get(label) for column in block.columns)]
            found = block.published.get(label, [])
            body.append([*line, *[", ".join(f"{f[0].model} {_figures([f])}" for f in found) or None] * len(more)])
    name = f"{block.source} → {block.out}"
    return Sheet(name, block.images, head, body, published, list(block.controls.items()))


def _published_models(block: Block) -> list[str]:
    """Models with figures, in the order of the registered ones, others last."""
    names = {figure.model for found in block.published.values() for figure, _ in found}
    return [name for name in MODELS if name in names] + sorted(names - set(MODELS))


def _figures(found: Sequence[tuple[Figure, int]]) -> str | None:
    """`0.870 (2)`, the number that of the source."""
    return ", ".join(f"{figure.auroc:.3f} ({number})" for figure, number in found) or None
