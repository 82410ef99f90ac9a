"""Every test of this room has a cache and no data root of its own."""

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OODBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OODBENCH_DATA", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data root with one set, `toys`: 200 training and 30 test images, colour 6x5."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "root" / "toys"
    folder.mkdir(parents=True)
    for split, n in (("train", 200), ("test", 30)):
        np.savez(
            folder / f"{split}.npz",
            images=rng.integers(0, 256, (n, 6, 5, 3), np.uint8),
            labels=rng.integers(-1, 10, n),
            index=np.arange(n) * 2,
        )
    return tmp_path / "root"
