"""Every test of this room has a cache of its own, in which `digits` is prepared already."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from oodbench.data import load
from oodbench.registry import MODELS


@pytest.fixture(scope="session")
def prepared_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OODBENCH_CACHE", str(folder))
        for split in ("train", "test"):
            load("digits", split)
    return folder / "prepared"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepared_digits: Path) -> Path:
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / "prepared").symlink_to(prepared_digits)
    monkeypatch.setenv("OODBENCH_CACHE", str(folder))
    monkeypatch.delenv("OODBENCH_DATA", raising=False)
    monkeypatch.delenv("OODBENCH_PRETRAINED", raising=False)
    return folder


@pytest.fixture
def register_model() -> Iterator[Callable[[str, type], None]]:
    """Registers models that disappear after the test."""
    added: list[str] = []

    def add(name: str, model: type) -> None:
        MODELS.add(name, model)
        added.append(name)

    yield add
    for name in added:
        MODELS.remove(name)
