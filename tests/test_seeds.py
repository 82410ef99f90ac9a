"""Several training seeds: the weights of each, one record each, the same images and noise for all."""

from pathlib import Path
from typing import Any

import pytest
from random_weights import save_random

from oodbench.benchmark import run_records
from oodbench.errors import OodbenchError
from oodbench.models.flows.glow import Glow
from oodbench.records import read_records
from oodbench.suites.running import run_suite

LIMIT = 60


@pytest.fixture
def weights(tmp_path: Path) -> dict[tuple[str, int], str]:
    """SHA-256 by role and seed: a companion for seed 0 only."""
    roles = [("model", 0), ("model", 1), ("background", 0)]
    return {(role, seed): save_random(tmp_path / "w", "glow", role=role, seed=seed).weights for role, seed in roles}


@pytest.fixture
def asked(weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("OODBENCH_CACHE", str(tmp_path / "cache"))
    return {
        "in_": "digits", "out": "glyphs8", "weights": tmp_path / "w", "limit": LIMIT, "progress": False,
        "results": tmp_path / "results",
    }  # fmt: skip


def test_every_seed_has_its_weights_and_records_of_its_own(asked, weights, tmp_path: Path) -> None:
    records = run_records(**asked, detectors=["likelihood", "total_variation"], seeds=[0, 1])
    models = [record for record in records if record["model"] == "glow"]
    assert [(r["training_seed"], r["seed"], r["provenance"]["weights"]) for r in models] == [
        (0, 0, weights["model", 0]),
        (1, 0, weights["model", 1]),
    ]
    assert models[0]["bits_per_dim"] != models[1]["bits_per_dim"]
    (control,) = (record for record in records if record["model"] == "none")  # nobody trained it: it counts once
    assert control["training_seed"] is None
    read = read_records(tmp_path / "results")
    assert sorted((r["model"], r["training_seed"]) for r in read if r["model"] == "glow") == [("glow", 0), ("glow", 1)]
    alone = run_records(**asked, detectors=["likelihood"], seeds=[1])
    assert [record["bits_per_dim"] for record in alone] == [models[1]["bits_per_dim"]]


def test_without_seeds_the_usual_weights_are_taken(asked, weights) -> None:
    (record,) = run_records(**asked, detectors=["likelihood"])
    assert (record["training_seed"], record["provenance"]["weights"]) == (0, weights["model", 0])


def test_a_companion_has_the_seed_of_its_model(asked, weights) -> None:
    (record,) = run_records(**asked, detectors=["likelihood_ratio"], seeds=[0])
    assert record["provenance"]["background"] == weights["background", 0]
    with pytest.raises(OodbenchError, match="--background --seed 1"):
        run_records(**asked, detectors=["likelihood_ratio"], seeds=[0, 1])


def test_missing_seeds_are_told_or_trained(asked, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OodbenchError, match="--seed 2"):
        run_records(**asked, models="glow", detectors=["likelihood"], seeds=[0, 2])
    trained = []

    def train(model: str, dataset: str, *, seed: int, **_: Any):
        trained.append((model, dataset, seed))
        return save_random(None, model, dataset, seed=seed)

    monkeypatch.setattr("oodbench.training.train", train)
    monkeypatch.setattr("oodbench.pretrained.pretrained_folders", list)
    asked["weights"] = None
    records = run_records(**asked, models="glow", detectors=["likelihood"], seeds=[0, 2])
    assert trained == [("glow", "digits", 0), ("glow", "digits", 2)]
    assert [record["training_seed"] for record in records] == [0, 2]


def test_a_suite_runs_every_seed_and_tells_those_that_are_missing(asked, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "s.toml").write_text(
        'title = "S"\nmodels = ["glow"]\ndetectors = ["likelihood"]\n[[pairs]]\nin = "digits"\nout = ["glyphs8"]\n'
    )
    options = {key: value for key, value in asked.items() if key not in ("in_", "out")}
    _, records = run_suite(str(tmp_path / "s.toml"), **options, seeds=[0, 1])
    assert [record["training_seed"] for record in records] == [0, 1]
    monkeypatch.setattr(Glow, "statistics", None)
    with pytest.raises(
        OodbenchError, match="weights of glow for digits --seed 2: make them with `oodbench train --model"
    ):
        run_suite(str(tmp_path / "s.toml"), **options, seeds=[1, 2])
