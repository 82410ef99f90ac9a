"""Every format shows every number, its interval and its marks, and can be read back."""

import io
import json
import re

import pandas as pd
import pytest

from oodbench.errors import OodbenchError
from oodbench.models.base import Likelihood
from oodbench.report import FORMATS, table


def row(text, label):
    return next(line for line in text.splitlines() if line.startswith(label + " "))


@pytest.mark.parametrize("format", ["table", "markdown", "latex"])
def test_numbers_stand_with_their_intervals_and_marks(records, format):
    text = table(records, format)
    plain = re.sub(r"[*{}$^]|\\textbf|\\scriptsize ?|\\", "", text)
    assert "0.083 [.073, .093]" in plain
    assert "0.999 [.989, 1.000]" in plain
    assert "3.94 / 2.61" in plain
    assert "lower bound" in plain
    assert "exact" in plain
    assert "2,000 / 1,264" in plain  # the subset
    assert "typicality@10" in plain
    for mark, explained in [("†", "inversion"), ("‡3", "not finite"), ("pixelcnn++§", "undertrained")]:
        assert mark in plain.replace("ddagger", "‡").replace("dagger", "†").replace("S", "§")
        assert explained in plain
    assert "0.917" not in plain  # 1 - 0.083: an inversion is never flipped


def test_marks_appear_only_where_they_hold(make_record):
    text = table([make_record("likelihood", 0.7), make_record("typicality", 0.495)])
    assert "†" not in text  # 0.495 [.485, .505] is no inversion
    assert "‡" not in text
    assert "§" not in text
    assert "@" not in text
    assert text.endswith("\n")


def test_the_terminal_table_is_aligned(records):
    head, *rows = [
        line for line in table(records).split("\n\n")[0].splitlines() if "pixelcnn++" in line or "0." in line
    ]
    column = head.index("glow")
    assert all(line[column - 1] == " " and line[column] != " " for line in rows)


def test_groups_of_ten_are_no_subset_but_a_smaller_sample_is(make_record):
    records = [make_record(), make_record("typicality", group_size=10), make_record("slow", n_in=200, n_out=200)]
    text = table(records)
    assert "n =" not in row(text, "typicality@10")
    assert "n = 200 / 200" in row(text, "slow")


def test_markdown_tables_have_one_width(records):
    for block in table(records, "markdown").split("###")[1:]:
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1


def test_markdown_names_cannot_break_the_table(make_record):
    text = table([make_record("a|b*c", out="npz:/x|y")], "markdown")
    assert r"| a\|b\*c |" in text


@pytest.mark.parametrize("format", ["markdown", "latex"])
def test_bold_is_the_best_single_image_score_controls_included(records, format):
    text = table(records, format).split("cifar100")[0]
    bold = re.findall(r"\*\*([\d.]+)\*\*|\\textbf\{([\d.]+)\}", text)
    assert {"".join(found) for found in bold} == {"0.908"}  # the control beats both models, and no group counts
    without = [record for record in records if record["model"] != "none" and record["out"] == "svhn"]
    bold = re.findall(r"\*\*([\d.]+)\*\*|\\textbf\{([\d.]+)\}", table(without, format))
    assert {"".join(found) for found in bold} == {"0.853", "0.801"}


def test_the_best_fpr95_is_the_smallest(make_record):
    text = table([make_record("likelihood", 0.6), make_record("typicality", 0.9)], "markdown", "fpr95")
    assert re.findall(r"\*\*([\d.]+)\*\*", text) == ["0.100"]
    assert "smaller is better" in text


def test_latex_is_booktabs_with_balanced_groups_and_equal_rows(records):
    text = table(records, "latex")
    for command in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert command in text
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 2
    assert text.count("{") == text.count("}")
    for columns, body in re.findall(r"\\begin\{tabular\}\{(l+)\}(.*?)\\end\{tabular\}", text, flags=re.DOTALL):
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert len(rows) >= 4
        for line in rows:
            spanned = sum(int(n) - 1 for n in re.findall(r"\\multicolumn\{(\d+)\}", line))
            assert line.count(" & ") + 1 + spanned == len(columns)


def test_latex_escapes_what_users_may_name_things(make_record):
    text = table([make_record(r"my_score#1 50% {a}\b^c~d&e$", out="folder:/x_y")], "latex")
    assert (
        r"my\_score\#1 50\% \{a\}\textbackslash{}b\textasciicircum{}c\textasciitilde{}d\&e\$ & " in text
    )  # every special character of LaTeX
    assert r"folder:/x\_y" in text
    assert r"\label{tab:cifar10-folder-x-y-auroc}" in text


def test_csv_holds_every_metric_of_every_record(records):
    frame = pd.read_csv(io.StringIO(table(records, "csv")))
    assert len(frame) == len(records)
    for row, record in zip(frame.itertuples(), records, strict=True):
        assert (row.out, row.model, row.detector, row.group_size) == (
            record["out"],
            record["model"],
            record["detector"],
            record["group_size"],
        )
        for metric, numbers in record["metrics"].items():
            assert getattr(row, metric) == numbers["value"]
            assert getattr(row, f"{metric}_low") == numbers["low"]
            assert getattr(row, f"{metric}_high") == numbers["high"]
    assert frame["bits_per_dim_in"].isna().tolist() == [record["model"] == "none" for record in records]


def test_json_is_the_flat_list_in_strict_json(records):
    records[0]["seconds"] = float("nan")
    parsed = json.loads(table(records, "json"), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert parsed[0]["seconds"] is None
    assert parsed[1:] == records[1:]


def test_seeds_are_averaged_and_the_interval_holds_them_all(make_record):
    text = table([make_record(value=0.70, seed=0), make_record(value=0.72, seed=1)])
    assert "0.710 [.690, .730]" in text
    assert "seeds 0, 1" in text


def test_two_models_of_one_name_are_told_apart(make_record):
    other = make_record(value=0.9, preset="paper", provenance={"weights": "12345678" * 8})
    text = table([make_record(value=0.7), other])
    assert "glow paper 12345678" in text
    assert "glow small abcdef01" in text


def test_importance_draws_are_shown(make_record):
    assert "estimate, K = 64" in table([make_record(model="vae", likelihood="estimate", draws=64)])


def test_a_metric_that_is_missing_leaves_a_gap(make_record):
    empty = make_record("broken", metrics={"auroc": {"value": None, "low": None, "high": None}})
    text = table([make_record(), empty])
    assert re.search(r"^broken +-$", text, flags=re.MULTILINE)


def test_the_likelihood_comes_first_and_the_order_of_records_does_not_matter(records):
    first_pair = [record for record in records if record["out"] == "svhn"]
    assert table(first_pair) == table(first_pair[::-1])
    labels = [line.split()[0] for line in table(first_pair).splitlines() if " 0." in line and "interval" not in line]
    assert labels == ["likelihood", "input_complexity", "typicality", "typicality@10", "compressed_size"]


def test_controls_alone_make_a_table(records):
    for format in FORMATS:
        assert "compressed" in table([record for record in records if record["model"] == "none"], format)


def test_unknown_formats_and_metrics_and_no_records_are_told_so(records):
    with pytest.raises(OodbenchError, match="html"):
        table(records, "html")
    with pytest.raises(OodbenchError, match="accuracy"):
        table(records, metric="accuracy")
    with pytest.raises(OodbenchError, match="oodbench run"):
        table([])
    assert table([], "json") == "[]\n"
    assert table([], "csv").startswith("schema,in,out")


def test_models_of_two_in_distribution_sets_keep_their_plain_name(make_record):
    """Each set has weights of its own: only two models of one name on one pair must be told apart."""
    records = [make_record(provenance={"weights": letter * 64}, **{"in": letter}) for letter in "ab"]
    assert "aaaaaaaa" not in table(records)


def test_other_images_of_the_same_name_are_another_block_and_not_averaged(make_record):
    other = make_record(value=0.9, provenance={"data": {"in": "1" * 64, "out": "3" * 64}})
    text = table([make_record(value=0.7), other])
    assert "0.700" in text
    assert "0.900" in text
    assert "0.800" not in text
    assert text.count("svhn@") == 2


def test_csv_holds_what_an_image_cost(make_record):
    assert pd.read_csv(io.StringIO(table([make_record()], "csv")))["seconds_per_image"].tolist() == [0.001]


@pytest.mark.parametrize("format", ["table", "markdown", "latex"])
def test_with_models_as_rows_the_same_numbers_stand_elsewhere(records, format):
    def numbers(text):
        return sorted(re.findall(r"\d\.\d{3}", text))

    across, down = (table(records, format, rows=rows) for rows in ("detectors", "models"))
    assert numbers(across) == numbers(down)
    start = "| " if format == "markdown" else ""
    line = next(line for line in down.splitlines() if line.startswith(f"{start}glow "))
    assert "lower bound" in line
    assert "3.94 / 2.61" in line
    assert "0.083" in line
    assert "0.999" in line
    head = next(line for line in down.splitlines() if "bits/dim" in line)
    assert "likelihood" in head
    assert "typicality@10" in head


def test_many_models_become_rows_by_themselves(make_record):
    few, many = ([make_record(model=f"m{i}", value=0.7) for i in range(n)] for n in (6, 7))
    assert row(table(few), "likelihood")
    assert row(table(many), "m6")
    assert table(many, rows="detectors") != table(many) == table(many, rows="models")
    with pytest.raises(OodbenchError, match="rows"):
        table(few, rows="columns")


def test_a_model_of_binarised_images_is_shown_without_bits_and_not_ranked(make_record):
    of_bits = {"model": "vae", "likelihood": Likelihood.BINARISED.value, "bits_per_dim": None}
    records = [make_record("likelihood", 0.7), make_record("likelihood", 0.96, **of_bits)]
    text = table(records, "markdown")
    assert row(text, "| log-likelihood").split("|")[2:4] == [" lower bound ", " binarised "]
    assert row(text, "| bits/dim in / out").split("|")[2:4] == [" 3.94 / 2.61 ", " - "]
    assert "**0.700**" in text
    assert "**0.960**" not in text
    assert "Of binarised images" in text
    assert "manifold" not in text
    assert "binarised" not in table(records[:1], "markdown")


@pytest.mark.parametrize("format", ["table", "markdown", "latex"])
def test_a_density_on_a_manifold_is_shown_without_bits_and_not_ranked(make_record, format):
    on_manifold = {
        "model": "rectangular",
        "likelihood": Likelihood.MANIFOLD.value,
        "remark": "ambient",
        "bits_per_dim": None,
    }
    records = [
        make_record("likelihood", 0.7),
        make_record("likelihood", 0.96, **on_manifold),
        make_record("compressed_size", 0.95, model="none"),
    ]
    text = table(records, format)
    assert "manifold, ambient" in text
    assert "0.960" in text
    assert "3.94 / 2.61" in text
    assert "nan" not in text.lower()
    assert "has no bits/dim and is not ranked" in text
    if format == "markdown":
        assert row(text, "| bits/dim in / out").split("|")[2:4] == [" 3.94 / 2.61 ", " - "]
        assert "**0.960**" not in text
        assert "**0.950**" in text  # though the manifold's 0.960 is larger: it beats glow's column
        assert "**" not in table(records[1:2], format).split("\n\n")[1]
    assert "is not ranked" not in table(records[:1], format)
