"""Finds, verifies and loads weights: safetensors files and one `index.json` a folder that says how they were made."""

import hashlib
import json
import os
import shlex
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from oodbench.data import identity, safe_name
from oodbench.errors import OodbenchError
from oodbench.files import cache_dir, expanded, locked, sha256, write_atomically
from oodbench.models.base import DensityModel
from oodbench.models.configuration import check_configuration
from oodbench.registry import MODELS

__all__ = [
    "TrainedModel",
    "available_models",
    "entries",
    "has_weights",
    "is_usual",
    "load_model",
    "own_folder",
    "pretrained_folders",
    "save_model",
]

_SUFFIX = ".safetensors"
# Of an index row, what is relied on.
_FIELDS = (
    "file",
    "sha256",
    "dataset",
    "model",
    "role",
    "preset",
    "seed",
    "shape",
    "recipe",
    "data_fingerprint",
    "undertrained",
)


@dataclass(frozen=True)
class TrainedModel:
    """A density model with its weights, in evaluation mode, and where they come from."""

    module: DensityModel
    name: str  # of the model, as registered
    dataset: str  # in-distribution
    weights: str  # SHA-256 of the file
    entry: dict[str, Any] = field(repr=False)  # its row of the index

    @property
    def config(self) -> dict[str, Any]:
        """The model's configuration."""
        config: dict[str, Any] = self.entry["recipe"]["config"]
        return config


def pretrained_folders() -> list[Path]:
    """Where weights are looked for, in order: `OODBENCH_PRETRAINED`, own trainings, the checkout or the wheel."""
    package = Path(__file__).parent
    chosen = os.environ.get("OODBENCH_PRETRAINED")
    folders = [expanded(chosen)] if chosen else []
    folders += [cache_dir() / "pretrained", package.parent / "pretrained", package / "pretrained"]
    return [folder for folder in folders if (folder / "index.json").is_file()]


def entries(dataset: str | None = None) -> list[tuple[Path, dict[str, Any]]]:
    """(file, index row) of all weights that are there, for one in-distribution set or all."""
    found = []
    dataset = dataset and identity(dataset)
    for folder in pretrained_folders():
        for entry in _read_index(folder):
            file = folder / entry["file"]
            if file.is_file() and dataset in (None, entry["dataset"]):
                found.append((file, entry))
    return found


def available_models(
    dataset: str, weights: Path | str | None = None, role: str = "model", seed: int | None = None
) -> list[str]:
    """Names of the models that have weights (of training `seed`) for this in-distribution set, in registry order."""
    found = [entry for _, entry in _candidates(dataset, weights) if entry["role"] == role]
    names = {entry["model"] for entry in found if seed in (None, entry["seed"])}
    return MODELS.ordered(names)


def load_model(
    name: str,
    dataset: str,
    *,
    role: str = "model",
    preset: str | None = None,
    seed: int | None = None,
    weights: Path | str | None = None,
) -> TrainedModel:
    """The model trained on `dataset`; `weights` names a file or a folder with an index instead of the usual places.

    Weights in `OODBENCH_PRETRAINED` come first, and of several the small preset's training seed 0, unless `preset` or
    `seed` say otherwise. Raises `OodbenchError` where there are no such weights, or a file's hash is not the one in its
    index.
    """
    MODELS.get(name)  # an unknown name is told before anything else
    found = _matching(name, dataset, role, preset, seed, weights)
    if found:
        return _load(*found[0])
    what = f"{name}{' (background)' if role == 'background' else ''}"
    where = weights or "OODBENCH_PRETRAINED or the folder pretrained/"
    flag = (" --background" if role == "background" else "") + (f" --preset {preset}" if preset else "")
    flag += f" --seed {seed}" if seed else ""
    raise OodbenchError(
        f"There are no weights of {what} for {dataset} in {where}: "
        f"make them with `oodbench train --model {shlex.quote(name)} --in {dataset}{flag}`."
    )


def has_weights(
    name: str,
    dataset: str,
    *,
    role: str = "model",
    preset: str | None = None,
    seed: int | None = None,
    weights: Path | str | None = None,
) -> bool:
    """Whether `load_model` would find weights."""
    return bool(_matching(name, dataset, role, preset, seed, weights))


def is_usual(trained: TrainedModel) -> bool:
    """Whether `load_model` gives these weights to one who asks for their training seed and nothing else."""
    found = _matching(trained.name, trained.dataset, trained.entry["role"], None, trained.entry["seed"], None)
    return bool(found) and found[0][1]["sha256"] == trained.weights


def own_folder() -> Path:
    """Where trainings put their weights if they are told no other place: `OODBENCH_PRETRAINED`, else in the cache."""
    return expanded(os.environ.get("OODBENCH_PRETRAINED") or cache_dir() / "pretrained")


def save_model(module: DensityModel, entry: dict[str, Any], folder: Path | str | None = None) -> TrainedModel:
    """Writes weights and their index row into `folder`, by default `own_folder()`."""
    from safetensors.torch import save

    folder = expanded(folder or own_folder())
    entry = entry | {"dataset": identity(entry["dataset"])}
    name = entry["model"]
    for part, usual in (("role", "model"), ("preset", "small"), ("seed", 0)):
        if entry[part] != usual:
            name += f"-{'seed' if part == 'seed' else ''}{entry[part]}"
    file = folder / safe_name(entry["dataset"]) / f"{name}{_SUFFIX}"
    content = save({key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()})
    with locked(folder):  # the file too: its row must speak of what it holds
        others = [row for row in _read_index(folder) if folder / row["file"] != file]
        with write_atomically(file) as stream:
            stream.write(content)
        entry = entry | {
            "file": file.relative_to(folder).as_posix(),
            "sha256": sha256(file),
            "bytes": file.stat().st_size,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        # "glow" before "glow-paper" and "glow-seed1"
        rows = sorted([*others, entry], key=lambda row: row["file"].removesuffix(_SUFFIX))
        with write_atomically(folder / "index.json") as stream:
            stream.write(_index_text(rows).encode())
        return _load(file, entry)


def _matching(
    name: str, dataset: str, role: str, preset: str | None, seed: int | None, weights: Path | str | None
) -> list[tuple[Path, dict[str, Any]]]:
    found = [
        (file, entry)
        for file, entry in _candidates(dataset, weights)
        if (entry["model"], entry["role"]) == (name, role)
        and preset in (None, entry["preset"])
        and seed in (None, entry["seed"])
    ]
    # A tiny training in the cache must not stand for the weights that everybody has; one in a named folder is meant.
    chosen = expanded(os.environ.get("OODBENCH_PRETRAINED") or os.devnull)
    return sorted(
        found,
        key=lambda one: (not one[0].is_relative_to(chosen), one[1]["preset"] != "small", one[1]["seed"] != 0),
    )


def _candidates(dataset: str, weights: Path | str | None) -> list[tuple[Path, dict[str, Any]]]:
    if weights is None:
        return entries(dataset)
    weights = expanded(weights).resolve()
    if not weights.exists():
        raise OodbenchError(f"There are no weights {weights}: name a .safetensors file or a folder with an index.json.")
    folder = weights if weights.is_dir() else weights.parent
    while not (folder / "index.json").is_file():
        if folder == folder.parent:
            raise OodbenchError(f"No index.json in or above {weights}: name a folder made by `oodbench train`.")
        folder = folder.parent
    rows = [(folder / row["file"], row) for row in _read_index(folder) if row["dataset"] == identity(dataset)]
    chosen = [(file, row) for file, row in rows if weights.is_dir() or file.resolve() == weights]
    return [(file, row) for file, row in chosen if file.is_file()]


def _load(file: Path, entry: dict[str, Any]) -> TrainedModel:
    from safetensors import SafetensorError
    from safetensors.torch import load

    content = file.read_bytes()
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise OodbenchError(f"{file} differs from its index (by SHA-256): fetch or train it again.")
    build = MODELS.get(entry["model"])
    try:
        check_configuration(entry["model"], build, entry["recipe"]["config"])
    except OodbenchError as error:
        raise OodbenchError(f"{file} does not fit this version: {error}") from error
    try:
        with torch.random.fork_rng(devices=[]):  # fresh weights are drawn only to be replaced
            module: DensityModel = build(tuple(entry["shape"]), **entry["recipe"]["config"])
        module.load_state_dict(load(content))
    except (RuntimeError, TypeError, SafetensorError) as error:
        raise OodbenchError(f"{file} does not fit this version's {entry['model']}: train it again.") from error
    return TrainedModel(module.eval(), entry["model"], entry["dataset"], entry["sha256"], entry)


def _read_index(folder: Path) -> list[dict[str, Any]]:
    path = folder / "index.json"
    if not path.is_file():
        return []
    try:
        rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["weights"]
        for row in rows:
            _ = [row[field] for field in _FIELDS], row["recipe"]["config"]
    except (ValueError, KeyError, TypeError) as error:
        raise OodbenchError(f"{path} is not a readable index of weights: restore it or delete it.") from error
    return rows


def _index_text(rows: list[dict[str, Any]]) -> str:
    """One entry a block, one field a line: readable, and small diffs."""
    blocks = []
    for row in rows:
        lines = ",\n".join(f"    {json.dumps(key)}: {json.dumps(value)}" for key, value in row.items())
        blocks.append(f"  {{\n{lines}\n  }}")
    return '{"schema": 1, "weights": [\n' + ",\n".join(blocks) + "\n]}\n"
