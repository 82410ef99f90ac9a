"""What a suite's file says, and what it may say."""

import difflib
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from oodbench.errors import OodbenchError
from oodbench.files import expanded
from oodbench.registry import DETECTORS, MODELS

__all__ = ["Pair", "Published", "Suite", "available_suites", "load_suite"]

_SUFFIX = ".toml"

# What a table may hold, and of which type it must be.
_REQUIRED: dict[str, dict[str, type]] = {
    "": {"title": str, "models": list, "detectors": list, "pairs": list},
    "pairs": {"in": str, "out": list},
    "published": {"in": str, "out": str, "model": str, "detector": str, "auroc": float, "source": str},
}
_OPTIONAL: dict[str, dict[str, type]] = {
    "": {"reference": str, "limit": int, "limits": dict, "published": list},
    "pairs": {"models": list},
    "published": {},
}
_TYPES = {str: "a text", list: "a list", dict: "a table", int: "a whole number", float: "a number"}


@dataclass(frozen=True)
class Pair:
    """An in-distribution set, what is held against it, and the models trained on it."""

    in_: str
    out: tuple[str, ...]
    models: tuple[str, ...]


@dataclass(frozen=True)
class Published:
    """An AUROC that a paper reports, and where it was read."""

    in_: str
    out: str
    model: str  # one of the suite's, or another one
    detector: str  # with @b for groups of b images
    auroc: float
    source: str


@dataclass(frozen=True)
class Suite:
    """A paper's whole table."""

    name: str
    title: str
    reference: str
    pairs: tuple[Pair, ...]
    models: tuple[str, ...]
    detectors: tuple[str, ...]  # with @b for groups of b images
    limit: int | None  # images a set, of a seeded subset
    limits: dict[str, int]  # the same for single models
    published: tuple[Published, ...]

    def limit_of(self, model: str) -> int | None:
        """How many images of each set this model sees at most."""
        return self.limits.get(model, self.limit)

    def only(self, in_: Sequence[str] | None, models: Sequence[str] | None) -> "Suite":
        """The part of the suite with these in-distribution sets and models."""
        for names, known, kind in (
            (in_, [pair.in_ for pair in self.pairs], "in-distribution set"),
            (models, list(self.models), "model"),
        ):
            for name in names or ():
                if name not in known:
                    raise OodbenchError(f"The suite {self.name} has no {kind} {name!r}: {_near(name, known)}")
        kept = tuple(model for model in self.models if not models or model in models)
        pairs = [
            replace(pair, models=tuple(model for model in pair.models if model in kept))
            for pair in self.pairs
            if not in_ or pair.in_ in in_
        ]
        pairs = [pair for pair in pairs if pair.models]
        if not pairs:
            raise OodbenchError(f"The suite {self.name} has no pair of {', '.join(in_ or ())} with {', '.join(kept)}.")
        return replace(self, pairs=tuple(pairs), models=kept)

    def check_names(self) -> None:
        """Raises `OodbenchError` for a model, detector or group size that nobody registered."""
        for model in self.models:
            with_suite(self.name, MODELS.get, model)
        for label in self.detectors:
            name, size = split_label(label)
            sizes = with_suite(self.name, DETECTORS.get, name).group_sizes
            if size not in sizes:
                raise OodbenchError(
                    f"The suite {self.name} wants {label!r}, but {name} scores groups of "
                    f"{', '.join(map(str, sizes))} images."
                )


def split_label(label: str) -> tuple[str, int]:
    """`typicality@10` as ("typicality", 10); a detector alone scores single images."""
    name, _, size = label.partition("@")
    if "@" in label and not (size.isdecimal() and int(size) > 1):
        raise OodbenchError(f"{label!r} is no detector: write NAME, or NAME@b for groups of b images.")
    return name, int(size or 1)


def with_suite(suite: str, get: Any, name: str) -> Any:
    """What `get(name)` gives; its error says which suite wanted it."""
    try:
        return get(name)
    except OodbenchError as error:
        raise OodbenchError(f"The suite {suite} cannot run. {error}") from error


def available_suites() -> list[Suite]:
    """The suites that come with oodbench, by name."""
    return [load_suite(name) for name in _shipped()]


def load_suite(name: str) -> Suite:
    """The suite of that name, or of a file that ends in `.toml`.

    Raises `OodbenchError` for an unknown name and for a file that cannot be read or says what no suite says. Models and
    detectors may be plugins', so their names are checked by `Suite.check_names`, when plugins are loaded.
    """
    if name.endswith(_SUFFIX):
        path = expanded(name)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise OodbenchError(f"The suite {path} cannot be read ({error}): correct the path.") from error
        return _parse(path.stem, str(path), text)
    if name not in _shipped():
        raise OodbenchError(f"Unknown suite {name!r}: {_near(name, _shipped())} Your own: a path that ends in .toml.")
    return _parse(name, name, resources.files("oodbench.suites").joinpath(name + _SUFFIX).read_text(encoding="utf-8"))


def _shipped() -> list[str]:
    files = resources.files("oodbench.suites").iterdir()
    return sorted(Path(file.name).stem for file in files if file.name.endswith(_SUFFIX))


def _parse(name: str, where: str, text: str) -> Suite:
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise OodbenchError(f"The suite {where} is no TOML: {error}.") from error
    _check(where, "", table)
    models, detectors = _names(where, "models", table["models"]), _names(where, "detectors", table["detectors"])
    for label in detectors:
        split_label(label)
    pairs = []
    for row in table["pairs"]:
        _check(where, "pairs", row)
        of_pair = _names(where, "models of a pair", row["models"]) if "models" in row else models
        for model in of_pair:
            _known(where, "models of a pair", model, models)
        out = _names(where, "out of a pair", row["out"])
        if row["in"] in out:
            raise OodbenchError(f"The suite {where} holds {row['in']!r} against itself: name other sets in out.")
        pairs.append(Pair(row["in"], out, of_pair))
    if not pairs:
        raise OodbenchError(f"The suite {where} has no pairs: add a table [[pairs]] with in and out.")
    limits = table.get("limits", {})
    for model, limit in [*limits.items(), ("", table.get("limit", 1))]:
        if type(limit) is not int or limit < 1:
            raise OodbenchError(f"The suite {where} has a limit of {limit!r}: give a number of images, at least 1.")
        if model:
            _known(where, "limits", model, models)
    published = []
    for row in table.get("published", []):
        _check(where, "published", row)
        held = {(pair.in_, out) for pair in pairs for out in pair.out}
        if (row["in"], row["out"]) not in held:
            raise OodbenchError(f"The suite {where} has a published number of no pair: {row['in']} → {row['out']}.")
        _known(where, "published", row["detector"], detectors)
        if not 0 <= row["auroc"] <= 1:
            raise OodbenchError(f"The suite {where} has a published AUROC of {row['auroc']}: it lies between 0 and 1.")
        facts = {key: value for key, value in row.items() if key not in ("in", "auroc")}
        published.append(Published(in_=row["in"], auroc=float(row["auroc"]), **facts))
    return Suite(
        name, table["title"], table.get("reference", ""), tuple(pairs), models, detectors, table.get("limit"), limits,
        tuple(published),
    )  # fmt: skip


def _check(where: str, place: str, table: Any) -> None:
    """Raises `OodbenchError` for what a table lacks, has too much, or has of another type."""
    what = f"The suite {where}" + (f", in [[{place}]]," if place else "")
    if not isinstance(table, dict):
        raise OodbenchError(f"{what} has {table!r} where a table belongs: write [[{place}]].")
    known = _REQUIRED[place] | _OPTIONAL[place]
    for key, value in table.items():
        if key not in known:
            raise OodbenchError(f"{what} has an unknown key {key!r}: {_near(key, known)}")
        accepted = (int, float) if known[key] is float else known[key]
        if not isinstance(value, accepted) or isinstance(value, bool):
            raise OodbenchError(f"{what} has {value!r} as {key}: it must be {_TYPES[known[key]]}.")
    missing = [key for key in _REQUIRED[place] if key not in table]
    if missing:
        raise OodbenchError(f"{what} lacks {', '.join(missing)}.")


def _names(where: str, what: str, names: list[Any]) -> tuple[str, ...]:
    if not names or not all(isinstance(name, str) and name for name in names):
        raise OodbenchError(f"The suite {where} has {names!r} as {what}: give at least one name.")
    return tuple(dict.fromkeys(names))


def _known(where: str, what: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise OodbenchError(f"The suite {where} names {name!r} in {what}, but not above: {_near(name, known)}")


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}."
