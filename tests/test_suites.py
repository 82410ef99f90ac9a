"""Suites: what a file may say, what is told when it says something else, and what running one comes to."""

from pathlib import Path
from typing import Any

import pytest
from random_weights import save_random

from oodbench.benchmark import run_records
from oodbench.errors import OodbenchError
from oodbench.models.flows.glow import Glow
from oodbench.pretrained import available_models
from oodbench.records import read_records
from oodbench.suites import Published, available_suites, load_suite
from oodbench.suites.running import run_suite

LIMIT = 60

HEAD = """
title = "A paper"
models = ["glow", "pixelcnn"]
detectors = ["likelihood", "typicality@10", "total_variation", "annulus"]
"""
PAIRS = """
[[pairs]]
in = "digits"
out = ["digits+blur", "glyphs8"]
"""
PUBLISHED = """
[[published]]
in = "digits"
out = "glyphs8"
model = "biva"
detector = "likelihood"
auroc = 1
source = "a paper"
"""


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str) -> str:
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return str(path)

    return write


def test_a_file_is_read_as_it_says(write) -> None:
    suite = load_suite(write(HEAD + "[limits]\npixelcnn = 30\n" + PAIRS + PUBLISHED))
    assert (suite.name, suite.title, suite.reference) == ("mine", "A paper", "")
    assert [(pair.in_, pair.out, pair.models) for pair in suite.pairs] == [
        ("digits", ("digits+blur", "glyphs8"), ("glow", "pixelcnn"))
    ]
    assert (suite.limit_of("glow"), suite.limit_of("pixelcnn")) == (None, 30)
    assert suite.published == (Published("digits", "glyphs8", "biva", "likelihood", 1.0, "a paper"),)
    assert load_suite(write(HEAD + "limit = 7\n" + PAIRS)).limit_of("glow") == 7


WRONG = {
    "bad TOML": ("title = ", "is no TOML"),
    "an unknown key": (HEAD + "detecters = []\n" + PAIRS, "did you mean detectors"),
    "an unknown key of a pair": (HEAD + PAIRS + "aut = 1\n", r"in \[\[pairs\]\], has an unknown key 'aut'"),
    "no pairs": (HEAD, "lacks pairs"),
    "an empty list of pairs": (HEAD + "pairs = []\n", "has no pairs"),
    "pairs that are names": (HEAD + 'pairs = ["svhn"]\n', "where a table belongs"),
    "a text for a list": (HEAD.replace('["glow", "pixelcnn"]', '"glow"') + PAIRS, "must be a list"),
    "no models": (HEAD.replace('["glow", "pixelcnn"]', "[]") + PAIRS, "at least one name"),
    "a pair with itself": (HEAD + PAIRS.replace("glyphs8", "digits"), "against itself"),
    "a pair's model that is no model of the suite": (HEAD + PAIRS + 'models = ["gloww"]\n', "did you mean glow"),
    "a limit of nothing": (HEAD + "limit = 0\n" + PAIRS, "at least 1"),
    "a limit that is true": (HEAD + "[limits]\nglow = true\n" + PAIRS, "limit of True"),
    "a limit of no model": (HEAD + "[limits]\npixelcn = 3\n" + PAIRS, "did you mean pixelcnn"),
    "an AUROC in percent": (HEAD + PAIRS + PUBLISHED.replace("= 1", "= 97.1"), "between 0 and 1"),
    "a published number of no pair": (HEAD + PAIRS + PUBLISHED.replace("glyphs8", "svhn"), "of no pair: digits → svhn"),
    "a published number without a source": (HEAD + PAIRS + PUBLISHED.replace("source", "sauce"), "did you mean source"),
    "a published detector that is not run": (HEAD + PAIRS + PUBLISHED.replace('"likelihood"', '"waic"'), "'waic'"),
    "a group of one": (HEAD.replace("@10", "@1") + PAIRS, "NAME@b"),
}


@pytest.mark.parametrize(("text", "words"), WRONG.values(), ids=WRONG)
def test_a_wrong_file_is_told_in_one_sentence(write, text: str, words: str) -> None:
    with pytest.raises(OodbenchError, match=words) as caught:
        load_suite(write(text))
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith((".", "?"))


def test_unknown_suites_are_told_with_the_near_ones(tmp_path: Path) -> None:
    with pytest.raises(OodbenchError, match="did you mean nalisnick2019"):
        load_suite("nalisnick")
    with pytest.raises(OodbenchError, match="cannot be read"):
        load_suite(str(tmp_path / "nowhere.toml"))


def test_the_shipped_suites_are_sound_and_their_published_numbers_have_sources() -> None:
    suites = {suite.name: suite for suite in available_suites()}
    assert set(suites) == {"glazunov2022", "nalisnick2019"}
    assert all(one.source for suite in suites.values() for one in suite.published)
    for suite in suites.values():
        suite.check_names()
        for pair in suite.pairs:  # this checkout holds the weights
            assert set(pair.models) <= set(available_models(pair.in_)), suite.name


def test_a_part_of_a_suite(write) -> None:
    suite = load_suite(write(HEAD + PAIRS + PAIRS.replace('"digits"', '"photos"') + 'models = ["pixelcnn"]\n'))
    part = suite.only(["digits"], ["glow"])
    assert [(pair.in_, pair.models) for pair in part.pairs] == [("digits", ("glow",))]
    assert [(pair.in_, pair.models) for pair in suite.only(None, ["glow"]).pairs] == [("digits", ("glow",))]
    with pytest.raises(OodbenchError, match="no in-distribution set 'digit': did you mean digits"):
        suite.only(["digit"], None)
    with pytest.raises(OodbenchError, match="no model 'glo': did you mean glow"):
        suite.only(None, ["glo"])
    with pytest.raises(OodbenchError, match="no pair of photos with glow"):
        suite.only(["photos"], ["glow"])


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    for model in ("glow", "pixelcnn"):
        save_random(folder, model)
    return folder


@pytest.fixture
def options(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("OODBENCH_CACHE", str(tmp_path / "cache"))
    return {"weights": weights, "progress": False, "results": tmp_path / "results"}


def test_a_suite_gives_the_records_of_run_in_its_order(write, options, tmp_path: Path, capsys) -> None:
    text = HEAD.replace("total_variation", "inflow") + "limit = 60\n[limits]\npixelcnn = 30\n" + PAIRS
    _, records = run_suite(write(text), **options)
    facts = [(r["out"], r["model"], r["detector"], r["group_size"], r["n_in"]) for r in records]
    assert facts == [
        (out, *rest)
        for out in ("digits+blur", "glyphs8")
        for rest in (
            ("glow", "likelihood", 1, 60),
            ("glow", "typicality", 10, 6),
            ("glow", "annulus", 1, 60),  # of latents, which the PixelCNN has not: no error
            ("pixelcnn", "likelihood", 1, 30),
            ("pixelcnn", "typicality", 10, 3),
        )
    ]
    assert "inflow applies to no model of the suite mine" in capsys.readouterr().err
    alone = run_records("digits", "glyphs8", "glow", "likelihood", **options, limit=60)[0]
    assert records[5]["metrics"] == alone["metrics"]
    assert len(read_records(tmp_path / "results")) == 2 * (2 * 5 + 1)  # every group size of typicality is kept


def test_a_limit_of_the_command_holds_for_all_and_a_control_counts_its_most_images(write, options) -> None:
    text = HEAD + "[limits]\npixelcnn = 30\n" + PAIRS
    _, records = run_suite(write(text), **options, limit=20)
    assert {r["n_in"] for r in records if r["group_size"] == 1} == {20}
    _, records = run_suite(write(text.replace("limits]", "limits]\nglow = 50")), **options)
    (control,) = (r for r in records if r["model"] == "none" and r["out"] == "glyphs8")
    assert control["n_in"] == 50


def test_a_second_run_computes_nothing(write, options, monkeypatch) -> None:
    asked = {**options, "limit": LIMIT, "models": ["glow"]}
    first = run_suite(write(HEAD + PAIRS), **asked)[1]
    monkeypatch.setattr(Glow, "statistics", None)
    monkeypatch.setattr("oodbench.benchmark.evaluate_scores", None)
    assert [r["metrics"] for r in run_suite(write(HEAD + PAIRS), **asked)[1]] == [r["metrics"] for r in first]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            HEAD.replace('"glow"', '"sghmc(gloww)"') + PAIRS,
            "suite mine cannot run. Unknown model 'gloww': did you mean glow",
        ),
        (
            HEAD.replace('"likelihood"', '"likelyhood"') + PAIRS,
            "Unknown detector 'likelyhood': did you mean likelihood",
        ),
        (HEAD.replace("@10", "@7") + PAIRS, "typicality scores groups of 1, 2, 10, 25 images"),
        (HEAD + PAIRS.replace("digits+blur", "digits+blurr"), "blur"),
        (
            HEAD.replace("pixelcnn", "vae") + PAIRS + PAIRS.replace('"digits"', '"photos"'),
            "lacks the weights of vae for digits and photos; glow for photos: make them with",
        ),
        (HEAD.split("detectors")[0] + 'detectors = ["inflow"]\n' + PAIRS, "No detector of the suite mine applies"),
    ],
)
def test_what_cannot_run_is_told_before_anything_is_computed(write, options, text, words, monkeypatch) -> None:
    monkeypatch.setattr(Glow, "statistics", None)
    with pytest.raises(OodbenchError, match=words) as caught:
        run_suite(write(text), **options)
    assert "\n" not in str(caught.value)


def test_missing_weights_are_trained_if_so_asked(write, options, monkeypatch) -> None:
    trained = []

    def train(model: str, dataset: str, **_: Any):
        trained.append((model, dataset))
        return save_random(None, model, dataset)

    monkeypatch.setattr("oodbench.training.train", train)
    monkeypatch.setattr("oodbench.pretrained.pretrained_folders", list)
    records = run_suite(write(HEAD + PAIRS), train=True, models=["glow"], **options | {"weights": None, "limit": 30})[1]
    assert trained == [("glow", "digits")]
    assert records
