"""compare(): the right pairs, the scores of `run`, the same images, one correction for all."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from random_weights import save_random

from oodbench.benchmark import run_records
from oodbench.comparing import compare
from oodbench.detector import Columns, Detector
from oodbench.errors import OodbenchError
from oodbench.evaluation import Wins, difference, holm
from oodbench.models.flows.glow import Glow
from oodbench.registry import DETECTORS, register

LIMIT = 80


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    for model in ("glow", "glow-cv", "pixelcnn"):
        save_random(folder, model)
    return folder


@pytest.fixture
def asked(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("OODBENCH_CACHE", str(tmp_path / "cache"))
    return {"in_": ["digits"], "out": ["digits+blur"], "weights": weights, "limit": LIMIT, "progress": False}


def names(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [tuple(f"{row[key]['model']} {row[key]['detector']}" for key in ("a", "b")) for row in rows]


def test_detectors_of_a_model_models_of_a_detector_and_controls_are_compared(asked) -> None:
    rows = compare(**asked, models=["glow", "glow-cv"], detectors=["likelihood", "typicality", "total_variation"])
    assert names(rows) == [
        ("glow likelihood", "glow typicality"),
        ("glow likelihood", "glow-cv likelihood"),
        ("glow likelihood", "none total_variation"),
        ("glow typicality", "glow-cv typicality"),
        ("glow typicality", "none total_variation"),
        ("glow-cv likelihood", "glow-cv typicality"),
        ("glow-cv likelihood", "none total_variation"),
        ("glow-cv typicality", "none total_variation"),
    ]
    assert {row["comparisons"] for row in rows} == {8}


BOTH = ("glow", "glow-cv")


@pytest.mark.parametrize(
    ("against", "expected"),
    [
        ("likelihood", [(f"{model} typicality", f"{model} likelihood") for model in BOTH]),
        ("glow", [("glow-cv typicality", "glow typicality")]),
        ("total_variation", [(f"{model} typicality", "none total_variation") for model in BOTH]),
        (
            "glow-cv:likelihood",
            [(other, "glow-cv likelihood") for other in ("glow typicality", "glow likelihood", "glow-cv typicality")],
        ),
    ],
)
def test_against_a_baseline_only_what_it_takes_part_in(asked, against, expected) -> None:
    assert names(compare(**asked, models=BOTH, detectors=["typicality"], against=against)) == expected


def test_a_name_of_both_is_the_model_where_only_the_models_hold_it(asked, monkeypatch) -> None:
    monkeypatch.setattr("oodbench.comparing.MODELS", {"inflow": None})
    from oodbench.comparing import _baseline

    assert "inflow" in DETECTORS
    assert _baseline(["glow"], ["likelihood"], "inflow") == (["glow"], ["likelihood", "inflow"], {"detector": "inflow"})
    assert _baseline(["glow", "inflow"], None, "inflow") == (["glow", "inflow"], None, {"model": "inflow"})
    assert _baseline(["inflow"], ["inflow"], "inflow")[2] == {"detector": "inflow"}


def test_the_numbers_are_those_of_the_scores_that_run_writes(asked, weights: Path, tmp_path: Path) -> None:
    common = asked | {"out": ["digits+blur", "glyphs8"], "models": ["glow"], "detectors": ["likelihood", "typicality"]}
    records = run_records(**common, scores=tmp_path / "scores")
    rows = compare(**common)
    assert [row["out"] for row in rows] == common["out"]
    for row in rows:
        (file,) = (tmp_path / "scores").glob(f"*/*/{row['out']}.csv")
        scores = pd.read_csv(file)
        of_in = scores["set"] == "digits"
        wins = [Wins.of(scores[name][of_in], scores[name][~of_in]) for name in common["detectors"]]
        expected = difference(*wins)
        assert row["difference"]["value"] == pytest.approx(expected.value)
        assert row["p"] == pytest.approx(expected.p)
        assert (row["n_in"], row["n_out"]) == (LIMIT, LIMIT)
        for key, detector in zip(("a", "b"), common["detectors"], strict=True):
            (record,) = (r for r in records if (r["out"], r["detector"], r["group_size"]) == (row["out"], detector, 1))
            assert row[key]["auroc"] == pytest.approx(record["metrics"]["auroc"]["value"])
            assert row[key]["weights"] == record["provenance"]["weights"]
    assert [row["p_holm"] for row in rows] == holm([row["p"] for row in rows])


def test_what_run_computed_is_not_computed_again(asked, monkeypatch: pytest.MonkeyPatch) -> None:
    common = asked | {"models": ["glow"], "detectors": ["likelihood", "latent_likelihood"]}
    run_records(**common)

    def never(*arguments: Any, **keywords: Any) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(Glow, "statistics", never)
    assert len(compare(**common)) == 1


def test_a_monotone_score_has_no_difference_and_non_finite_ones_are_counted(asked) -> None:
    @register.detector("twin")
    class Twin(Detector):
        """The same order as total_variation's, but for some NaN"""

        needs = ("total_variation",)

        def score(self, columns: Columns) -> np.ndarray:
            score = -3 * columns["total_variation"].astype(np.float64)
            score[:broken] = np.nan
            return score

    common = asked | {"detectors": ["total_variation", "twin"]}
    broken = 0
    (row,) = compare(**common)
    assert (row["difference"]["value"], row["p"], row["bounded"]) == (0.0, 1.0, True)
    broken = 3
    (row,) = compare(**common)
    assert (row["a"]["nonfinite"], row["b"]["nonfinite"]) == (0, 6)
    assert row["difference"]["value"] > 0


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"detectors": ["typicality@10", "likelihood"]}, r"only single images are paired: name 'typicality'\."),
        ({"detectors": ["inflow_published", "likelihood"]}, "groups of images only"),
        ({"detectors": ["likelihood"], "against": "typicality@2"}, "name 'typicality'"),
        ({"detectors": ["likelihood"], "models": ["glow"]}, "two detectors of one model, or two models"),
        ({"detectors": ["total_variation"]}, "nothing to compare on digits"),
        ({"against": "likelyhood"}, "did you mean likelihood"),
        ({"against": "gloww"}, "did you mean glow"),
        ({"against": "gloww:likelihood"}, "did you mean glow"),
        ({"against": "glow:likelyhood"}, "did you mean likelihood"),
        ({"against": "glow:typicality@2"}, "name 'typicality'"),
        ({"against": "glow:total_variation"}, "name a detector that applies to glow, and others beside it"),
        ({"detectors": ["likelyhood"]}, "did you mean likelihood"),
        ({"out": ["nowhere"]}, "Unknown data set"),
    ],
)
def test_what_cannot_be_compared_is_told_before_anything_is_computed(asked, changed, words, monkeypatch) -> None:
    monkeypatch.setattr(Glow, "statistics", None)
    with pytest.raises(OodbenchError, match=words) as caught:
        compare(**(asked | changed))
    assert "\n" not in str(caught.value)


def test_a_single_name_stands_for_a_list(asked) -> None:
    rows = compare(**asked | {"in_": "digits", "out": "digits+blur"}, models="glow", detectors="likelihood",
                   against="typicality")  # fmt: skip
    assert names(rows) == [("glow likelihood", "glow typicality")]
