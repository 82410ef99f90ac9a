"""A suite's table: every number where it belongs, in every format."""

import csv
import io
import json
import re

import pytest

from oodbench.report import suite_table
from oodbench.suites import Pair, Published, Suite


@pytest.fixture
def suite():
    models = ("glow", "pixelcnn++")
    return Suite(
        name="s", title="A & B 2019", reference="After A and B.", models=models,
        detectors=("likelihood", "typicality@10"),
        pairs=(Pair("cifar10", ("svhn", "cifar100"), models),), limit=None, limits={},
        published=(
            Published("cifar10", "svhn", "glow", "likelihood", 0.064, "quoted_in X"),
            Published("cifar10", "svhn", "glow", "likelihood", 0.10, "Y"),
            Published("cifar10", "cifar100", "cnf", "likelihood", 0.5, "Y"),
            Published("cifar10", "nowhere", "glow", "likelihood", 0.7, "Z"),
        ),
    )  # fmt: skip


@pytest.fixture
def shown(make_record):
    exact = {"model": "pixelcnn++", "likelihood": "exact", "undertrained": True}
    return [
        make_record("likelihood", 0.083),
        make_record("typicality", 0.999, group_size=10),
        make_record("likelihood", 0.091, **exact, nonfinite=3, n_in=2000),
        make_record("likelihood", 0.53, out="cifar100", n_out=10_000),
        make_record("typicality", 0.61, out="cifar100", n_out=10_000, group_size=10),
        make_record("compressed_size", 0.908, model="none"),
    ]


def plain(text):
    """The text without what LaTeX and Markdown add to numbers and names."""
    text = re.sub(r"\\(scriptsize|textbf|emph|rightarrow|midrule|dagger|ddagger|S) ?", "", text)
    return re.sub(r"\*\*|[\\{}$^]", "", text)


@pytest.mark.parametrize("format", ["table", "markdown", "latex"])
def test_models_are_rows_where_they_are_not_fewer(suite, shown, format):
    lines = plain(suite_table(suite, shown, format)).splitlines()
    head = next(line for line in lines if "bits/dim in / out" in line)
    columns = [head.index(word) for word in ("bits/dim", "images in", "likelihood", "published", "typicality@10")]
    assert columns == sorted(columns)
    assert head.count("published") == 1  # nothing is published beside typicality@10
    glow = next(line for line in lines if line.lstrip("| ").startswith("glow "))
    for words in ("3.94 / 2.61", "0.083 [.073, .093]", "0.064 / 0.10", "(1, 2)", "0.999"):
        assert words in glow
    (exact,) = (line for line in lines if line.lstrip("| ").startswith("pixelcnn++"))  # only on svhn
    assert "2,000 / 1,264" in exact
    assert "0.091" in exact
    text = "\n".join(lines)
    for words in (
        "A & B 2019",
        "After A and B.",
        "glow: lower bound; pixelcnn++: exact",
        "Published: (1) quoted_in X; (2) Y",
    ):
        assert words in text
    assert "Published for other models: cifar10" in text
    assert "likelihood of cnf 0.50 (2)" in text
    assert "0.70" not in text  # of a pair that was not run
    assert ("Bold" in text) == (format != "table")


@pytest.mark.parametrize("format", ["table", "markdown", "latex"])
def test_detectors_are_rows_where_models_are_fewer(suite, shown, format):
    suite = Suite(**vars(suite) | {"detectors": (*suite.detectors, "a", "b", "c", "compressed_size")})
    lines = plain(suite_table(suite, shown, format)).splitlines()
    head = next(line for line in lines if "no model" in line)
    columns = [head.index(word) for word in ("glow", "published", "pixelcnn++", "no model")]
    assert columns == sorted(columns)
    svhn, cifar100 = (line for line in lines if line.lstrip("| ").startswith("likelihood "))
    for words in ("0.083", "0.064 / 0.10 (1, 2)", "0.091"):
        assert words in svhn
    assert "0.530" in cifar100
    assert "0.083" not in cifar100
    sizes = next(line for line in lines if "compressed_size" in line)
    assert "0.908" in sizes
    (bits, _) = (line for line in lines if "bits/dim in / out" in line)  # on svhn and on cifar100
    assert bits.count("3.94 / 2.61") == 2
    assert bits.count("§") == (format != "latex")  # the second is undertrained, there


def test_a_narrow_terminal_gets_the_columns_below_one_another(suite, shown, monkeypatch):
    wide = suite_table(suite, shown)
    monkeypatch.setenv("COLUMNS", "60")
    narrow = suite_table(suite, shown)
    assert max(map(len, narrow.splitlines())) <= 60 < max(map(len, wide.splitlines()))
    numbers = [sorted(re.findall(r"\d?\.\d{2,3}", text)) for text in (narrow, wide)]
    assert numbers[0] == numbers[1]


def test_latex_is_one_balanced_float_that_fits(suite, shown):
    text = suite_table(suite, shown, "latex")
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 1
    assert text.count("{") == text.count("}")
    assert text.count("$") % 2 == 0
    assert r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}" in text
    assert text.count(r"\multicolumn") == 2
    rows = [line for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    columns = re.search(r"\\begin\{tabular\}\{(l+)\}", text)[1]
    assert {row.replace(r"\&", "").count("&") + 1 for row in rows} == {len(columns)}
    assert r"$^{\ddagger 3}$" in text.replace(r"\dagger ", "")
    assert r"A \& B" in text


def test_csv_and_json_hold_the_published_numbers(suite, shown):
    records = json.loads(suite_table(suite, shown, "json"))
    assert records[0]["published"] == [
        {"auroc": 0.064, "source": "quoted_in X"},
        {"auroc": 0.10, "source": "Y"},
    ]
    assert [record["published"] for record in records[1:]] == [[]] * 5
    assert {key: value for key, value in records[0].items() if key != "published"} == shown[0]
    first, second, *_ = csv.DictReader(io.StringIO(suite_table(suite, shown, "csv")))
    assert (first["auroc"], first["published_auroc"], first["published_source"]) == (
        "0.083",
        "0.064; 0.1",
        "quoted_in X; Y",
    )
    assert second["published_auroc"] == ""
