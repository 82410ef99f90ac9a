"""From a name to images, wherever they come from."""

import difflib
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from oodbench.data import embedded
from oodbench.data.images import SPLITS, Images
from oodbench.data.npz import read_npz
from oodbench.data.own import is_own, prepared_own, stamp_of
from oodbench.data.perturbations import PERTURBATIONS, VERSION, perturb
from oodbench.data.store import Prepared, RawImages, fingerprint, prepared
from oodbench.data.torchvision_sets import TORCHVISION, prepared_torchvision
from oodbench.errors import OodbenchError
from oodbench.files import expanded
from oodbench.registry import DATASETS, hint

__all__ = ["available", "load"]


def load(name: str, split: str, data_root: Path | str | None = None) -> Images:
    """The images of a split ("train", "validation" or "test") of a data set.

    `name` is `folder:PATH`, `npz:PATH`, a registered or embedded set, one under the data root (`data_root`, else
    `OODBENCH_DATA`) or one of torchvision's, looked for in this order, with perturbations behind: `cifar10+hflip`.
    Train and validation are two parts of the source's train split and never overlap. Whatever is wrong with the source
    is an `OodbenchError`.
    """
    if split not in SPLITS:
        raise OodbenchError(f"Unknown split {split!r}: there are {', '.join(SPLITS)}.")
    if not isinstance(name, str):
        raise OodbenchError(
            f"A {type(name).__name__} does not name a data set: images of your own are 'folder:PATH' or 'npz:PATH'."
        )
    root = _root(data_root)
    full = _prepared(name, "test" if split == "test" else "train", root)
    n = len(full.pixels)
    start, stop = {"train": (0, full.validation_from), "validation": (full.validation_from, n), "test": (0, n)}[split]
    if start == stop:
        raise OodbenchError(f"{name} has only {n} training images, of which none fell into {split}: give it more.")
    return Images(
        name=name,
        split=split,
        pixels=full.pixels[start:stop],
        labels=None if full.labels is None else full.labels[start:stop],
        index=full.index[start:stop],
        fingerprint=full.fingerprint,
        rows=np.arange(start, stop),
        names=None if full.names is None else full.names[start:stop],
    )


def available(data_root: Path | str | None = None) -> list[tuple[str, str, str]]:
    """(name, summary, where it would come from) of every known set, in the order in which names are looked for."""
    root = _root(data_root)
    origins = {name: DATASETS.origin_of(name) for name in DATASETS}
    found = [
        (name, DATASETS.summary(name), "embedded" if origin == "oodbench" else origin)
        for name, origin in origins.items()
    ]
    for name, folder in _under(root).items():
        summary = TORCHVISION[name].summary if name in TORCHVISION else "Prepared images"
        found.append((name, f"{summary} ({', '.join(_parts(folder))})", str(folder)))
    found += [(name, known.summary, "torchvision") for name, known in TORCHVISION.items()]
    return list({row[0]: row for row in reversed(found)}.values())[::-1]


def _prepared(name: str, part: str, root: Path | None) -> Prepared:
    base, perturbations = _split_perturbations(name, root)
    full = _source(base, part, root)
    if not perturbations:
        return full
    copy = prepared(
        f"{name}:{full.fingerprint[:16]}",
        part,
        {"of": full.fingerprint, "validation_from": full.validation_from, "version": VERSION},
        # An image's perturbed copy belongs to the same part as the image itself.
        lambda: RawImages(
            perturb(full.pixels, full.index, perturbations),
            full.labels,
            full.index,
            np.arange(len(full.pixels)) >= full.validation_from,
        ),
        name,
    )
    return replace(copy, names=full.names)  # files may be renamed while their pixels, and so the copy, stay


def _split_perturbations(name: str, root: Path | None) -> tuple[str, list[str]]:
    """`cifar10+hflip+blur` as `cifar10` and [`hflip`, `blur`]; a known name or path may itself hold a plus."""
    base, found = name, list[str]()
    while "+" in base and not _exists(base, root):
        rest, _, suffix = base.rpartition("+")
        if suffix in PERTURBATIONS:
            base, found = rest, [suffix, *found]
        elif is_own(base):
            break
        else:
            raise OodbenchError(f"Unknown perturbation {suffix!r} in {name!r}: {_near(suffix, PERTURBATIONS)}")
    return base, found


def _exists(name: str, root: Path | None) -> bool:
    if is_own(name):
        return expanded(name.partition(":")[2]).exists()
    return name in DATASETS or name in _under(root)


def _source(name: str, part: str, root: Path | None) -> Prepared:
    if is_own(name):
        return prepared_own(name, part)
    if name in DATASETS:
        return _registered(name, part)
    under_root = _under(root)
    if name in under_root:
        return _from_root(name, part, under_root[name])
    if name in TORCHVISION:
        return prepared_torchvision(name, part)
    everything = [*DATASETS, *under_root, *TORCHVISION]
    raise OodbenchError(f"Unknown data set {name!r}: {hint(name, everything)} Your own: folder:PATH or npz:PATH.")


def _registered(name: str, part: str) -> Prepared:
    def build() -> RawImages:
        result = DATASETS.get(name)(part)
        return result if isinstance(result, RawImages) else RawImages(*result)

    if DATASETS.origin_of(name) == "oodbench":
        return prepared(f"embedded:{name}", part, {"embedded": embedded.VERSION}, build, name)
    try:
        raw = build().checked(name)
    except OodbenchError:
        raise
    except Exception as error:
        raise OodbenchError(
            f"The data set {name!r} of {DATASETS.origin_of(name)} failed ({type(error).__name__}: {error}): mend it."
        ) from error
    # Nobody else can say whether a plugin would give the same images again, so its content is the stamp.
    parts = [part for part in (raw.index, raw.labels, raw.held_out) if part is not None]
    stamp = {"content": fingerprint(raw.pixels, np.concatenate(parts))}
    return prepared(f"plugin:{name}", part, stamp, lambda: raw, name)


def _from_root(name: str, part: str, folder: Path) -> Prepared:
    path = (folder / f"{part}.npz").resolve()
    if not path.is_file():
        there = " and ".join(_parts(folder))
        raise OodbenchError(f"{name} has no {part} split under the data root, only {there}: write {path}.")
    return prepared(f"root:{path}", part, stamp_of(path), lambda: read_npz(path), str(path))


def _root(data_root: Path | str | None) -> Path | None:
    if data_root is None and os.environ.get("OODBENCH_DATA"):
        data_root = os.environ["OODBENCH_DATA"]
    if data_root is None:
        return None
    data_root = expanded(data_root)
    if not data_root.is_dir():
        raise OodbenchError(f"The data root {data_root} is not a folder: correct --data-root or OODBENCH_DATA.")
    return data_root


def _under(root: Path | None) -> dict[str, Path]:
    """The sets of a data root, name to folder."""
    return {} if root is None else {path.parent.name: path.parent for path in sorted(root.glob("*/*.npz"))}


def _parts(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.npz"))


def _near(name: str, known: Iterable[str]) -> str:
    known = list(dict.fromkeys(known))
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}."
