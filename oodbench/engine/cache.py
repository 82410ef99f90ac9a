"""Columns on disk, found by a hash of everything that can change a number in them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from oodbench.errors import OodbenchError
from oodbench.files import write_atomically
from oodbench.messages import tell

__all__ = ["SCHEMA", "Chunk", "Entry", "key_of"]

SCHEMA = 1  # part of every key: raise it when the engine itself changes numbers or the files' layout


@dataclass(frozen=True)
class Chunk:
    """Columns of n different images of one data set."""

    rows: np.ndarray  # int64 (n,), rows of the full data set
    seconds: np.ndarray  # float64 (n,), what computing each image took: its share of the batch's time
    columns: Mapping[str, np.ndarray]  # each (n, ...)

    @classmethod
    def join(cls, chunks: Sequence["Chunk"]) -> "Chunk":
        """All rows of the chunks in increasing order; a row that stands in several is taken from the first."""
        try:
            rows, first = np.unique(np.concatenate([chunk.rows for chunk in chunks]), return_index=True)
            seconds = np.concatenate([chunk.seconds for chunk in chunks])[first]
            columns = {
                name: np.concatenate([chunk.columns[name] for chunk in chunks])[first] for name in chunks[0].columns
            }
        except ValueError as error:
            raise OodbenchError(
                f"The shape of {', '.join(chunks[0].columns)} changed between images or since it was cached ({error}): "
                "a statistic gives every image the same shape, and a changed one needs a new version."
            ) from error
        return cls(rows, seconds, columns)

    def take(self, rows: np.ndarray) -> "Chunk":
        """The chunk of these rows, which must all be here, in this order; `self.rows` must be increasing."""
        where = np.searchsorted(self.rows, rows)
        return Chunk(rows, self.seconds[where], {name: column[where] for name, column in self.columns.items()})


def key_of(facts: Mapping[str, Any]) -> str:
    """SHA-256, as 64 hex digits, of the facts as canonical JSON."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise OodbenchError(f"{value!r} cannot be part of a cache key: parameters and configurations must be plain data.")


class Entry:
    """The cached columns of one key: a folder of chunks, each a safetensors file named by the SHA-256 of its bytes.

    Chunks appear whole, several processes may write one entry, and any subset of rows may be there.
    """

    def __init__(self, root: Path, facts: Mapping[str, Any], about: Mapping[str, str]) -> None:
        self.key = key_of(facts)
        self.folder = root / "columns" / self.key[:2] / self.key
        self._description = {"about": about, "facts": facts}  # for people: nothing reads it back

    def read(self) -> Chunk | None:
        """All cached rows, or None; damaged chunks are named on stderr and dropped."""
        chunks = self._chunks()
        return Chunk.join(list(chunks.values())) if chunks else None

    def append(self, chunk: Chunk) -> None:
        """Writes one more chunk; a full disk is an `OodbenchError` and leaves the entry as it was."""
        about = self.folder / "key.json"
        if not about.exists():
            _write(about, json.dumps(self._description, indent=2, default=_plain).encode())
        self._write_chunk(chunk)

    def merge(self) -> None:
        """Makes one chunk of many; the whole is written before its parts go, so that no row is ever missing."""
        chunks = self._chunks()
        if len(chunks) < 2:
            return
        kept = self._write_chunk(Chunk.join(list(chunks.values())))
        for path in chunks:
            if path != kept:
                path.unlink(missing_ok=True)

    def _chunks(self) -> dict[Path, Chunk]:
        while True:
            try:
                read = {path: _read_chunk(path) for path in sorted(self.folder.glob("[!.]*.safetensors"))}
            except FileNotFoundError:  # another process merged it just now: its rows stand in a newer chunk
                continue
            return {path: chunk for path, chunk in read.items() if chunk is not None}

    def _write_chunk(self, chunk: Chunk) -> Path:
        arrays = {"rows": chunk.rows, "seconds": chunk.seconds}
        arrays |= {f"column.{name}": column for name, column in chunk.columns.items()}
        content = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
        path = self.folder / f"{hashlib.sha256(content).hexdigest()}.safetensors"
        _write(path, content)
        return path


def _write(path: Path, content: bytes) -> None:
    with write_atomically(path) as file:
        file.write(content)


def _read_chunk(path: Path) -> Chunk | None:
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != path.stem:
            raise ValueError
        arrays = load(content)
        prefix = "column."
        columns = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        return Chunk(arrays["rows"], arrays["seconds"], columns)
    except FileNotFoundError:
        raise
    except OSError as error:  # it may be whole: it stays
        tell(f"oodbench: cannot read the cached columns in {path} ({error.strerror}); they are computed again.")
        return None
    except (ValueError, KeyError, SafetensorError):
        tell(f"oodbench: cached columns in {path} are damaged; they are dropped and computed again.")
        with suppress(OSError):
            path.unlink(missing_ok=True)
        return None
