"""Records as the benchmark makes them, with numbers that are easy to follow."""

import pytest


@pytest.fixture
def make_record():
    """A factory: `make_record(detector="typicality", value=0.8, out="svhn", ...)`."""

    def make(detector="likelihood", value=0.7, half=0.01, **changes):
        low, high = max(0.0, value - half), min(1.0, value + half)
        numbers = {"value": value, "low": low, "high": high}
        model = changes.get("model", "glow")
        free = model == "none"
        group_size = changes.get("group_size", 1)
        record = {
            "schema": 1,
            "in": "cifar10",
            "out": "svhn",
            "model": model,
            "preset": None if free else "small",
            "weights_short": None if free else "abcdef01",
            "likelihood": None if free else "lower_bound",
            "undertrained": False,
            "detector": detector,
            "seed": 0,
            "group_size": group_size,
            "n_in": 10_000 // group_size,
            "n_out": 1264 // group_size,
            "metrics": {
                "auroc": numbers,
                "aupr_in": numbers,
                "aupr_out": numbers,
                "fpr95": {"value": 1 - value, "low": 1 - high, "high": 1 - low},
            },
            "bits_per_dim": None if free else {"in": 3.94, "out": 2.61},
            "nonfinite": 0,
            "inversion": high < 0.5,
            "draws": None,
            "seconds": 1.5,
            "provenance": {
                "weights": None if free else "abcdef01" * 8,
                "data": {"in": "1" * 64, "out": "2" * 64},
                "adaptation": "3x32x32 as it is",
                "versions": {"torch": "2.9"},
                "commit": "0" * 40,
                "dirty": False,
                "device": "cpu",
                "seconds_per_image": 0.001,
                "created": "2025-01-01T00:00:00+00:00",
            },
        }
        return record | changes | {"provenance": record["provenance"] | changes.get("provenance", {})}

    return make


@pytest.fixture
def records(make_record):
    """One pair with two models, groups, an inversion, NaN scores, a subset and a control; and a second pair."""
    return [
        make_record("likelihood", 0.083),
        make_record("typicality", 0.843),
        make_record("typicality", 0.999, group_size=10),
        make_record("input_complexity", 0.853, nonfinite=3),
        make_record("likelihood", 0.091, model="pixelcnn++", likelihood="exact", undertrained=True, n_in=2000),
        make_record("typicality", 0.801, model="pixelcnn++", likelihood="exact", undertrained=True, n_in=2000),
        make_record("compressed_size", 0.908, model="none"),
        make_record("likelihood", 0.53, out="cifar100", n_out=10_000),
    ]
