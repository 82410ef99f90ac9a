"""Known results on real images, with the weights of `pretrained/`: run where `OODBENCH_DATA` holds prepared sets."""

import os
from pathlib import Path

import pytest

from oodbench.benchmark import run_records

DATA = Path(os.environ.get("OODBENCH_DATA") or "nowhere")
WEIGHTS = Path(__file__).parent.parent / "pretrained"

pytestmark = pytest.mark.usefixtures("two_lanes")


def auroc(in_: str, out: str, detector: str, group_size: int = 1) -> float:
    """The AUROC of glow on a seeded 150 images a set."""
    missing = [name for name in (in_, out) if not (DATA / name / "test.npz").is_file()]
    if missing:
        pytest.skip(f"OODBENCH_DATA holds no {missing[0]}")
    records = run_records(in_, out, "glow", detector, limit=150, weights=WEIGHTS, progress=False)
    value: float = next(r for r in records if r["group_size"] == group_size)["metrics"]["auroc"]["value"]
    return value


def test_cifar10_likelihood_inverts_on_house_numbers() -> None:
    """Nalisnick et al. 2019, Figure 1: SVHN is likelier than CIFAR-10 to a model of CIFAR-10."""
    assert auroc("cifar10", "svhn", "likelihood") < 0.2


def test_typicality_and_complexity_mend_cifar10_against_house_numbers() -> None:
    assert auroc("cifar10", "svhn", "typicality") > 0.7
    assert auroc("cifar10", "svhn", "input_complexity") > 0.8


def test_fashionmnist_likelihood_inverts_on_digits_but_not_the_other_way() -> None:
    assert auroc("fashionmnist", "mnist", "likelihood") < 0.25
    assert auroc("mnist", "fashionmnist", "likelihood") > 0.9


def test_fashionmnist_complexity_mends_it() -> None:
    assert auroc("fashionmnist", "mnist", "input_complexity") > 0.9


def test_the_embedded_pair_shows_an_inversion_and_a_cure() -> None:
    records = run_records("photos", "glyphs", "glow", weights=WEIGHTS, limit=150, progress=False)
    values = {(r["detector"], r["group_size"]): r for r in records}
    assert values["likelihood", 1]["inversion"]
    assert values["input_complexity", 1]["metrics"]["auroc"]["value"] > 0.9
