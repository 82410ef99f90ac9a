"""What every test may rely on."""

import pytest

from oodbench import plugins
from oodbench.registry import DATASETS, DETECTORS, MODELS, STATISTICS, skipped

REGISTRIES = (DATASETS, DETECTORS, MODELS, STATISTICS)


@pytest.fixture(autouse=True)
def _registries_as_before(monkeypatch: pytest.MonkeyPatch):
    """No test leaves anything registered, or remembered as loaded."""
    plugins.load_builtin()
    before = [set(registry) for registry in REGISTRIES]
    monkeypatch.setattr(plugins, "_plugins", dict(plugins._plugins))
    yield
    skipped.clear()
    for registry, names in zip(REGISTRIES, before, strict=True):
        for name in set(registry) - names:
            registry.remove(name)


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch):
    """Tables are folded at the width of the terminal, whichever the tests run in."""
    monkeypatch.setenv("COLUMNS", "160")
