"""Tables of paired tests: what they must say, in every format."""

import csv
import io
import json

import pytest

from oodbench.errors import OodbenchError
from oodbench.evaluation import SMALLEST_P
from oodbench.report import comparison_table


def side(detector, auroc, **changed):
    return {
        "model": "glow", "detector": detector, "likelihood": "lower_bound", "weights": "ab", "auroc": auroc,
        "nonfinite": 0,
    } | changed  # fmt: skip


def test(a, b, p, p_holm, **changed):
    value = a["auroc"] - b["auroc"]
    return {
        "schema": 1, "in": "cifar10", "out": "svhn", "seed": 0, "n_in": 9977, "n_out": 1264, "a": a, "b": b,
        "difference": {"value": value, "low": value - 0.012, "high": value + 0.012}, "z": 1.0, "bounded": False, "p": p,
        "p_holm": p_holm, "comparisons": 3,
    } | changed  # fmt: skip


test.__test__ = False  # type: ignore[attr-defined]

LIKELIHOOD, TYPICALITY = side("likelihood", 0.096), side("typicality", 0.821)
SIZE = side("compressed_size", 0.921, model="none", likelihood=None, weights=None)
ROWS = [
    test(LIKELIHOOD, TYPICALITY, SMALLEST_P, 3 * SMALLEST_P),
    test(TYPICALITY, SIZE, 0.0000123, 0.0000246),
    test(TYPICALITY, TYPICALITY | {"model": "vae", "nonfinite": 2}, 1.0, 1.0, bounded=True, z=None, out="cifar100"),
]


@pytest.mark.parametrize("format", ["table", "markdown", "latex"])
def test_readable_formats_hold_every_number_once_and_explain_every_mark(format):
    text = comparison_table(ROWS, format)
    plain = text.replace("$-$", "-").replace(r"\textless{}", "<").replace("\\", "").replace("{scriptsize ", "")
    line = next(line for line in plain.splitlines() if "typicality" in line and "likelihood" in line)
    for words in ("glow likelihood", "0.096", "0.821", "-0.725", "[-.737, -.713]", "<1e-300", "<3e-300"):
        assert words in line
    line = next(line for line in plain.splitlines() if "compressed" in line)
    assert "glow compressed" not in line
    assert "1.2e-05" in line
    assert "2.5e-05" in line
    line = next(line for line in plain.splitlines() if "vae typicality" in line)
    assert "+0.000" in line
    assert "1.000" in line
    assert "9,977 / 1,264 images" in plain
    assert plain.count("cifar10 ") == 2
    for words in ("corrected for all 3 tests", "below 0.05 after", "= no variance", "2", "k scores are not finite"):
        assert words in plain
    few = comparison_table([test(LIKELIHOOD, TYPICALITY, 0.5, 0.5)], format)
    assert not any(words in few for words in ("after the correction", "no variance", "not finite", "manifold"))
    assert "nothing to correct" in few


@pytest.mark.parametrize("room", [65, 80])
def test_a_narrow_terminal_gets_both_names_beside_every_number(monkeypatch, room):
    wide = comparison_table(ROWS)
    monkeypatch.setenv("COLUMNS", str(room))
    lines = comparison_table(ROWS).splitlines()
    assert max(map(len, lines)) <= room
    of_first = [line.split() for line in lines if line.startswith("glow likelihood")]
    assert len(of_first) > 1
    assert all(words[:4] == ["glow", "likelihood", "glow", "typicality"] for words in of_first)
    (unfolded,) = (line.split() for line in wide.splitlines() if line.startswith("glow likelihood"))
    assert [word for words in of_first for word in words[4:]] == unfolded[4:]


def test_latex_balances_and_escapes():
    text = comparison_table(ROWS, "latex")
    assert text.count("{") == text.count("}")
    assert r"compressed\_size" in text
    assert text.count(r"\midrule") == 2
    assert all(line.count("&") == 6 for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line)
    assert r"\textwidth" in text


def test_latex_goes_on_in_another_float_where_a_page_ends():
    rows = [test(side(f"a{i}", 0.5), side(f"b{i}", 0.5), 0.5, 0.5, out=f"o{i // 70}") for i in range(130)]
    first, *others = comparison_table(rows, "latex").split(r"\begin{table}")[1:]
    floats = [first, *others]
    assert len(floats) == 4
    assert all(one.count(r"\\" + "\n") <= 51 for one in floats)  # 9.5 pt each
    assert [r"\label" in one for one in floats] == [True, False, False, False]
    assert all(r"\addtocounter{table}{-1}" in one and "continued." in one for one in others)
    assert all(sum(f" a{i} " in one.replace("glow", "") for one in floats) == 1 for i in range(130))
    assert [[f"o{k}" in one for k in range(2)] for one in floats] == [[True, False]] * 2 + [[False, True]] * 2


def test_a_manifold_between_two_models_is_told():
    manifold = side("typicality", 0.9, model="rectangular", likelihood="manifold")
    assert "is no ranking" in comparison_table([test(TYPICALITY, manifold, 0.5, 0.5)])
    assert "is no ranking" not in comparison_table([test(manifold, manifold, 0.5, 0.5)])


def test_csv_and_json_hold_everything():
    assert json.loads(comparison_table(ROWS, "json")) == ROWS
    first, *_, last = csv.DictReader(io.StringIO(comparison_table(ROWS, "csv")))
    assert (first["detector_a"], first["detector_b"], float(first["p_holm"])) == ("likelihood", "typicality", 3e-300)
    assert float(first["difference_low"]) == pytest.approx(-0.737)
    assert (last["bounded"], last["z"], last["nonfinite_b"], last["model_b"]) == ("True", "", "2", "vae")


def test_an_unknown_format_and_nothing_are_told():
    with pytest.raises(OodbenchError, match="html"):
        comparison_table(ROWS, "html")
    with pytest.raises(OodbenchError, match="no comparisons"):
        comparison_table([])
    assert comparison_table([], "json") == "[]\n"
