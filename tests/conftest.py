"""What every test may rely on."""

import os

import hypothesis
import pytest
import torch
from threads import fixture_of

from oodbench import plugins
from oodbench.registry import DATASETS, DETECTORS, MODELS, STATISTICS, skipped

REGISTRIES = (DATASETS, DETECTORS, MODELS, STATISTICS)


def pytest_configure() -> None:
    """Workers are one thread each, and so is what they start: more threads than cores wait for each other."""
    hypothesis.settings.register_profile("any machine", deadline=None)
    hypothesis.settings.load_profile("any machine")
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)


two_lanes = fixture_of(2)  # the engine runs two batches side by side, however many threads a worker has


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
