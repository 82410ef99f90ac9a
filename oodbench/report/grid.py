"""What every readable table shows: a block a pair, a column a model, a row a detector."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from oodbench.evaluation import METRICS
from oodbench.records import Record, data_hash
from oodbench.registry import MODELS

__all__ = ["Block", "Cell", "Column", "blocks", "heading", "notes", "short"]

UNRANKED = ("manifold", "binarised")  # of records, as in models.base.Likelihood, whose import would load torch
INVERSION, NONFINITE, UNDERTRAINED = "†", "‡", "§"


@dataclass
class Cell:
    """One metric of one detector, over all its seeds."""

    value: float
    low: float
    high: float
    inversion: bool
    nonfinite: int
    group_size: int
    n: tuple[int, int]  # (in, out): images, or groups of them
    subset: bool = False  # fewer images than the block has: n must be shown
    best: bool = False

    @property
    def text(self) -> str:
        """The value, `0.843`."""
        return f"{self.value:.3f}"

    @property
    def interval(self) -> str:
        """The 95 % interval, `[.836, .850]`."""
        return f"[{short(self.low)}, {short(self.high)}]"

    @property
    def size(self) -> str:
        """`n = 200 / 200` where fewer images were scored than the block says, else nothing."""
        return f"n = {self.n[0]:,} / {self.n[1]:,}" if self.subset else ""


@dataclass
class Column:
    """One model: what the head of its column says."""

    title: str
    likelihood: str
    ranked: bool  # False of densities on a manifold: no cell of theirs is bold
    bits_per_dim: str
    images: tuple[int, int]
    undertrained: bool
    cells: dict[str, Cell] = field(default_factory=dict)  # by row label


@dataclass
class Block:
    """One pair of data sets."""

    source: str
    out: str
    images: tuple[int, int]
    columns: list[Column]
    controls: dict[str, Cell]  # scores that need no model, by row label
    rows: list[str]  # labels of the detectors that need a model
    seeds: list[int]

    def facts(self) -> list[tuple[str, list[str]]]:
        """(label, one text a column) of what is known of the models."""
        facts = [
            ("log-likelihood", [column.likelihood for column in self.columns]),
            ("bits/dim in / out", [column.bits_per_dim for column in self.columns]),
        ]
        if any(column.images != self.images for column in self.columns):
            facts.append(("images in / out", [f"{c.images[0]:,} / {c.images[1]:,}" for c in self.columns]))
        return facts if self.columns else []


def blocks(records: Sequence[Record], metric: str) -> list[Block]:
    """The records as blocks, pairs in order of appearance; models and detectors stand in one fixed order."""
    pairs: dict[tuple[str, str], dict[str, list[Record]]] = {}
    for record in records:
        pairs.setdefault((record["in"], record["out"]), {}).setdefault(data_hash(record), []).append(record)
    shown = []
    for (_, out), states in pairs.items():
        for state, of_state in states.items():  # other images under one name are another pair: never averaged
            shown.append(_block(of_state, f"{out}@{state}" if len(states) > 1 else out, metric))
    return shown


def heading(metric: str) -> str:
    """What the numbers are: `AUROC [95 % interval]`, with the better direction where it is not up."""
    return f"{METRICS[metric]} [95 % interval]" + (", smaller is better" if metric == "fpr95" else "")


def notes(shown: Sequence[Block], bold: bool = False) -> list[str]:
    """One sentence for every mark that the blocks use."""
    cells = [cell for block in shown for cell in _cells(block)]
    seeds = sorted({seed for block in shown for seed in block.seeds})
    sentences = {
        "Bold: the best single-image score in a model's column, controls included.": bold,
        "A density on a manifold has no bits/dim and is not ranked: no score in its column is bold.": any(
            column.likelihood.startswith("manifold") for block in shown for column in block.columns
        ),
        "Of binarised images there are no bits/dim of bytes: a model of them is not ranked, no score is bold.": any(
            column.likelihood.startswith("binarised") for block in shown for column in block.columns
        ),
        f"{INVERSION} inversion: the interval of the AUROC ends below 0.5.": any(cell.inversion for cell in cells),
        f"{NONFINITE}k: k scores are not finite; NaN is ranked worst for the detector.": any(
            c.nonfinite for c in cells
        ),
        f"{UNDERTRAINED} undertrained: still falling by over 1 % in the last fifth of training.": any(
            column.undertrained for block in shown for column in block.columns
        ),
        "@b: one score for a group of b images.": any(cell.group_size > 1 for cell in cells),
        f"Mean over seeds {', '.join(map(str, seeds))}; intervals from the lowest to the highest end.": len(seeds) > 1,
    }
    return [sentence for sentence, used in sentences.items() if used]


def short(number: float) -> str:
    """Three decimals without the zero before the point: `.836`, `1.000`."""
    return f"{number:.3f}".removeprefix("0")


def _block(records: list[Record], out: str, metric: str) -> Block:
    keys = sorted({_model(record) for record in records if record["model"] != "none"}, key=_model_order)
    names = [key[0] for key in keys]
    columns = [
        _column([r for r in records if _model(r) == key], key, metric, with_weights=names.count(key[0]) > 1)
        for key in keys
    ]
    free = [record for record in records if record["model"] == "none"]
    sizes = [column.images for column in columns] + ([_images(free)] if free else [])
    images = max(size[0] for size in sizes), max(size[1] for size in sizes)
    block = Block(
        source=records[0]["in"],
        out=out,
        images=images,
        columns=columns,
        controls=_cells_of(free, images, metric),
        rows=_labels(record for record in records if record["model"] != "none"),
        seeds=sorted({record["seed"] for record in records}),
    )
    _mark_best(block, metric)
    return block


def _column(records: list[Record], key: tuple[str, str, str], metric: str, with_weights: bool) -> Column:
    name, preset, weights = key
    first = min(records, key=lambda record: (record["group_size"], record["seed"], -record["n_in"] - record["n_out"]))
    draws = next((record["draws"] for record in records if record.get("draws")), None)
    bits = first.get("bits_per_dim") or {}
    images = _images(records)
    likelihood, remark = str(first.get("likelihood") or "-"), first.get("remark")
    return Column(
        title=" ".join(filter(None, [name, preset, weights[:8]])) if with_weights else name,
        likelihood=", ".join(filter(None, [likelihood.replace("_", " "), remark, f"K = {draws}" if draws else ""])),
        ranked=likelihood not in UNRANKED,
        bits_per_dim=f"{_bits(bits.get('in'))} / {_bits(bits.get('out'))}" if bits else "-",
        images=images,
        undertrained=bool(first.get("undertrained")),
        cells=_cells_of(records, images, metric),
    )


def _cells_of(records: list[Record], images: tuple[int, int], metric: str) -> dict[str, Cell]:
    cells = {}
    for label in _labels(records):
        cell = _cell([record for record in records if _label(record) == label], metric)
        if cell is not None:
            cell.subset = cell.n != (images[0] // cell.group_size, images[1] // cell.group_size)
            cells[label] = cell
    return cells


def _cell(records: list[Record], metric: str) -> Cell | None:
    """One detector's seeds together: the mean, and an interval from the lowest to the highest end."""
    found = [record["metrics"][metric] for record in records if record["metrics"].get(metric)]
    found = [numbers for numbers in found if None not in numbers.values()]
    if not found:
        return None
    return Cell(
        value=sum(numbers["value"] for numbers in found) / len(found),
        low=min(numbers["low"] for numbers in found),
        high=max(numbers["high"] for numbers in found),
        inversion=all(record["inversion"] for record in records),
        nonfinite=sum(record.get("nonfinite") or 0 for record in records),
        group_size=records[0]["group_size"],
        n=(records[0]["n_in"], records[0]["n_out"]),
    )


def _mark_best(block: Block, metric: str) -> None:
    """Bold compares what one image can tell: groups of images see more, so they are left out."""
    better = min if metric == "fpr95" else max
    for cells in [column.cells for column in block.columns if column.ranked] or [{}]:
        rivals = [cell for cell in [*cells.values(), *block.controls.values()] if cell.group_size == 1]
        best = better((cell.value for cell in rivals), default=None)
        for cell in rivals:
            cell.best = cell.best or (best is not None and cell.text == f"{best:.3f}")


def _cells(block: Block) -> list[Cell]:
    return [cell for column in block.columns for cell in column.cells.values()] + list(block.controls.values())


def _images(records: list[Record]) -> tuple[int, int]:
    sizes = [(r["n_in"] * r["group_size"], r["n_out"] * r["group_size"], r["group_size"]) for r in records]
    alone = [size for size in sizes if size[2] == 1] or sizes  # groups drop a remainder
    return max(size[0] for size in alone), max(size[1] for size in alone)


def _label(record: Record) -> str:
    return f"{record['detector']}@{record['group_size']}" if record["group_size"] > 1 else str(record["detector"])


def _labels(records: Iterable[Record]) -> list[str]:
    """Row labels: the likelihood first, then by name and group size."""
    keys = {(r["detector"] != "likelihood", r["detector"], r["group_size"]): _label(r) for r in records}
    return [keys[key] for key in sorted(keys)]


def _model(record: Record) -> tuple[str, str, str]:
    weights = record.get("provenance", {}).get("weights")
    return record["model"], record.get("preset") or "", weights or ""


def _model_order(key: tuple[str, str, str]) -> tuple[int, tuple[str, str, str]]:
    known = list(MODELS)
    return known.index(key[0]) if key[0] in known else len(known), key


def _bits(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if abs(value) < 1e4 else f"{value:.1e}"  # white noise can lie that far from a flow's images
