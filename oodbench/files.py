"""Files that are never half there: atomic writes, hashes, and where the cache lies."""

import errno
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from oodbench.errors import OodbenchError

__all__ = ["Paths", "cache_dir", "check_writable", "expanded", "locked", "sha256", "write_atomically"]

Paths = Iterable[Path | str] | Path | str
"""Paths, or a single one."""


def cache_dir() -> Path:
    """The folder for prepared images, cached columns and checkpoints: `OODBENCH_CACHE`, else `~/.cache/oodbench`."""
    folder = expanded(os.environ.get("OODBENCH_CACHE") or "~/.cache/oodbench")
    if folder.exists() and not folder.is_dir():
        raise OodbenchError(f"The cache {folder} is not a folder: set OODBENCH_CACHE to one.")
    return folder


def expanded(path: Path | str) -> Path:
    """The path with `~` written out; a home folder that nobody knows is an `OodbenchError`."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise OodbenchError(f"There is no home folder for {path}: set HOME, or write the path out.") from error


def check_writable(folder: Path | str) -> Path:
    """The folder, `~` written out; `OodbenchError` if nothing can be written below it. It need not exist yet."""
    folder = expanded(folder)
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        remedy = "set OODBENCH_CACHE to one" if folder.is_relative_to(cache_dir()) else "name another"
        raise OodbenchError(f"Cannot write to {folder}: {there} is not a folder to write to, so {remedy}.")
    return folder


@contextmanager
def write_atomically(path: Path) -> Iterator[IO[Any]]:
    """Opens a temporary binary file that becomes `path` when the block ends well, and disappears when it does not.

    A file that cannot be written (no space, no right, no such place) is an `OodbenchError`.
    """
    temporary: Path | None = None
    try:
        if path.exists() and not path.is_file():  # a folder, or a device such as /dev/null, which would be replaced
            raise OodbenchError(f"Could not write {path}: it is not a file, so name another place.")
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        temporary = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OodbenchError(f"The disk is full: could not write {path}; free some space and run again.") from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise OodbenchError(f"Not allowed to write {path}: choose another folder or change its rights.") from error
        raise OodbenchError(f"Could not write {path} ({error}): check the disk or choose another place.") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Processes that read and rewrite files of one folder at once do so one after the other."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise OodbenchError(f"Could not write {folder} ({error}): choose another folder.") from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sha256(path: Path) -> str:
    """The file's SHA-256 as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
