"""The one door for detectors, statistics, models and data sets that are not imported by name: ours and everybody's."""

import hashlib
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

from oodbench.errors import OodbenchError
from oodbench.files import Paths, expanded
from oodbench.messages import tell
from oodbench.registry import DATASETS, DETECTORS, MODELS, STATISTICS, Registry, skipped

__all__ = ["Plugin", "load_builtin", "load_entry_points", "load_plugin", "load_plugins", "loaded"]

_GROUP = "oodbench.plugins"
_REGISTRIES: tuple[Registry[Any], ...] = (DATASETS, DETECTORS, MODELS, STATISTICS)


@dataclass(frozen=True)
class Plugin:
    """What became of a file or an entry point."""

    where: str  # the file's path, or the entry point
    origin: str  # who registers: "oodbench" for the built-in detectors, else the same as `where`
    version: str  # a hash of the file, or what the entry point points to and its package's version
    names: tuple[tuple[Registry[Any], str], ...]  # what it registered
    fault: str | None  # why it was skipped


_plugins: dict[str, Plugin] = {}  # by `where`


def loaded() -> list[Plugin]:
    """All plugins that were loaded or skipped so far, the built-in detectors' files included."""
    return list(_plugins.values())


def load_plugins(files: Paths = (), builtin: bool = True) -> None:
    """Loads the built-in detectors, the installed entry points, then `files`; `OodbenchError` if one is missing.

    Without `builtin` the first are left out, and numpy with them, where nothing else is loaded that may name them or
    be refused for their names.
    """
    paths = [_existing(file) for file in ([files] if isinstance(files, str | os.PathLike) else files)]
    if builtin or paths or metadata.entry_points(group=_GROUP):
        load_builtin()
    load_entry_points()
    for path in paths:
        load_plugin(path)


def load_builtin() -> None:
    """Loads every file of the `detectors` folder: inside an installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    folder = package / "detectors"
    if not folder.is_dir():
        folder = package.parent / "detectors"
        # Beside an installed package, a folder of this name would belong to somebody else.
        if not (folder.is_dir() and (package.parent / "pyproject.toml").is_file()):
            raise OodbenchError(f"The detectors that belong to {package} are missing: install oodbench again.")
    for path in sorted(folder.glob("*.py")):
        load_plugin(path, origin="oodbench")


def load_entry_points() -> None:
    """Imports what installed packages name under the entry point group `oodbench.plugins`."""
    for entry in metadata.entry_points(group=_GROUP):
        where = f"entry point {entry.name} = {entry.value}"
        if where not in _plugins:
            version = f"{entry.value} {entry.dist.version if entry.dist else ''}".strip()
            _plugins[where] = _admit(where, where, version, entry.load)


def load_plugin(path: Path | str, *, origin: str | None = None) -> None:
    """Runs a Python file that registers things; a file that did not change since it was loaded is left as it is.

    A file that fails, or registers what cannot work, is named on stderr and nothing of it stays registered. One that
    does not exist is an `OodbenchError`.
    """
    path = _existing(path)
    try:
        source = path.read_bytes()
    except OSError as error:
        raise OodbenchError(f"Cannot read the plugin {path} ({error.strerror}): check its rights.") from error
    version = hashlib.sha256(source).hexdigest()
    known = _plugins.get(str(path))
    if known is not None:
        if known.version == version and known.fault is None:
            return
        _withdraw(known.names)
    # A module of its own for every file, so that two of one name do not meet, and none can be imported by accident.
    name = f"oodbench._plugins.{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    where = str(path)
    _plugins[where] = _admit(where, origin or where, version, lambda: _execute(name, path, source))


def _existing(path: Path | str) -> Path:
    path = expanded(path).resolve()
    if not path.is_file():
        raise OodbenchError(f"There is no plugin file {path}: check the path given to --plugin.")
    return path


def _execute(name: str, path: Path, source: bytes) -> None:
    spec = spec_from_loader(name, SourceFileLoader(name, str(path)))
    assert spec is not None
    module = module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses and pickles look for the classes' module
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise


def _admit(where: str, origin: str, version: str, execute: Callable[[], Any]) -> Plugin:
    """Runs a plugin: all that it registers, or nothing and one line on stderr."""
    added: list[tuple[Registry[Any], str]] = []
    fault: str | None = "interrupted"
    try:
        with _recording(origin, version, added):
            execute()
        fault = next(filter(None, (_fault(registry, name) for registry, name in added)), None)
    except (Exception, SystemExit) as error:
        fault = _sentence(error, where)
    finally:
        if fault is not None:
            _withdraw(added)
            added = []
    skipped.discard(where)
    if fault is not None:
        skipped.add(where)
        tell(f"skipped plugin {where}{fault}")
    return Plugin(where, origin, version, tuple(added), fault)


@contextmanager
def _recording(origin: str, version: str, added: list[tuple[Registry[Any], str]]) -> Iterator[None]:
    """Signs what is registered meanwhile with `origin` and the `version` of its code, and lists it in `added`."""
    before = [(registry, registry.origin, registry.version, set(registry)) for registry in _REGISTRIES]
    for registry in _REGISTRIES:
        # Our own code says itself, by a version, when its numbers change.
        registry.origin, registry.version = origin, None if origin == "oodbench" else version
    try:
        yield
    finally:
        for registry, former_origin, former_version, names in before:
            registry.origin, registry.version = former_origin, former_version
            added += [(registry, name) for name in registry if name not in names]


def _withdraw(names: Iterable[tuple[Registry[Any], str]]) -> None:
    for registry, name in names:
        if name in registry:
            registry.remove(name)


def _fault(registry: Registry[Any], name: str) -> str | None:
    """What keeps a newly registered thing from working, as far as can be told without running it."""
    value = registry.get(name)
    if registry is DETECTORS:
        from oodbench.detector import Detector  # with numpy, which only a plugin's detector needs

        if not (isinstance(value, type) and issubclass(value, Detector)):
            return f": {name!r} is not a subclass of oodbench.Detector."
        if value.score is Detector.score:
            return f": {value.__name__} ({name!r}) does not define score()."
        if not (isinstance(value.needs, tuple) and value.needs and all(isinstance(need, str) for need in value.needs)):
            return f": {value.__name__} ({name!r}) must name its columns in needs, a tuple such as ('log_px',)."
        if not value.group_sizes or not all(isinstance(size, int) and size > 0 for size in value.group_sizes):
            return f": {value.__name__} ({name!r}) must have group_sizes that are positive integers."
    if registry is MODELS and not hasattr(value, "likelihood"):
        return f": The model {name!r} does not say what its likelihood is: set it to a Likelihood."
    if registry is DATASETS and not callable(value):
        return f": The data set {name!r} is not a function of the split."
    return None


def _sentence(error: BaseException, where: str) -> str:
    """What went wrong, and in which line of the plugin's file, as one line."""
    what = str(error) if isinstance(error, OodbenchError) else traceback.format_exception_only(error)[-1]
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == where]
    if isinstance(error, SyntaxError) and error.filename == where:
        lines = [error.lineno]
    return (f", line {lines[-1]}: " if lines else ": ") + " ".join(what.split())
