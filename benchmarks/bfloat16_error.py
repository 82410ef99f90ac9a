"""What bfloat16 networks change: log P, and the AUROC of detectors, on trained flows."""

import tempfile
from pathlib import Path
from typing import Literal

import numpy as np

from oodbench.data import adaptation, in_domain, load
from oodbench.detector import Columns, Detector
from oodbench.engine import evaluate
from oodbench.errors import OodbenchError
from oodbench.evaluation import Levels, auroc
from oodbench.plugins import load_plugins
from oodbench.pretrained import TrainedModel, load_model
from oodbench.registry import DETECTORS

__all__ = ["precision_row"]

FLOWS = ("glow", "nsf", "maf")  # affine couplings, splines, and an autoregressive network
# Of each flow the first whose images and weights are there.
PAIRS = (("cifar10", "svhn"), ("fashionmnist", "mnist"), ("photos", "glyphs"))
_PRECISIONS: tuple[Literal["float32"], Literal["bfloat16"]] = ("float32", "bfloat16")


def precision_row(n: int = 1000) -> None:
    """Prints the error of log P in nats and the AUROC of both precisions, on up to n images of each kind."""
    load_plugins(())
    for flow in FLOWS:
        for inside, outside in PAIRS:
            try:
                load(inside, "test"), load(outside, "test")
                model = load_model(flow, inside)
            except OodbenchError as error:
                print(f"{flow}: not on {inside} and {outside}: {error}")
            else:
                _compare(model, inside, outside, n)
                break


def _compare(model: TrainedModel, inside: str, outside: str, n: int) -> None:
    columns = {p: [_log_px(model, name, split, n, p) for name, split in _parts(inside, outside)] for p in _PRECISIONS}
    (_, test, out), sizes = columns["float32"], [c.rows for c in columns["float32"]]
    print(f"\nbfloat16 networks, {model.name} of {inside} against {outside}: n = {sizes[1]} and {sizes[2]} images")
    for name, exact, rough in (
        (inside, test, columns["bfloat16"][1]),
        (outside, out, columns["bfloat16"][2]),
    ):
        error = rough["log_px"].astype(np.float64) - exact["log_px"]
        print(
            f"  log P on {name}, bfloat16 - float32: mean {error.mean():+.3f}, mean size {np.abs(error).mean():.3f}, "
            f"largest {np.abs(error).max():.3f} nats of {exact['log_px'].mean():.0f}"
        )
    for detector in ("likelihood", "typicality"):
        areas = {precision: _auroc(DETECTORS.get(detector)(), *columns[precision]) for precision in _PRECISIONS}
        one, other = areas["float32"], areas["bfloat16"]
        print(f"  AUROC of {detector}: float32 {one:.5f}, bfloat16 {other:.5f} ({other - one:+.5f})")


def _parts(inside: str, outside: str) -> list[tuple[str, str]]:
    return [(inside, "validation"), (inside, "test"), (outside, "test")]


def _log_px(model: TrainedModel, name: str, split: str, n: int, precision: Literal["float32", "bfloat16"]) -> Columns:
    images = load(name, split).limit(n)
    how = adaptation(images, in_domain(load(model.dataset, "test")))
    with tempfile.TemporaryDirectory() as cache:
        return evaluate(
            ["log_px"], images, how, model=model, device="cpu", precision=precision, cache=Path(cache), progress=False
        ).columns


def _auroc(detector: Detector, validation: Columns, inside: Columns, outside: Columns) -> float:
    detector.fit(validation)
    return auroc(Levels.of(detector.score(inside), detector.score(outside)))
