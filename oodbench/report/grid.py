"""What every readable table shows: a block a pair, a column a model, a row a detector."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev

from oodbench.evaluation import METRICS
from oodbench.records import Record, data_hash
from oodbench.registry import MODELS, POSTERIORS, split_posterior
from oodbench.report.published import Figure, figures

__all__ = ["Block", "Cell", "Column", "blocks", "heading", "notes", "short"]

UNRANKED = ("manifold", "binarised")  # of records, as in models.base.Likelihood, whose import would load torch
INVERSION, NONFINITE, UNDERTRAINED = "†", "‡", "§"


@dataclass
class Cell:
    """One metric of one detector, over all its seeds.

    Over several training seeds `value` is the mean, `spread` the standard deviation (n - 1), and the interval the mean
    of the seeds' sampling intervals.
    """

    value: float
    low: float
    high: float
    inversion: bool
    nonfinite: int
    group_size: int
    n: tuple[int, int]  # (in, out): images, or groups of them
    subset: bool = False  # fewer images than the block has: n must be shown
    best: bool = False
    spread: float | None = None  # over training seeds
    trainings: int = 1  # how many of them
    lacking: bool = False  # fewer trainings than the column has

    @property
    def text(self) -> str:
        """The value, `0.843`, or with the spread over training seeds `0.843 ± .012`."""
        return f"{self.value:.3f}" + ("" if self.spread is None else f" ± {short(self.spread)}")

    @property
    def interval(self) -> str:
        """The 95 % interval, `[.836, .850]`."""
        return f"[{short(self.low)}, {short(self.high)}]"

    @property
    def size(self) -> str:
        """`n = 200 / 200` where fewer images were scored than the block says, or fewer seeds trained; else nothing."""
        images = f"n = {self.n[0]:,} / {self.n[1]:,}" if self.subset else ""
        return ", ".join(filter(None, [images, f"{self.trainings} trained" if self.lacking else ""]))


@dataclass
class Column:
    """One model: what the head of its column says."""

    title: str
    likelihood: str
    ranked: bool  # False of densities on a manifold: no cell of theirs is bold
    bits_per_dim: str
    images: tuple[int, int]
    undertrained: bool
    training_seeds: tuple[int, ...]  # more than one: all numbers are means over them
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
    published: dict[str, list[tuple[Figure, int]]] = field(default_factory=dict)  # by row label; with their footnotes

    def facts(self) -> list[tuple[str, list[str]]]:
        """(label, one text a column) of what is known of the models."""
        facts = [
            ("log-likelihood", [column.likelihood for column in self.columns]),
            ("bits/dim in / out", [column.bits_per_dim for column in self.columns]),
        ]
        if any(column.images != self.images for column in self.columns):
            facts.append(("images in / out", [f"{c.images[0]:,} / {c.images[1]:,}" for c in self.columns]))
        return facts if self.columns else []


def blocks(records: Sequence[Record], metric: str, published: bool = False) -> list[Block]:
    """The records as blocks, pairs in order of appearance; models and detectors stand in one fixed order.

    With `published`, papers' AUROCs of the same pairs and detectors are added.
    """
    pairs: dict[tuple[str, str], dict[str, list[Record]]] = {}
    for record in records:
        pairs.setdefault((record["in"], record["out"]), {}).setdefault(data_hash(record), []).append(record)
    shown = []
    for (_, out), states in pairs.items():
        for state, of_state in states.items():  # other images under one name are another pair: never averaged
            shown.append(_block(of_state, f"{out}@{state}" if len(states) > 1 else out, metric))
            if published and metric == "auroc":
                _add_published(shown, of_state)
    return shown


def heading(metric: str) -> str:
    """What the numbers are: `AUROC [95 % interval]`, with the better direction where it is not up."""
    return f"{METRICS[metric]} [95 % interval]" + (", smaller is better" if metric == "fpr95" else "")


def notes(shown: Sequence[Block], bold: bool = False) -> list[str]:
    """One sentence for every mark that the blocks use."""
    cells = [cell for block in shown for cell in _cells(block)]
    seeds = sorted({seed for block in shown for seed in block.seeds})
    sources = sorted({(n, f.source) for block in shown for found in block.published.values() for f, n in found})
    read = " ".join(f"({number}) {source}." for number, source in sources)
    trained = sorted({seed for block in shown for c in block.columns if len(c.training_seeds) > 1
                      for seed in c.training_seeds})  # fmt: skip
    sentences = {
        "Bold: a model's best single-image score, controls included.": bold,
        "A density on a manifold has no bits/dim and is not ranked: no score of it is bold.": any(
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
        f"Published: for others' weights and images. {read}": bool(sources),
        f"Mean over seeds {', '.join(map(str, seeds))}; intervals from the lowest to the highest end.": len(seeds) > 1,
        f"±: standard deviation over trainings with the seeds {', '.join(map(str, trained))}, beside their mean; in "
        "brackets the mean of their 95 % sampling intervals.": any(cell.spread is not None for cell in cells),
    }
    return [sentence for sentence, used in sentences.items() if used]


def short(number: float) -> str:
    """Three decimals without the zero before the point: `.836`, `1.000`."""
    return f"{number:.3f}".removeprefix("0")


def _block(records: list[Record], out: str, metric: str) -> Block:
    merged = _merged([record for record in records if record["model"] != "none"])
    models = {key: _of_most_images(of_model) for key, of_model in merged.items()}
    keys = sorted(models, key=_model_order)
    names = [key[0] for key in keys]
    columns = [_column(models[key], key, metric, with_weights=names.count(key[0]) > 1) for key in keys]
    free = _of_most_images([record for record in records if record["model"] == "none"])
    kept = [record for some in [*models.values(), free] for record in some]
    sizes = [column.images for column in columns] + ([_images(free)] if free else [])
    images = max(size[0] for size in sizes), max(size[1] for size in sizes)
    block = Block(
        source=records[0]["in"],
        out=out,
        images=images,
        columns=columns,
        controls=_cells_of(free, images, metric),
        rows=_labels(record for record in records if record["model"] != "none"),
        seeds=sorted({record["seed"] for record in kept}),
    )
    _mark_best(block, metric)
    return block


def _of_most_images(records: list[Record]) -> list[Record]:
    """Of every score what was counted on most images: seeds and trainings are averaged over as many of them alone."""
    most: dict[str, int] = {}
    for record in records:
        most[_label(record)] = max(most.get(_label(record), 0), record["n_in"] + record["n_out"])
    return [record for record in records if record["n_in"] + record["n_out"] == most[_label(record)]]


def _add_published(shown: list[Block], records: Sequence[Record]) -> None:
    """Adds to the last block what papers say of these records' pair, sources numbered as they come in all blocks."""
    numbers = {f.source: n for block in shown for found in block.published.values() for f, n in found}
    labels = {(r["detector"], r["group_size"]): _label(r) for r in records if r["model"] != "none"}
    for figure in figures(records[0]["in"], records[0]["out"]):
        label = labels.get((figure.detector, figure.group_size))
        if label is not None:
            number = numbers.setdefault(figure.source, len(numbers) + 1)
            shown[-1].published.setdefault(label, []).append((figure, number))


def _column(records: list[Record], key: tuple[str, str, str], metric: str, with_weights: bool) -> Column:
    name, preset, weights = key
    shown_preset = "" if preset == "small" else preset  # another one than everybody has
    first = min(records, key=lambda record: (record["group_size"], record["seed"], -record["n_in"] - record["n_out"]))
    draws = next((record["draws"] for record in records if record.get("draws")), None)
    bits = _mean_bits(records)
    images = _images(records)
    likelihood, remark = str(first.get("likelihood") or "-"), first.get("remark")
    rough = "bfloat16" if any(r.get("provenance", {}).get("precision") == "bfloat16" for r in records) else ""
    return Column(
        title=" ".join(filter(None, [name, preset, weights[:8]] if with_weights else [name, shown_preset])),
        likelihood=", ".join(
            filter(None, [likelihood.replace("_", " "), remark, f"K = {draws}" if draws else "", rough])
        ),
        ranked=likelihood not in UNRANKED,
        bits_per_dim=f"{_bits(bits.get('in'))} / {_bits(bits.get('out'))}" if bits else "-",
        images=images,
        undertrained=any(record.get("undertrained") for record in records),
        training_seeds=tuple(sorted({r["training_seed"] for r in records if r.get("training_seed") is not None})),
        cells=_cells_of(records, images, metric),
    )


def _cells_of(records: list[Record], images: tuple[int, int], metric: str) -> dict[str, Cell]:
    cells = {}
    trainings = len({_model(record) for record in records})
    for label in _labels(records):
        cell = _cell([record for record in records if _label(record) == label], metric)
        if cell is not None:
            cell.lacking = cell.trainings < trainings
            cell.subset = cell.n != (images[0] // cell.group_size, images[1] // cell.group_size)
            cells[label] = cell
    return cells


def _cell(records: list[Record], metric: str) -> Cell | None:
    """One detector's trainings together: the mean of values and of interval ends, and the values' spread."""
    weights = list(dict.fromkeys(_model(record) for record in records))
    of_each = [_cell_of_one([r for r in records if _model(r) == one], metric) for one in weights]
    cells = [cell for cell in of_each if cell is not None]
    if len(cells) < 2:
        return cells[0] if cells else None
    return Cell(
        value=fmean(cell.value for cell in cells),
        low=fmean(cell.low for cell in cells),
        high=fmean(cell.high for cell in cells),
        inversion=fmean(record["metrics"]["auroc"]["high"] for record in records) < 0.5,
        nonfinite=sum(cell.nonfinite for cell in cells),
        group_size=cells[0].group_size,
        n=min(cell.n for cell in cells),
        spread=stdev(cell.value for cell in cells),
        trainings=len(cells),
    )


def _cell_of_one(records: list[Record], metric: str) -> Cell | None:
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
            cell.best = cell.best or (best is not None and f"{cell.value:.3f}" == f"{best:.3f}")


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


def _merged(records: list[Record]) -> dict[tuple[str, str, str], list[Record]]:
    """The records by model; weights of one model and preset that differ in their training seed are one model."""
    found: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        found.setdefault(_model(record), []).append(record)
    families: dict[tuple[str, str], list[tuple[str, str, str]]] = {}
    for key in found:
        families.setdefault(key[:2], []).append(key)
    for keys in families.values():
        seeds = {found[key][0].get("training_seed") for key in keys}
        if len(keys) > 1 and len(seeds) == len(keys) and None not in seeds:
            found[keys[0]] = [record for key in keys for record in found.pop(key)]
    return found


def _mean_bits(records: list[Record]) -> dict[str, float]:
    """Bits/dim of either side, the mean over trainings; a side that nobody knows is left out."""
    ordered = sorted(records, key=lambda r: (r["group_size"], r["seed"], -r["n_in"] - r["n_out"]))
    first = {_model(record): record.get("bits_per_dim") or {} for record in reversed(ordered)}
    known = {side: [bits[side] for bits in first.values() if bits.get(side) is not None] for side in ("in", "out")}
    return {side: fmean(values) for side, values in known.items() if values}


def _model_order(key: tuple[str, str, str]) -> tuple[int, int, tuple[str, str, str]]:
    posterior, model = split_posterior(key[0])
    known, around = list(MODELS), [None, *POSTERIORS]
    place = known.index(model) if model in known else len(known)
    return (around.index(posterior) if posterior in around else len(around)), place, key


def _bits(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if abs(value) < 1e4 else f"{value:.1e}"  # white noise can lie that far from a flow's images
