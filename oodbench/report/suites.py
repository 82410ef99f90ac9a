"""A suite's whole table: every pair, model and detector, published numbers beside ours."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from oodbench.errors import OodbenchError
from oodbench.records import Record, to_json
from oodbench.report.grid import INVERSION, NONFINITE, UNDERTRAINED, Block, Cell, Column, blocks, heading, notes
from oodbench.report.lines import LAYOUTS, Entry, Lines, Number, Section
from oodbench.report.tables import table

if TYPE_CHECKING:
    from oodbench.suites import Published, Suite

__all__ = ["suite_table"]

METRIC = "auroc"  # the one that papers publish
CONTROLS = "no model"


def suite_table(suite: "Suite", records: Sequence[Record], format: str = "table") -> str:
    """A suite's records as text that ends in a newline.

    `table`, `markdown` and `latex` (one float that fits `\\textwidth`) show AUROCs in a section a pair, and whichever
    are fewer, models or detectors, as columns. `csv` and `json` are those of `oodbench table`, with the published
    numbers of the same pair, model and detector. Raises `OodbenchError` for an unknown format.
    """
    if format == "json":
        return to_json([record | {"published": _facts(_published(suite, record))} for record in records]) + "\n"
    if format == "csv":
        return _csv(suite, records)
    if format not in LAYOUTS:
        raise OodbenchError(f"Unknown format {format!r}: there are {', '.join([*LAYOUTS, 'csv', 'json'])}.")
    return LAYOUTS[format](_lines(suite, blocks(records, METRIC)))


def _lines(suite: "Suite", shown: list[Block]) -> Lines:
    models = _models(suite, shown)
    sources = _Sources(suite, shown)
    down = len(models) >= len(suite.detectors)  # models are rows
    across = suite.detectors if down else models
    paired = [name for name in across if sources.any_of(name, detectors=down)]
    subsets = any(column.images != block.images for block in shown for column in block.columns)
    facts = ["bits/dim in / out", *(["images in / out"] if subsets else [])]
    sections = []
    for block in shown:
        columns = {column.title: column for column in block.columns}
        rows: list[list[Entry]] = []
        if down:
            for model in models:
                cells = _cells(block, columns, model)
                if not any(label in cells for label in suite.detectors):
                    continue
                row: list[Entry] = [_title(columns.get(model), model), *_told(columns.get(model), facts)]
                for label in suite.detectors:
                    row.append(_number(cells.get(label)))
                    row += [sources.number(block, model, label)] * (label in paired)
                rows.append(row)
        else:
            told = {model: _told(columns.get(model), facts, marked=True) for model in models}
            for i, fact in enumerate(facts):
                rows.append([fact, *(e for m in models for e in [told[m][i], *([""] if m in paired else [])])])
            for label in suite.detectors:
                row = [label]
                for model in models:
                    row.append(_number(_cells(block, columns, model).get(label)))
                    row += [sources.number(block, model, label)] * (model in paired)
                rows.append(row)
        title = f"{block.source} → {block.out}, {block.images[0]:,} / {block.images[1]:,} images"
        sections.append(Section(title, rows))
    names = [entry for name in across for entry in ([name, "published"] if name in paired else [name])]
    head = ["", *(facts if down else []), *names]
    return Lines(
        f"{suite.title}: {heading(METRIC)}",
        head,
        sections,
        [*filter(None, [suite.reference]), *_likelihoods(shown), *notes(shown), *sources.notes()],
        "Bold: a model's best single-image score on a pair, controls included." if _any_best(shown) else "",
    )


def _models(suite: "Suite", shown: list[Block]) -> list[str]:
    """Titles of all columns, in the suite's order; then what stands for the controls, if there are any."""
    titles = list(dict.fromkeys(column.title for block in shown for column in block.columns))
    order = {model: place for place, model in enumerate(suite.models)}
    titles.sort(key=lambda title: (order.get(title.split(" ")[0], len(order)), title))
    return titles + [CONTROLS] * any(block.controls for block in shown)


def _cells(block: Block, columns: dict[str, Column], model: str) -> dict[str, Cell]:
    if model == CONTROLS:
        return block.controls
    return columns[model].cells if model in columns else {}


def _title(column: Column | None, model: str) -> str:
    return model + UNDERTRAINED * bool(column and column.undertrained)


def _told(column: Column | None, facts: list[str], *, marked: bool = False) -> list[Entry]:
    """What is known of a model on a pair: bits/dim, `marked` where it is undertrained; images where numbers differ."""
    if column is None:
        return [None for _ in facts]
    mark = UNDERTRAINED * (marked and column.undertrained)
    told: list[Entry] = [column.bits_per_dim + mark, f"{column.images[0]:,} / {column.images[1]:,}"]
    return told[: len(facts)]


def _number(cell: Cell | None) -> Number | None:
    if cell is None:
        return None
    marks = INVERSION * cell.inversion + (f"{NONFINITE}{cell.nonfinite}" if cell.nonfinite else "")
    return Number(cell.text, " ".join(filter(None, [cell.interval, cell.size])), marks, cell.best)


def _likelihoods(shown: list[Block]) -> list[str]:
    """Which model's likelihood is exact and which a bound, as one sentence."""
    kinds: dict[str, list[str]] = {}
    for block in shown:
        for column in block.columns:
            of_kind = kinds.setdefault(column.likelihood, [])
            of_kind += [column.title] * (column.title not in of_kind)
    told = "; ".join(f"{', '.join(models)}: {kind}" for kind, models in kinds.items())
    return [f"Log-likelihood of {told}."] if told else []


def _any_best(shown: list[Block]) -> bool:
    sides = [cells for block in shown for cells in [block.controls, *(column.cells for column in block.columns)]]
    return any(cell.best for cells in sides for cell in cells.values())


class _Sources:
    """The published numbers that belong beside ours, and those of other models, with their numbered sources."""

    def __init__(self, suite: "Suite", shown: list[Block]) -> None:
        self.suite = suite
        held = {(block.source, block.out): {column.title for column in block.columns} for block in shown}
        on_pairs = [one for one in suite.published if (one.in_, one.out) in held]
        self.beside = [one for one in on_pairs if one.model in held[one.in_, one.out]]
        self.others = [one for one in on_pairs if one.model not in suite.models]
        self.sources = list(dict.fromkeys(one.source for one in [*self.beside, *self.others]))

    def any_of(self, name: str, *, detectors: bool) -> bool:
        """Whether anything published stands beside a detector's or a model's column."""
        return any(name == (one.detector if detectors else one.model) for one in self.beside)

    def number(self, block: Block, model: str, detector: str) -> Number | None:
        """What is published for a cell."""
        facts = (block.source, block.out, model, detector)
        found = [one for one in self.beside if (one.in_, one.out, one.model, one.detector) == facts]
        if not found:
            return None
        return Number(" / ".join(_short(one.auroc) for one in found), marks=f" {self._marks(found)}")

    def notes(self) -> list[str]:
        """The sentences on what is published."""
        if not self.sources:
            return []
        others: dict[str, list[Published]] = {}
        for one in self.others:
            others.setdefault(f"{one.in_} → {one.out}", []).append(one)
        told = "; ".join(
            f"{pair} " + ", ".join(f"{o.detector} of {o.model} {_short(o.auroc)} {self._marks([o])}" for o in of_pair)
            for pair, of_pair in others.items()
        )
        sources = "; ".join(f"({place}) {source}" for place, source in enumerate(self.sources, 1))
        return [*[f"Published for other models: {told}."] * bool(told), f"Published: {sources}."]

    def _marks(self, found: Iterable["Published"]) -> str:
        places = dict.fromkeys(self.sources.index(one.source) + 1 for one in found)
        return f"({', '.join(map(str, places))})"


def _short(auroc: float) -> str:
    """As papers print it: two decimals, or three if there is a third."""
    return f"{auroc:.3f}".removesuffix("0")


def _published(suite: "Suite", record: Record) -> list["Published"]:
    size = record["group_size"]
    label = f"{record['detector']}@{size}" if size > 1 else record["detector"]
    facts = (record["in"], record["out"], record["model"], label)
    return [one for one in suite.published if (one.in_, one.out, one.model, one.detector) == facts]


def _facts(found: list["Published"]) -> list[dict[str, object]]:
    return [{"auroc": one.auroc, "source": one.source} for one in found]


def _csv(suite: "Suite", records: Sequence[Record]) -> str:
    """The lines of `oodbench table --format csv` with two columns more."""
    head, *rows = csv.reader(io.StringIO(table(records, "csv")))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*head, "published_auroc", "published_source"])
    for row, record in zip(rows, records, strict=True):
        found = _published(suite, record)
        writer.writerow([*row, "; ".join(str(one.auroc) for one in found), "; ".join(one.source for one in found)])
    return text.getvalue()
