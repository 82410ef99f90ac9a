"""Results on disk: one JSON file holds all records of one model on one pair."""

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from oodbench.data import safe_name
from oodbench.errors import OodbenchError
from oodbench.files import expanded, locked, write_atomically
from oodbench.registry import hint

__all__ = ["SCHEMA", "Record", "data_hash", "folder_of", "read_records", "to_json", "write_records"]

SCHEMA = 1

Record = dict[str, Any]
"""One detector (and group size, and seed) of one model on one pair, with the keys of DESIGN.md."""

# Written once in a file; everything else belongs to an entry.
_SHARED = ("schema", "in", "out", "model", "preset", "training_seed", "weights_short", "likelihood", "undertrained")
_SHARED_PROVENANCE = ("weights", "data", "adaptation")
_REQUIRED = {"in", "out", "model", "detector", "group_size", "seed", "metrics"}


def write_records(results_dir: Path, records: Sequence[Record]) -> Path:
    """Adds the records of one model on one pair to `results/<in>/<model>/<out>.json`; returns the file's path.

    An entry of the same detector, group size and seed is replaced, unless it counted more images by the same code of a
    plugin's detector; all others stay. A
    folder belongs to the weights that came first: another model of the same name goes to
    `<model>@<preset>-<short weight hash>`. A file belongs to one state of the data: other images or another adaptation
    go to `<out>@<short data hash>.json`. So nothing is overwritten by what is not its own repetition.
    Raises `OodbenchError` where an existing file cannot be read.
    """
    if len({(r["in"], r["model"], r["out"], _owner(r), data_hash(r)) for r in records}) != 1:
        raise ValueError("write_records takes records of one model, with one set of weights, on one pair.")
    first = records[0]
    with locked(Path(results_dir)):
        folder = folder_of(Path(results_dir), first["in"], first["model"], *_owner(first), claim=True)
        path = folder / f"{safe_name(first['out'])}.json"
        if path.exists() and data_hash(_read(path)[0]) != data_hash(first):
            path = path.with_name(f"{path.stem}@{data_hash(first)}.json")
        entries = {_entry_key(record): record for record in _read(path)} if path.exists() else {}
        for record in records:
            earlier = entries.get(_entry_key(record))
            if earlier is None or _images(record) >= _images(earlier) or _plugin(record) != _plugin(earlier):
                entries[_entry_key(record)] = record
        with write_atomically(path) as file:
            file.write(_pack(first, [entries[key] for key in sorted(entries)]).encode())
    return path


def folder_of(
    root: Path, in_: str, model: str, preset: str | None, weights: str | None, *, claim: bool = False
) -> Path:
    """Where under `root` things lie that were made with these weights: `<in>/<model>` if the records there are theirs.

    Else it is `<in>/<model>@<preset>-<short weight hash>`, so that two models of one name never overwrite each other.
    A folder without records belongs to nobody, unless the caller's records `claim` it; the controls have no weights.
    """
    folder = Path(root) / safe_name(in_) / safe_name(model)
    earlier = next(iter(sorted(folder.glob("*.json"))), None)
    mine = _owner(_read(earlier)[0]) == (preset, weights) if earlier else claim or weights is None
    return folder if mine else folder.with_name(f"{folder.name}@{safe_name(preset or 'own')}-{(weights or 'none')[:8]}")


def read_records(
    results_dir: Path | str,
    in_: str | None = None,
    models: Sequence[str] | str | None = None,
    outs: Sequence[str] | str | None = None,
    detectors: Sequence[str] | str | None = None,
) -> list[Record]:
    """All records under `results_dir` as a flat list, or those of the named data sets, models and detectors.

    The order is that of the paths. Raises `OodbenchError` naming the file that is not a results file, or a name that
    none of the records there has.
    """
    found = [record for path in sorted(expanded(results_dir).glob("*/*/*.json")) for record in _read(path)]
    wanted = {"in": in_, "out": outs, "model": models, "detector": detectors}
    asked = {key: [names] if isinstance(names, str) else names for key, names in wanted.items() if names is not None}
    for key, names in asked.items():
        known = sorted({record[key] for record in found})
        unknown = [name for name in names if found and name not in known]
        if unknown:
            raise OodbenchError(
                f"No record in {results_dir} has {unknown[0]!r} as its {key!r}: {hint(unknown[0], known)}"
            )
    return [record for record in found if all(record[key] in names for key, names in asked.items())]


def to_json(value: Any) -> str:
    """Strict JSON, indented by 2: NaN and infinity become null, NumPy numbers and paths plain ones."""
    return json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy arrays and scalars
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value


def _pack(newest: Record, records: list[Record]) -> str:
    """The file's text: the shared facts, as the newest record has them, then what is left of every record."""
    shared = {"schema": SCHEMA} | {key: newest[key] for key in _SHARED if key in newest}
    provenance = newest.get("provenance", {})
    shared["provenance"] = {key: provenance[key] for key in _SHARED_PROVENANCE if key in provenance}
    entries = []
    for record in records:
        entry = {key: value for key, value in record.items() if key not in _SHARED}
        provenance = entry.pop("provenance", {})
        entry["provenance"] = {key: value for key, value in provenance.items() if key not in _SHARED_PROVENANCE}
        entries.append(entry)
    return to_json({**shared, "entries": entries}) + "\n"


def _read(path: Path) -> list[Record]:
    """The records of one file, shared facts put back into each."""
    try:
        shared = json.loads(path.read_text(encoding="utf-8"))
        if shared["schema"] > SCHEMA:
            raise OodbenchError(f"{path} was written by a newer oodbench (schema {shared['schema']}): update this one.")
        entries, provenance = shared.pop("entries"), shared.pop("provenance")
        records = [{**shared, **entry, "provenance": {**provenance, **entry["provenance"]}} for entry in entries]
        if not records or not all(record.keys() >= _REQUIRED for record in records):
            raise KeyError(*_REQUIRED)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OodbenchError(
            f"{path} is not a readable results file: restore it, or delete it and run again."
        ) from error
    return records


def _entry_key(record: Record) -> tuple[str, int, int]:
    return record["detector"], record["group_size"], record["seed"]


def _images(record: Record) -> int:
    return int(record.get("n_in", 0)) + int(record.get("n_out", 0))


def _plugin(record: Record) -> str | None:
    version: str | None = record.get("provenance", {}).get("plugin")
    return version


def _owner(record: Record) -> tuple[Any, Any]:
    return record.get("preset"), record.get("provenance", {}).get("weights")


def data_hash(record: Record) -> str:
    """8 hex digits that tell one state of a pair's images and their adaptation from another."""
    provenance = record.get("provenance", {})
    facts = to_json({key: provenance.get(key) for key in ("data", "adaptation")})
    return hashlib.sha256(facts.encode()).hexdigest()[:8]
