"""Every format shows every number, its interval and its marks, and can be read back."""

import io
import json
import re

import pandas as pd
import pytest

from oodbench.errors import OodbenchError
from oodbench.models.base import Likelihood
from oodbench.report import FORMATS, grid, table
from oodbench.report import published as published_module
from oodbench.report.published import Figure


def row(text, label):
    return next(line for line in text.splitlines() if line.startswith(label + " "))


@pytest.mark.parametrize("format", ["table", "markdown", "latex"])
def test_numbers_stand_with_their_intervals_and_marks(records, format):
    text = table(records, format)
    plain = re.sub(r"[*{}$^]|\\textbf|\\tiny ?|\\", "", text)
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


def test_seeds_that_saw_fewer_images_are_not_averaged_with_those_that_saw_more(make_record):
    text = table([make_record(value=0.70, seed=0), make_record(value=0.90, seed=1, n_in=20, n_out=20)])
    assert "0.700 [.690, .710]" in text
    assert "seeds 0, 1" not in text
    several = [trained(make_record, seed, 0.6 + 0.1 * seed, n_in=500 * (1 + (seed < 2))) for seed in range(3)]
    assert "0.650 ± .071" in table(several)


def test_networks_in_bfloat16_are_named(make_record):
    assert "lower bound, bfloat16" in table([make_record(provenance={"precision": "bfloat16"})])
    assert "bfloat16" not in table([make_record(provenance={"precision": "float32"})])


def test_another_preset_than_the_usual_one_is_named(make_record):
    assert "glow tiny" in table([make_record(preset="tiny")])
    assert "small" not in table([make_record()])


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


def trained(make_record, seed, value, **changed):
    return make_record(value=value, training_seed=seed, provenance={"weights": f"{seed}" * 64}, **changed)


@pytest.mark.parametrize("format", ["table", "markdown", "latex"])
def test_training_seeds_are_one_column_with_their_spread_beside_the_sampling_interval(make_record, format):
    values = {0: 0.70, 1: 0.72, 2: 0.77}
    bits = {0: 3.0, 1: 3.3, 2: 3.6}
    text = table(
        [
            trained(make_record, seed, value, half=0.02 * (1 + seed), bits_per_dim={"in": bits[seed], "out": 2.61})
            for seed, value in values.items()
        ],
        format,
    )
    text = text.replace(r"$\pm$", "±").replace(r"{\scriptsize ", "").replace("**", "").replace(r"\textbf{", "")
    assert "0.730 ± .036" in text  # the standard deviation with n - 1
    assert "[.690, .770]" in text  # the mean interval, of half width 0.04, and not from the lowest to the highest end
    assert "3.30 / 2.61" in text
    assert "trainings with the seeds 0, 1, 2" in text
    assert "lowest to the highest" not in text


def test_only_weights_that_differ_by_their_seed_are_one_model(make_record):
    first = trained(make_record, 0, 0.7)
    apart = {
        "another preset": trained(make_record, 1, 0.9, preset="paper"),
        "an unknown seed": make_record(value=0.9, provenance={"weights": "5" * 64}),
        "the same seed twice": make_record(value=0.9, training_seed=0, provenance={"weights": "5" * 64}),
    }
    for other in apart.values():
        text = table([first, other])
        assert "0.700 [" in text
        assert "0.900 [" in text
        assert "±" not in text
    assert "0.800 ± .141" in table([first, trained(make_record, 1, 0.9)])


def test_a_score_of_fewer_trainings_says_so(make_record):
    records = [trained(make_record, seed, 0.7) for seed in (0, 1, 2)]
    records += [trained(make_record, seed, 0.8 + seed / 10, detector="annulus") for seed in (0, 1)]
    text = table([*records, trained(make_record, 2, 0.9, detector="volume")])
    assert row(text, "likelihood").endswith("[.690, .710]")
    assert row(text, "annulus").endswith("2 trained")
    assert "0.850 ± .071" in row(text, "annulus")
    assert "±" not in row(text, "volume")
    assert row(text, "volume").endswith("1 trained")


def test_the_inversion_of_a_mean_is_that_of_the_mean_interval(make_record):
    def marked(*values):
        text = table([trained(make_record, seed, value) for seed, value in enumerate(values)])
        return "†" in text

    assert marked(0.3, 0.4)
    assert marked(0.2, 0.6)  # a mean of 0.41 at most
    assert not marked(0.3, 0.9)


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
    line = "".join(line for line in down.splitlines() if line.startswith(f"{start}glow "))  # in LaTeX a line a part
    assert "lower bound" in line
    assert "3.94 / 2.61" in line
    assert "0.083" in line
    assert "0.999" in line
    head = "".join(line for line in down.splitlines() if line.startswith((start or " ", "&")) and "glow" not in line)
    assert "bits/dim" in head
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


def tabulars(text):
    """A list of (head, {label: cells}) a part."""
    parts = []
    for letters, body in re.findall(r"\\begin\{tabular\}\{(l+)\}(.*?)\\end\{tabular\}", text, flags=re.DOTALL):
        head, *rows = [line.removesuffix(r" \\").split(" & ") for line in body.splitlines() if " & " in line]
        full = [line for line in (head, *rows) if r"\multicolumn" not in line[-1]]
        assert {len(line) for line in full} == {len(letters)}
        parts.append((head[1:], {line[0]: line[1:] for line in rows}))
    return parts


@pytest.mark.parametrize("rows", ["models", "detectors"])
@pytest.mark.parametrize("count", [1, 5, 6, 11])
def test_latex_stacks_columns_that_would_not_fit_beside_one_another(make_record, count, rows):
    names = [f"{'d' if rows == 'models' else 'm'}{i:02}" for i in range(count)]
    other = "model" if rows == "models" else "detector"
    values = {(name, label): (7 * i + j) / 100 for i, name in enumerate(names) for j, label in enumerate("abc")}
    records = [
        make_record(value=value, **{"model": name, "detector": name} | {other: label})
        for (name, label), value in values.items()
    ]
    text = table([*records, make_record("control", model="none")], "latex", rows=rows)
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == text.count(r"\caption") == 1
    parts = tabulars(text)
    assert len(parts) == {1: 1, 5: 1 + (rows == "models"), 6: 2, 11: 3}[count]
    facts = ["log-likelihood", "bits/dim in / out"] if rows == "models" else []
    assert [name for head, _ in parts for name in head] == [*facts, *names]  # each once, in order
    for head, body in parts:
        assert [label for label in body if len(label) == 1] == ["a", "b", "c"]
        for label in "abc":
            shown = [cell for cell, name in zip(body[label], head, strict=True) if name in names]
            assert [float(cell.removeprefix(r"\textbf{")[:5]) for cell in shown] == [
                values[name, label] for name in head if name in names
            ]
    assert ["control" in body for _, body in parts] == [False] * (len(parts) - 1) + [True]


# Widths of Computer Modern at 7 pt, in pt, as its metrics have them (cmr7.tfm); of what the tables below are made of.
CMR7 = {
    2.263: ".,:[]il", 2.694: "- ", 3.124: "()rt", 3.167: "s", 2.479: "fj", 3.555: "cez", 3.770: "?",
    3.985: "0123456789ao/*g", 4.200: "kqvxy", 4.416: "bdhnpuS", 5.707: "wT", 6.138: "+@=_O", 6.117: "K", 6.568: "m",
    7.193: "M",
}  # fmt: skip
WIDTH = {character: width for width, characters in CMR7.items() for character in characters}


def points(cell):
    """How wide LaTeX sets a cell in \\scriptsize, with 5 pt type in \\tiny and raised marks."""
    small = "".join(re.findall(r"\{\\tiny ([^}]*)\}", cell))
    rest = re.sub(r"\{\\tiny [^}]*\}|\$\^\{[^$]*\}\$|\\textbf", "", cell).replace("\\_", "_")
    regular = sum(WIDTH[character] for character in rest if character not in "{}\\")
    bold = 1.16 if r"\textbf" in cell else 1
    return regular * bold + 3.402 / 3.985 * sum(WIDTH[c] for c in small) + 3.84 * len(re.findall(r"\\dagger|\\S", cell))


def many(make_record):
    """More models and detectors, with longer facts, marks and subsets, than stand on one page."""
    return [
        make_record(
            detector,
            (7 * i + 11 * j) % 100 / 100,
            model=f"model{i}@long_name+",
            draws=64,
            undertrained=i % 2 == 0,
            **{"n_in": 1000, "n_out": 1000} if detector == "kl" and i == 3 else {},
        )
        for i in range(40)
        for j, detector in enumerate(["likelihood", "kl", "lpath_mahalanobis", *(f"score_{k}" for k in range(12))])
        if (i + j) % 3
    ] + [make_record("total_variation", model="none")]


@pytest.mark.parametrize("rows", ["models", "detectors"])
def test_latex_fits_the_width_and_the_height_of_a_page(make_record, rows):
    text = table(many(make_record), "latex", rows=rows)
    for head, body in tabulars(text):
        lines = [["", *head], *([label, *cells] for label, cells in body.items())]
        columns = zip(*(line for line in lines if r"\multicolumn" not in line[-1]), strict=True)
        wide = sum(max(map(points, column)) + 4 for column in columns)  # \tabcolsep on either side
        assert wide <= 397  # 5.5 in
        assert wide > 120  # and space is not wasted
    floats = text.split(r"\begin{table}")[1:]
    assert len(floats) > 1
    for place, one in enumerate(floats):
        caption = one[one.index(r"\caption") :].splitlines()[0]
        lines = len(re.findall(r"\\\\$", one, flags=re.MULTILINE)) + len(re.findall(r"\\toprule", one))
        assert 8 * lines + len(caption) / 397 * 5 * 12 < 650  # pt: lines of 8, a caption's of 12, on 9 in
        assert one.count(r"\label") == (place == 0)
        assert (r"\addtocounter{table}{-1}" in one, "continued" in caption) == (place > 0, place > 0)
    cells = re.findall(r"(?:\d\.\d{3}\}? \{\\tiny)", text)
    assert len(cells) == len(many(make_record))  # every number once


@pytest.mark.parametrize("rows", ["models", "detectors"])
@pytest.mark.parametrize("room", [80, 120, 200])
def test_the_terminal_table_is_no_wider_than_the_terminal(make_record, monkeypatch, rows, room):
    records = many(make_record)
    monkeypatch.setenv("COLUMNS", "100000")
    unfolded = table(records, rows=rows)
    monkeypatch.setenv("COLUMNS", str(room))
    text = table(records, rows=rows)
    assert max(map(len, text.splitlines())) <= room
    assert max(map(len, unfolded.splitlines())) > 200
    found = [sorted(re.findall(r"\d\.\d{3} \[\S+ \S+\]†?", one)) for one in (text, unfolded)]
    assert found[0] == found[1]
    head = re.split(r"─\n(?= +)", text)
    of_model = [re.findall(r"^model7@long_name\+ ", part, flags=re.MULTILINE) for part in head]
    assert max(map(len, of_model)) == (rows == "models")  # a line a part, with its label


FIGURES = [
    Figure("likelihood", 1, "diffusion", 0.091, "A & B 2024"),
    Figure("typicality", 1, "glow", 0.87, "C 2023"),
    Figure("typicality", 10, "glow", 0.99, "A & B 2024"),
    Figure("typicality", 5, "glow", 0.123, "D"),  # there is no such row
    Figure("compressed_size", 1, "none", 0.456, "D"),
    Figure("dose", 1, "glow", 0.789, "D"),
]


@pytest.fixture
def published(monkeypatch):
    monkeypatch.setattr(grid, "figures", lambda source, out: FIGURES if (source, out) == ("cifar10", "svhn") else [])


@pytest.mark.parametrize("rows", ["detectors", "models"])
@pytest.mark.parametrize("format", ["table", "markdown", "latex"])
def test_published_figures_stand_beside_ours_marked_and_with_their_source(records, published, format, rows):
    plain, text = (table(records, format, rows=rows, published=published) for published in (False, True))
    assert "ublished" not in plain
    assert "0.091 (1)" in text
    assert "0.870 (2)" in text
    assert "0.990 (1)" in text
    assert "for others' weights and images" in text
    assert "(1) A & B 2024. (2) C 2023." in text.replace(r"\&", "&")
    assert not any(number in text for number in ("0.123", "0.456", "0.789"))
    assert "glow (published)" in text if rows == "models" else "glow 0.870 (2)" in text
    # Ours are as they were: nothing of others is averaged in, bold or an inversion.
    ours = re.sub(r"0\.(091|870|990) \(", "", text)
    assert sorted(re.findall(r"\d\.\d{3}", ours)) == sorted(re.findall(r"\d\.\d{3}", plain))
    assert text.count("†") == plain.count("†")
    assert text.count("**") == plain.count("**")
    assert text.count(r"\textbf") == plain.count(r"\textbf")


def test_published_figures_stand_in_the_rows_of_their_detectors(records, published):
    text = table(records, published=True)
    assert row(text, "likelihood").endswith("diffusion 0.091 (1)")
    assert row(text, "typicality").endswith("glow 0.870 (2)")
    assert row(text, "typicality@10").endswith("glow 0.990 (1)")
    down = table(records, rows="models", published=True).splitlines()
    head = next(line for line in down if "bits/dim" in line)
    glow, diffusion = (next(line for line in down if line.startswith(f"{name} (pub")) for name in ("glow", "diffusion"))
    assert glow.index("0.870") == head.index("typicality ")
    assert glow.index("0.990") == head.index("typicality@10")
    assert diffusion.index("0.091") == head.index("  likelihood") + 2


def test_a_latex_float_numbers_its_own_sources_from_one(make_record, monkeypatch):
    of_pair = {"svhn": FIGURES[:1], "cifar100": FIGURES[1:2]}
    monkeypatch.setattr(grid, "figures", lambda source, out: of_pair[out])
    records = [make_record(detector, out=out) for out in of_pair for detector in ("likelihood", "typicality")]
    first, second = table(records, "latex", published=True).split(r"\begin{table}")[1:]
    assert r"(1) A \& B 2024." in first
    assert "diffusion 0.091 (1)" in first
    assert "(1) C 2023." in second
    assert "glow 0.870 (1)" in second
    assert "glow 0.870 (2)" in table(records, published=True)  # where one list of sources stands below all


def test_published_figures_are_aurocs_and_in_no_record(records, published):
    assert table(records, metric="fpr95", published=True) == table(records, metric="fpr95")
    for format in ("csv", "json"):
        assert table(records, format, published=True) == table(records, format)


def test_the_published_figures_that_we_ship_are_probabilities_with_a_source(make_record):
    shipped = [figure for pair in published_module._all().values() for figure in pair]
    assert len(shipped) > 70
    for figure in shipped:
        assert 0 <= figure.auroc <= 1
        assert figure.group_size >= 1
        assert figure.source
        assert figure.model
    found = {(f.detector, f.model): f.auroc for f in published_module.figures("cifar10", "svhn") if f.group_size == 1}
    assert found["likelihood", "cnf"] == 0.105
    assert published_module.figures("svhn", "nothing") == []
    assert "glow 0.870 (" in table([make_record("typicality", 0.8)], published=True)
