"""One loop over batches computes every statistic that is not cached yet."""

import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from oodbench.detector import Columns
from oodbench.engine.cache import SCHEMA, Entry
from oodbench.engine.device import BatchSize, choose_device, is_out_of_memory, keep_freed_memory, true_float32
from oodbench.engine.lanes import lanes
from oodbench.engine.ledger import Ledger
from oodbench.engine.passes import passes_for
from oodbench.errors import OodbenchError
from oodbench.files import cache_dir
from oodbench.messages import tell
from oodbench.models.nn import networks

if TYPE_CHECKING:
    from oodbench.data import Adaptation, Images
    from oodbench.pretrained import TrainedModel

__all__ = ["Evaluation", "evaluate"]

Result = tuple[Ledger, np.ndarray, dict[str, torch.Tensor]]  # whose columns, of which positions

SECONDS_BETWEEN_CHUNKS = 10.0  # what a killed evaluation loses at most


@dataclass(frozen=True)
class Evaluation:
    """Columns of all images, in their order, and what they cost."""

    images: "Images"
    columns: Columns
    seconds_per_image: float | None  # as measured when they were computed, now or earlier; without reading images
    computed: int  # images for which something was computed now; the rest was cached


def evaluate(
    statistics: Sequence[str],
    images: "Images",
    adaptation: "Adaptation",
    *,
    model: "TrainedModel | None",
    seed: int = 0,
    device: str = "auto",
    batch_size: int | Literal["auto"] = "auto",
    precision: Literal["float32", "bfloat16"] = "float32",
    cache: Path | None = None,
    progress: bool = True,
) -> Evaluation:
    """The named statistics of the images, each computed once for (model, images) and cached under `cache`.

    Names in `model.module.columns` all come from one forward pass; others are registered statistics. An image's numbers
    depend on neither batch size, order, device nor on which images are computed with it, up to floating-point reduction
    order. `cache` is a folder, by default `cache_dir()`. Non-finite values are counted on stderr and kept.

    Wrong names, a missing device, a full disk and too little memory for a single image are `OodbenchError`s; what was
    computed until then is kept.
    """
    if precision not in ("float32", "bfloat16"):
        raise OodbenchError(f"Unknown precision {precision!r}: use float32 or bfloat16.")
    if len(images) == 0:
        raise OodbenchError(f"{images.name}/{images.split} has no images to compute statistics of.")
    passes = passes_for(statistics, model, precision)
    place = choose_device(device)
    size = BatchSize(batch_size, place)
    source = {"schema": SCHEMA, "data": images.fingerprint, "adaptation": adaptation.key(), "seed": seed}
    title = f"{model.name if model else ', '.join(statistics)} on {images.name}/{images.split}"
    about = {
        "images": f"{images.name}/{images.split}",
        "model": f"{model.name} of {model.dataset}" if model else "none",
    }
    rows, first = np.unique(images.rows, return_index=True)  # increasing: memory-mapped images are read in order
    ledgers = []
    for step in passes:
        entry = Entry(cache or cache_dir(), {**source, **step.facts}, about) if step.cached else None
        ledgers.append(Ledger(step, entry, rows, place))

    for ledger in ledgers:
        ledger.check_writable()
    todo = np.flatnonzero(np.any([np.zeros(len(rows), bool), *(ledger.missing for ledger in ledgers)], axis=0))
    if len(todo):
        keep_freed_memory()
        if model is not None:
            model.module.eval().to(place)
        with (
            networks(dtype=torch.bfloat16 if precision == "bfloat16" else None, fold=True),
            true_float32(place),
            tqdm(total=len(todo), desc=title, unit="image", leave=False, disable=None if progress else True) as bar,
        ):
            _compute(ledgers, todo, first, images, adaptation, seed, size, bar)

    taken = [ledger.take(images.rows) for ledger in ledgers]
    values = {name: column for chunk in taken for name, column in chunk.columns.items() if name in statistics}
    for name, column in values.items():
        bad = int(np.count_nonzero(~np.isfinite(column.reshape(len(column), -1)).all(axis=1)))
        if bad:
            tell(f"oodbench: {title}: {name} is not finite for {bad} of {len(column)} images.")
    dimensions = math.prod(adaptation.domain.shape)
    seconds = sum(float(chunk.seconds.mean()) for chunk in taken) if taken else None
    latents = model.module.latent_dimensions if model else None
    columns = Columns({name: values[name] for name in statistics}, dimensions, latents=latents)
    return Evaluation(images, columns, seconds, len(todo))


def _compute(
    ledgers: Sequence[Ledger],
    todo: np.ndarray,
    first: np.ndarray,
    images: "Images",
    adaptation: "Adaptation",
    seed: int,
    size: BatchSize,
    bar: "tqdm[Any]",
) -> None:
    """Fills the ledgers' positions `todo`, of which position p is image `first[p]`."""
    done, written = 0, time.monotonic()
    size.value = min(size.value, len(todo))
    # A plugin's statistic may keep a state of its own, which only one thread at a time can use.
    wanted = -(-len(todo) // size.value) if all(ledger.ours for ledger in ledgers) else 1

    def compute(positions: np.ndarray) -> list[Result] | BaseException | None:
        try:
            return _batch(ledgers, positions, images, first[positions], adaptation, seed, size.value)
        except BaseException as error:  # raised below, when what other lanes computed is kept
            return error

    try:
        with lanes(wanted, size.device) as (count, side_by_side):
            for ledger in ledgers:
                ledger.lanes = count
            while done < len(todo):
                batches = [todo[start : start + size.value] for start in range(done, len(todo), size.value)[:count]]
                failure: BaseException | None = None
                for positions, results in zip(batches, side_by_side(compute, batches), strict=True):
                    if isinstance(results, BaseException):
                        failure = failure or results
                        continue
                    if results is None:
                        size.halve(len(positions))
                        break
                    for ledger, mine, outputs in results:
                        ledger.add(mine, outputs)
                    done += len(positions)
                    bar.update(len(positions))
                if failure is not None:
                    raise failure
                if time.monotonic() - written > SECONDS_BETWEEN_CHUNKS:
                    for ledger in ledgers:
                        ledger.write()
                    written = time.monotonic()
    except BaseException:
        with suppress(Exception):  # the first error is the one to tell
            for ledger in ledgers:
                ledger.write()
        raise
    for ledger in ledgers:
        ledger.finish()


def _batch(
    ledgers: Sequence[Ledger],
    positions: np.ndarray,
    images: "Images",
    chosen: np.ndarray,
    adaptation: "Adaptation",
    seed: int,
    size: int,
) -> list[Result] | None:
    """What the ledgers miss of one batch; None if memory does not suffice."""
    try:
        pixels, index = adaptation(images.pixels[chosen]), images.index[chosen]
        results = []
        for ledger in ledgers:
            mine = np.flatnonzero(ledger.missing[positions])
            if len(mine):
                results.append((ledger, positions[mine], ledger.compute(pixels[mine], index[mine], seed, size)))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None
    return results
