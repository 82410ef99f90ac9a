"""run() as a whole, on embedded images and a tiny flow."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import oodbench
from oodbench.benchmark import run_records
from oodbench.data import load
from oodbench.detector import Columns, Detector
from oodbench.errors import OodbenchError
from oodbench.models.flows.glow import Glow
from oodbench.models.noise import Noise
from oodbench.pictures import plot
from oodbench.plugins import load_plugin
from oodbench.pretrained import load_model, save_model
from oodbench.records import read_records
from oodbench.registry import DETECTORS, MODELS, STATISTICS, register
from oodbench.report import table
from oodbench.scoring import score_images
from oodbench.training import load_recipe

LIMIT = 60

pytestmark = pytest.mark.usefixtures("two_lanes")


def save(
    folder: Path, role: str, seed: int, dataset: str = "digits", fingerprint: str | None = None, preset: str = "small"
) -> None:
    """Weights of a small random flow, as a training would leave them."""
    config = {"levels": 1, "steps": 2, "hidden": 8}
    images = load(dataset, "train")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        flow = Glow(images.shape, **config)
        for parameter in flow.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)
    flow.initialise(torch.from_numpy(images.pixels[:64].copy()), Noise.of(torch.arange(64)))
    entry = {
        "dataset": dataset,
        "model": "glow",
        "role": role,
        "preset": preset,
        "seed": 0,
        "shape": list(images.shape),
        "likelihood": "lower_bound",
        "recipe": load_recipe("glow", dataset).as_dict() | {"config": config},
        "data_fingerprint": fingerprint or images.fingerprint,
        "undertrained": False,
        "bits_per_dim": 0.0,
        "curve": [],
    }
    save_model(flow, entry, folder)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    save(folder, "model", 0)
    save(folder, "background", 1)
    return folder


@pytest.fixture
def run(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OODBENCH_CACHE", str(tmp_path / "cache"))

    def run(**changed):
        asked = {"in_": "digits", "out": ["glyphs8", "digits+invert"], "weights": weights, "limit": LIMIT}
        return run_records(**(asked | {"progress": False} | changed))

    return run


def test_every_detector_that_applies_is_recorded_for_every_pair(run) -> None:
    records = run()
    flows = {
        "likelihood",
        "typicality",
        "annulus",
        "likelihood_ratio",
        "input_complexity",
        "latent_likelihood",
        "volume",
        "dose",
        "dose_svm",
    }
    controls = {"compressed_size", "total_variation", "pixel_knn"}
    for out in ("glyphs8", "digits+invert"):
        here = [r for r in records if r["out"] == out]
        assert {r["detector"] for r in here if r["model"] == "glow"} == flows
        assert {r["detector"] for r in here if r["model"] == "none"} == controls
        assert {r["group_size"] for r in here if r["detector"] == "typicality"} == {1, 2, 10, 25}
    groups = next(r for r in records if r["detector"] == "typicality" and r["group_size"] == 25)
    assert (groups["n_in"], groups["n_out"]) == (LIMIT // 25, LIMIT // 25)


def test_a_record_is_strict_json_with_everything_to_repeat_it(run) -> None:
    record = json.loads(json.dumps(run(detectors="likelihood", out="glyphs8")[0], allow_nan=False))
    keys = {"schema", "in", "out", "model", "detector", "seed", "group_size", "n_in", "n_out", "metrics", "nonfinite"}
    assert keys | {"bits_per_dim", "likelihood", "provenance"} <= record.keys()
    assert record["metrics"].keys() == {"auroc", "aupr_in", "aupr_out", "fpr95"}
    assert record["likelihood"] == "lower_bound"
    provenance = {
        "weights",
        "data",
        "adaptation",
        "versions",
        "commit",
        "dirty",
        "device",
        "seconds_per_image",
        "created",
    }
    assert provenance <= record["provenance"].keys()


def scores_of(folder: Path, weights: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "digits" / folder_name(weights) / "glyphs8.csv")


def folder_name(weights: Path) -> str:
    return f"glow@small-{load_model('glow', 'digits', weights=weights).weights[:8]}"


def test_likelihoods_bits_and_score_agree(run, weights: Path, tmp_path: Path) -> None:
    record = run(detectors="likelihood", out="glyphs8", scores=tmp_path / "scores")[0]
    scores = scores_of(tmp_path / "scores", weights)
    inside = scores[scores["set"] == "digits"]
    assert len(inside) == LIMIT
    bits = inside["likelihood"].mean() / (64 * np.log(2))  # -log p
    assert record["bits_per_dim"]["in"] == pytest.approx(bits, rel=1e-6)
    wins = (
        scores[scores["set"] == "glyphs8"]["likelihood"].to_numpy()[:, None] > inside["likelihood"].to_numpy()
    ).mean()
    assert record["metrics"]["auroc"]["value"] == pytest.approx(wins, abs=1e-3)


def test_the_scores_of_another_seed_stand_beside_the_first(run, weights: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        run(detectors="likelihood", out="glyphs8", scores=tmp_path, seed=seed)
    folder = tmp_path / "digits" / folder_name(weights)
    assert {file.name for file in folder.iterdir()} == {"glyphs8.csv", "glyphs8-seed1.csv"}
    first, second = (pd.read_csv(file) for file in sorted(folder.iterdir()))
    assert not first["likelihood"].equals(second["likelihood"])


@pytest.mark.parametrize("batch_size", [1, 7])
def test_the_batch_size_changes_nothing(
    run, batch_size: int, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = []
    for size in (64, batch_size):
        monkeypatch.setenv("OODBENCH_CACHE", str(tmp_path / f"cache{size}"))
        run(batch_size=size, scores=tmp_path / str(size), out="glyphs8")
        tables.append(scores_of(tmp_path / str(size), weights))
    for column in ("likelihood", "likelihood_ratio", "annulus"):
        np.testing.assert_allclose(tables[0][column], tables[1][column], rtol=1e-5, atol=2e-3)


def test_a_rerun_computes_nothing_twice(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(results=tmp_path / "results")

    def never(*arguments, **keywords):
        raise AssertionError("computed again")

    monkeypatch.setattr(Glow, "statistics", never)
    monkeypatch.setattr("oodbench.benchmark.evaluate_scores", never)
    again = run(results=tmp_path / "results")
    assert [r["metrics"] for r in again] == [r["metrics"] for r in first]
    assert len(read_records(tmp_path / "results")) == len(first)


def test_metrics_of_an_earlier_version_are_computed_anew(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"detectors": "total_variation", "out": "glyphs8", "results": tmp_path / "results"}
    right = run(**asked)[0]["metrics"]
    wrong = {name: {"value": 0.0, "low": 0.0, "high": 0.0} for name in right}
    with monkeypatch.context() as patch:
        patch.setattr("oodbench.benchmark.METRICS_VERSION", 0)
        patch.setattr("oodbench.benchmark.evaluate_scores", lambda *scores, seed: wrong)
        assert run(**asked)[0]["metrics"] == wrong
    assert run(**asked)[0]["metrics"] == right


def test_all_detectors_cost_the_passes_of_one(run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = []
    statistics = Glow.statistics
    monkeypatch.setattr(Glow, "statistics", lambda self, x, noise: calls.append(len(x)) or statistics(self, x, noise))
    run(detectors=["likelihood"])
    one = sum(calls)
    calls.clear()
    monkeypatch.setenv("OODBENCH_CACHE", str(tmp_path / "other"))
    run(detectors=["likelihood", "typicality", "annulus"])
    assert sum(calls) == one > 0


def test_the_seconds_are_those_of_the_passes_that_computed_the_columns(run) -> None:
    def seconds(detector: str) -> float:
        return run(detectors=detector, out="glyphs8")[0]["provenance"]["seconds_per_image"]

    one = seconds("likelihood")
    assert seconds("likelihood") == one > 0  # from the cache
    two = seconds("likelihood_ratio")
    assert seconds("likelihood_ratio") == two > one  # the companion's pass counts too


def test_fit_sees_validation_images_only(run) -> None:
    seen = []

    @register.detector("spy")
    class Spy(Detector):
        """What fit is given."""

        needs = ("pixels",)

        def fit(self, validation: Columns) -> None:
            seen.append(validation["pixels"])

        def score(self, columns: Columns) -> np.ndarray:
            return columns["pixels"].mean(axis=1)

    run(detectors="spy")
    expected = load("digits", "validation").limit(LIMIT, 0)
    assert len(seen) == 1
    np.testing.assert_array_equal(seen[0], np.asarray(expected.pixels).reshape(LIMIT, -1))


def test_the_users_images_get_conformal_p_values(run, weights: Path, tmp_path: Path) -> None:
    table = score_images(
        "glyphs8", "glow", "digits", ["likelihood"], tmp_path / "out.csv", weights=weights, limit=20
    )  # fmt: skip
    n = len(load("digits", "validation"))
    assert len(table) == len(pd.read_csv(tmp_path / "out.csv")) == 20
    assert table["p_value"].between(1 / (n + 1), 1).all()
    # One minus the share of validation scores strictly below, each with the +1 of the conformal p-value.
    below = np.round((1 - table["p_value"]) * (n + 1)) / n
    assert (table["percentile"] / 100 >= below - 1e-9).all()
    assert (table.sort_values("score")["p_value"].diff().dropna() <= 1e-12).all()


def test_the_users_files_are_told_by_name(run, weights: Path, tmp_path: Path) -> None:
    for name, grey in (("dark/night.png", 0), ("bright.png", 255)):
        (tmp_path / "own" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), grey).save(tmp_path / "own" / name)
    table = score_images(f"folder:{tmp_path / 'own'}", "glow", "digits", ["likelihood"], weights=weights)
    assert table["image"].tolist() == ["bright.png", "dark/night.png"]


def test_a_score_that_is_nan_has_no_place_among_the_others(run, weights: Path) -> None:
    @register.detector("unsure")
    class Unsure(Detector):
        needs = ("log_px",)

        def score(self, columns: Columns) -> np.ndarray:
            return np.where(np.arange(columns.rows) < 3, np.nan, columns["log_px"])

    table = score_images("glyphs8", "glow", "digits", "unsure", weights=weights, limit=20)
    assert table[["percentile", "p_value"]].isna().all(axis=1).tolist() == [True] * 3 + [False] * 17


@pytest.mark.parametrize(("kind", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_pictures_are_drawn_beside_the_records(run, weights: Path, tmp_path: Path, kind: str, start: bytes) -> None:
    asked = {"results": tmp_path, "weights": weights, "limit": 20}
    pictures = plot("digits", ["glyphs8"], picture=kind, **asked)
    assert {p.name for p in pictures} == {f"glyphs8-bits.{kind}", f"glyphs8-roc.{kind}"}
    assert all(p.stat().st_size > 1000 and p.read_bytes().startswith(start) for p in pictures)
    with pytest.raises(OodbenchError, match="png, pdf, svg"):
        plot("digits", ["glyphs8"], picture="gif", **asked)


def test_a_single_name_and_a_text_stand_for_a_list_and_a_path(
    run, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    plugin = tmp_path / "plugin.py"
    plugin.write_text((Path(__file__).parent / "plugins" / "my_score.py").read_text())
    asked = {"out": "glyphs8", "weights": str(weights), "plugins": "~/plugin.py"}
    records = run(**asked, models="glow", detectors="my_score", results="~/results", scores="~/scores", seeds=0)
    assert len(records) == 1
    assert read_records("~/results", outs="glyphs8") == read_records(tmp_path / "results")
    with pytest.raises(OodbenchError, match="'glyphs8 and more'"):  # and not: holds the name of what is there
        read_records("~/results", outs="glyphs8 and more")
    assert len(list((tmp_path / "scores").rglob("*.csv"))) == 1
    common = {"weights": str(weights), "limit": 20, "progress": False}
    scored = score_images("glyphs8", "glow", "digits", "likelihood", "~/scored.csv", **common)
    assert len(pd.read_csv(tmp_path / "scored.csv")) == len(scored) == 20
    [picture] = plot("digits", "glyphs8", detectors="my_score", results="~/pictures", **common)
    assert picture.is_relative_to(tmp_path / "pictures")
    for wrong in (Path("glyphs8"), ["glyphs8"]):
        with pytest.raises(OodbenchError, match="does not name a data set"):
            score_images(wrong, "glow", "digits", **common)
    with pytest.raises(OodbenchError, match="3 is not a name"):
        run(out=3)
    with pytest.raises(OodbenchError, match="is not a file"):
        score_images("glyphs8", "glow", "digits", output=tmp_path, **common)


def test_pictures_and_scores_of_two_weights_of_one_name_lie_apart(run, weights: Path, tmp_path: Path) -> None:
    save(tmp_path / "other", "model", 5)
    both, results, scores = (weights, tmp_path / "other"), tmp_path / "results", tmp_path / "scores"
    for one in both:
        asked = {"out": ["glyphs8"], "detectors": ["likelihood"], "weights": one, "limit": 20}
        drawn = plot("digits", results=results, **asked)  # no records say yet whose folder `glow` is
        assert {p.parent for p in drawn} == {results / "digits" / folder_name(one)}
        run(results=results, scores=scores, **asked)
    tables = [scores_of(scores, one)["likelihood"] for one in both]
    assert (tables[0] != tables[1]).all()
    folders = [plot("digits", results=results, **asked | {"weights": one})[0].parent for one in both]
    assert folders == [results / "digits" / "glow", results / "digits" / folder_name(tmp_path / "other")]
    for folder, one in zip(folders, both, strict=True):  # beside their records
        assert load_model("glow", "digits", weights=one).weights in (folder / "glyphs8.json").read_text()


def test_another_copy_of_the_data_is_named_in_one_line(tmp_path: Path, run, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "other", "model", 0, fingerprint="0" * 64)
    run(weights=tmp_path / "other", detectors="likelihood", out="glyphs8")
    assert "another copy of digits" in capsys.readouterr().err


def test_the_error_of_bfloat16_is_measured_and_recorded(run) -> None:
    error = run(detectors="likelihood", out="glyphs8", precision="bfloat16")[0]["provenance"]["bfloat16_error"]
    assert 0 < error["mean_nats"] <= error["max_nats"] < 50
    assert run(detectors="likelihood", out="glyphs8")[0]["provenance"]["bfloat16_error"] is None


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"in_": "digitz"}, "digits"),
        ({"out": "glyphs9"}, "glyphs8"),
        ({"models": "gow"}, "glow"),
        ({"detectors": "likelyhood"}, "likelihood"),
        ({"in_": None}, "--in"),
        ({"out": "digits"}, "against itself"),
        ({"in_": "cifr10", "out": None}, r"did you mean cifar10 or cifar100\? Or name data sets with --out\.$"),
        ({"in_": "stl10", "out": None}, r"against 'stl10': name data sets with --out\.$"),
        ({"limit": 0}, "at least 1"),
        ({"limit": "9"}, "at least 1"),
        ({"seed": -1}, "seed"),
        ({"seeds": "0,1"}, "seed"),
        ({"out": Path("glyphs8")}, "name"),
        ({"results": Path(__file__)}, "name another"),
        ({"device": "tpu"}, "device"),
        ({"models": "vae"}, "oodbench train --model vae --in digits"),
        ({"batch_size": 0}, "batch size"),
    ],
)
def test_wrong_input_is_told_in_one_sentence(run, changed, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Glow, "statistics", None)  # and nothing was computed before
    with pytest.raises(OodbenchError, match=words):
        run(**changed)


@pytest.fixture
def lock_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`lock_cache()` takes the right to write anything in the cache (root's too)."""

    def lock_cache() -> None:
        (tmp_path / "cache").mkdir(exist_ok=True)
        there = os.access

        def access(path: Path, mode: int) -> bool:
            return there(path, mode) and not (mode & os.W_OK and Path(path).is_relative_to(tmp_path / "cache"))

        monkeypatch.setattr(os, "access", access)

    return lock_cache


def test_a_cache_that_cannot_be_written_is_told_before_a_model_pass(run, lock_cache, monkeypatch) -> None:
    for split in ("validation", "test"):
        load("digits", split)  # prepared already
    load("glyphs8", "test")
    lock_cache()
    monkeypatch.setattr(Glow, "statistics", None)
    with pytest.raises(OodbenchError, match=r"set OODBENCH_CACHE"):
        run(out="glyphs8")


def test_a_cache_that_cannot_be_written_is_told_before_a_set_is_prepared(run, lock_cache, monkeypatch) -> None:
    monkeypatch.setattr("oodbench.data.store._store", None)
    lock_cache()
    with pytest.raises(OodbenchError, match=r"set OODBENCH_CACHE"):
        run(out="glyphs8")


def test_a_cache_that_holds_everything_may_be_read_only(run, lock_cache) -> None:
    first = run(out="glyphs8")
    lock_cache()
    assert [r["metrics"] for r in run(out="glyphs8")] == [r["metrics"] for r in first]


def test_train_and_test_images_of_two_sizes_are_told_before_a_model_is_trained(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split, n, side in (("train", 100, 8), ("test", 5, 9)):
        images = np.random.default_rng(0).integers(0, 256, (n, side, side), np.uint8)
        (tmp_path / "sizes").mkdir(exist_ok=True)
        np.savez(tmp_path / "sizes" / f"{split}.npz", images=images)
    monkeypatch.setattr("oodbench.training.train", None)
    with pytest.raises(OodbenchError, match="bring them to one size"):
        run(in_=f"npz:{tmp_path / 'sizes'}", out="glyphs8", models="glow", weights=None)


def test_a_background_that_is_missing_is_told_with_the_command(tmp_path: Path, run) -> None:
    save(tmp_path / "alone", "model", 0)
    with pytest.raises(OodbenchError, match="--background"):
        run(weights=tmp_path / "alone", detectors="likelihood_ratio")


def test_the_companion_has_the_models_preset(tmp_path: Path, run) -> None:
    save(tmp_path / "w", "model", 0)
    save(tmp_path / "w", "background", 1, preset="tiny")
    with pytest.raises(OodbenchError, match="--background"):
        run(weights=tmp_path / "w", detectors="likelihood_ratio")
    save(tmp_path / "w", "background", 2)
    small = load_model("glow", "digits", role="background", preset="small", weights=tmp_path / "w")
    (record,) = run(weights=tmp_path / "w", detectors="likelihood_ratio", out="glyphs8")
    assert record["provenance"]["background"] == small.weights


def test_no_model_is_trained_for_a_detector_that_cannot_apply_to_it(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oodbench.training.train", None)
    monkeypatch.setattr("oodbench.selection.available_models", lambda *_, **__: [])
    with pytest.raises(OodbenchError, match=r"it needs elbo\. The models were nice\. Take one of vae, .*vlae"):
        run(models="nice", detectors="elbo", weights=None)
    before = torch.get_rng_state()
    with pytest.raises(OodbenchError, match=r"The models were nice\. Take one of sghmc\(MODEL\), "):
        run(models="nice", detectors="waic", weights=None)
    assert torch.equal(torch.get_rng_state(), before)


def test_groups_cannot_be_named_apart_from_their_detector(run) -> None:
    with pytest.raises(OodbenchError, match="name 'typicality' alone"):
        run(detectors="typicality@10")


def test_a_plugin_takes_part(run) -> None:
    plugin = Path(__file__).parent / "plugins" / "my_score.py"
    records = run(plugins=[plugin], detectors=["my_score"], out="digits+invert")
    assert [r["detector"] for r in records] == ["my_score"]
    assert records[0]["metrics"]["auroc"]["value"] > 0.9


MEAN = """
from oodbench import Detector, register

@register.statistic("mean", needs_model=False)
def mean(model, x, noise):
    return {sign}x.float().mean(dim=(1, 2, 3))

@register.detector("mean")
class Mean(Detector):
    needs = ("mean",)
    def score(self, columns):
        return columns["mean"]
"""


def test_columns_of_a_plugin_are_computed_anew_when_its_file_changes(run, tmp_path: Path) -> None:
    values = []
    for sign in ("", "-", ""):
        (tmp_path / "mean.py").write_text(MEAN.format(sign=sign))
        (record,) = run(plugins=[tmp_path / "mean.py"], detectors="mean", out="digits+invert")
        values.append(record["metrics"]["auroc"]["value"])
    assert values == [pytest.approx(1.0), pytest.approx(0.0), pytest.approx(1.0)]


FLAT = """
import math
import torch
from oodbench import DensityModel, Likelihood, OodbenchError, register

@register.model("flat")
class Flat(DensityModel):
    \"\"\"Uniform on 8-bit images\"\"\"
    likelihood = Likelihood.EXACT

    def __init__(self, shape):
        super().__init__(shape)
        self.anything = torch.nn.Parameter(torch.zeros(1))

    def log_prob(self, x, noise):
        {log_prob}

    {more}
"""
NATS = "return torch.full((len(x),), -self.dimensions * math.log(256))"


@pytest.fixture
def flat(tmp_path: Path, weights: Path):
    """`flat(log_prob)` is a plugin's file with a model of that body, and a folder with weights of it and of a glow."""
    path, folder = tmp_path / "flat.py", tmp_path / "flat-and-glow"
    path.write_text(FLAT.format(log_prob=NATS, more=""))
    load_plugin(path)
    shutil.copytree(weights, folder)
    entry = load_model("glow", "digits", weights=weights).entry
    module = MODELS.get("flat")(tuple(entry["shape"]))
    save_model(module, entry | {"model": "flat", "recipe": entry["recipe"] | {"config": {}}}, folder)

    def flat(log_prob: str = NATS, more: str = "") -> tuple[Path, Path]:
        path.write_text(FLAT.format(log_prob=log_prob, more=more))
        return path, folder

    return flat


def test_columns_of_a_plugins_model_are_computed_anew_when_its_file_changes(run, flat) -> None:
    asked = {"models": "flat", "detectors": "likelihood", "out": "glyphs8"}
    bits = []
    for body in (NATS, NATS.replace("256", "16")):
        plugin, folder = flat(body)
        bits.append(run(plugins=[plugin], weights=folder, **asked)[0]["bits_per_dim"]["in"])
    assert bits == [pytest.approx(8), pytest.approx(4)]


BROKEN = {
    "log_prob": {"log_prob": 'raise KeyError("what\\nit needs")'},
    "a wrong shape": {"log_prob": "return torch.zeros(len(x) + 1)"},
    "a sentence": {"log_prob": 'raise OodbenchError("It takes colour images only.")'},
    "the parameters of its statistics": {"more": "def statistic_parameters(self): return {}['draws']"},
    "loading": {"more": "def load_state_dict(self, state): raise KeyError(state)"},
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_a_plugins_model_that_fails_is_named_and_the_others_live(
    run, flat, capsys: pytest.CaptureFixture[str], broken: dict[str, str]
) -> None:
    asked = {"detectors": ["likelihood", "annulus", "total_variation"], "out": ["glyphs8", "digits+invert"]}
    plugin, folder = flat(**broken)
    records = run(plugins=[plugin], weights=folder, **asked)
    assert [(r["model"], r["detector"], r["out"]) for r in records] == [
        (model, detector, out)
        for model, detectors in (("glow", ("likelihood", "annulus")), ("none", ("total_variation",)))
        for out in asked["out"]
        for detector in detectors
    ]
    told = [line for line in capsys.readouterr().err.splitlines() if "flat" in line]
    assert len(told) == 1
    assert told[0].startswith("oodbench: skipped the model 'flat' ")


def test_a_plugins_model_that_fails_alone_is_an_error(run, flat) -> None:
    plugin, folder = flat(log_prob="1 / 0")
    with pytest.raises(OodbenchError, match=r"The model 'flat' of .*flat\.py failed \(ZeroDivisionError"):
        run(plugins=[plugin], weights=folder, models="flat", detectors="likelihood")


def test_a_plugins_model_that_cannot_be_trained_is_named_and_a_bug_of_our_own_is_not_hidden(
    run, flat, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(name: str, *arguments, **keywords):
        raise ZeroDivisionError(name)

    plugin, _ = flat()
    monkeypatch.setattr("oodbench.pretrained.pretrained_folders", lambda: [weights])
    monkeypatch.setattr("oodbench.training.train", fail)
    asked = {"weights": None, "detectors": "likelihood", "out": "glyphs8", "plugins": [plugin]}
    assert [r["model"] for r in run(models=["flat", "glow"], **asked)] == ["glow"]
    assert "skipped the model 'flat'" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError, match="vae"):
        run(models=["vae", "glow"], **asked)


def test_a_bug_in_a_model_of_our_own_is_not_hidden(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Glow, "statistics", lambda self, x, noise: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(detectors=["likelihood", "total_variation"], out="glyphs8")


def test_run_gives_a_data_frame(weights: Path) -> None:
    frame = oodbench.run("digits", "glyphs8", detectors="likelihood", weights=weights, limit=20, progress=False)
    assert isinstance(frame, pd.DataFrame)
    assert frame["metrics.auroc.value"].between(0, 1).all()


def test_a_detector_that_fails_is_named_and_skipped(run, capsys: pytest.CaptureFixture[str]) -> None:
    @register.detector("breaks")
    class Breaks(Detector):
        needs = ("log_px",)

        def score(self, columns: Columns) -> np.ndarray:
            raise KeyError("what it needs")

    DETECTORS._entries["breaks"].origin = "breaks.py"
    try:
        records = run(detectors=["breaks", "likelihood"], out="glyphs8")
    finally:
        DETECTORS.remove("breaks")
    assert [r["detector"] for r in records] == ["likelihood"]
    assert "skipped the detector 'breaks' (from breaks.py)" in capsys.readouterr().err


def test_a_need_that_nothing_computes_is_told(run, capsys: pytest.CaptureFixture[str]) -> None:
    for name, need in (("typo", "log_pxx"), ("vae_only", "elbo"), ("companion", "log_px@background")):
        register.detector(name)(type(name, (Detector,), {"needs": (need,), "score": lambda self, c: c[self.needs[0]]}))
        DETECTORS._entries[name].origin = f"{name}.py"
    try:
        run(out="glyphs8")
        told = [line for line in capsys.readouterr().err.splitlines() if ".py)" in line]
        assert len(told) == 1  # and not of a column that other models have
        assert "'typo' (from typo.py) needs 'log_pxx', which nothing computes: did you mean log_px" in told[0]
        with pytest.raises(OodbenchError, match="log_pxx"):
            run(detectors="typo", out="glyphs8")
    finally:
        for name in ("typo", "vae_only", "companion"):
            DETECTORS.remove(name)


@pytest.fixture
def broken_statistic():
    """A plugin's statistic that fails, and a detector that reads it."""

    @register.statistic("torn", needs_model=False)
    def torn(model, x, noise):
        raise KeyError("what it needs")

    @register.detector("reads_torn")
    class ReadsTorn(Detector):
        needs = ("log_px", "torn")

        def score(self, columns: Columns) -> np.ndarray:
            return columns["torn"]

    STATISTICS._entries["torn"].origin = DETECTORS._entries["reads_torn"].origin = "torn.py"
    yield
    STATISTICS.remove("torn")
    DETECTORS.remove("reads_torn")


def test_a_statistic_that_fails_costs_only_its_readers(
    run, broken_statistic: None, capsys: pytest.CaptureFixture[str]
) -> None:
    records = run(detectors=["reads_torn", "likelihood", "total_variation"], out="glyphs8")
    assert {r["detector"] for r in records} == {"likelihood", "total_variation"}
    told = [line for line in capsys.readouterr().err.splitlines() if "torn" in line]
    assert len(told) == 1
    assert "skipped the detector 'reads_torn': The statistic 'torn' of torn.py failed (KeyError" in told[0]


def test_a_statistic_that_every_detector_reads_is_an_error(run, broken_statistic: None) -> None:
    with pytest.raises(OodbenchError, match=r"'torn' of torn\.py failed"):
        run(detectors="reads_torn", out="glyphs8")


def test_a_name_given_twice_counts_once(run) -> None:
    twice = run(models=["glow", "glow"], detectors=["likelihood", "likelihood"], out=["glyphs8", "glyphs8"])
    assert len(twice) == 1


def test_too_few_images_for_any_group_leave_no_record(
    run, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    @register.detector("crowds")
    class Crowds(Detector):
        needs = ("log_px",)
        group_sizes = (LIMIT + 1,)

        def score(self, columns: Columns) -> np.ndarray:
            return columns.groups("log_px").mean(axis=1)

    with pytest.raises(OodbenchError, match="No detector gave scores"):
        run(detectors="crowds", out="glyphs8", results=tmp_path / "results")
    assert "scores groups of 61 images and a set has 60" in capsys.readouterr().err
    assert read_records(tmp_path / "results") == []
    with pytest.raises(OodbenchError, match="nothing to draw"):
        plot("digits", "glyphs8", detectors="crowds", results=tmp_path, weights=weights, limit=LIMIT)
    assert not list(tmp_path.rglob("*.png"))


@pytest.fixture
def dear() -> list[int]:
    """A detector of 20 images a set that costs much and learns nothing; gives how many each pass computed."""
    computed: list[int] = []

    @register.statistic("pondered", applies=lambda model: isinstance(model, Glow))
    def pondered(model, x, noise):
        computed.append(len(x))
        return x.float().mean((1, 2, 3))

    @register.detector("ponders")
    class Ponders(Detector):
        needs = ("pondered",)
        most_images = 20

        def score(self, columns: Columns) -> np.ndarray:
            assert set(columns) == {"pondered"}  # and not what others asked for
            return columns["pondered"].astype(np.float64)

    return computed


def test_what_costs_seconds_an_image_runs_when_named_on_a_seeded_subset_whose_n_is_shown(
    run, dear: list[int], tmp_path: Path, weights: Path
) -> None:
    results, scores = tmp_path / "results", tmp_path / "scores"
    assert "ponders" not in {record["detector"] for record in run(out="glyphs8", results=results)}
    assert not dear
    records = run(detectors=["likelihood", "ponders"], out="glyphs8", results=results, scores=scores)
    counts = {r["detector"]: (r["n_in"], r["n_out"]) for r in records}
    assert counts == {"likelihood": (LIMIT, LIMIT), "ponders": (20, 20)}
    assert sum(dear) == 40  # nothing of the validation images, from which it does not learn
    written = scores_of(scores, weights)
    assert written.groupby("set")["ponders"].count().to_dict() == {"digits": 20, "glyphs8": 20}
    assert written["likelihood"].count() == 2 * LIMIT
    few = load("digits", "test").limit(LIMIT).limit(20)
    there = written[(written["set"] == "digits") & written["ponders"].notna()]
    assert there["index"].tolist() == few.index.tolist()
    np.testing.assert_allclose(there["ponders"], few.pixels.mean((1, 2, 3)), rtol=1e-5)
    shown = table(read_records(results), "markdown")
    (line,) = (line for line in shown.splitlines() if line.startswith("| ponders"))
    assert "n = 20 / 20" in line
    assert shown.count("n = 20") == 1
    bits = {r["detector"]: r["bits_per_dim"]["in"] for r in records}
    assert f"{bits['likelihood']:.2f}" in shown  # the model's column speaks of all images
    assert run(detectors="ponders", out="glyphs8", limit=7)[0]["n_in"] == 7


def test_a_subset_of_a_users_images_is_scored_under_their_own_names(
    weights: Path, dear: list[int], tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("OODBENCH_CACHE", str(tmp_path / "cache"))
    found = score_images("glyphs8", "glow", "digits", ["ponders"], weights=weights, progress=False)
    few = load("glyphs8", "test").limit(20)
    assert found["image"].tolist() == few.index.tolist()
    np.testing.assert_allclose(found["score"], few.pixels.mean((1, 2, 3)), rtol=1e-5)


def test_a_statistic_that_says_so_applies_to_no_other_model(run) -> None:
    register.statistic("alien", applies=lambda model: False)(lambda model, x, noise: x)

    @register.detector("reads_alien")
    class ReadsAlien(Detector):
        needs = ("alien",)

        def score(self, columns: Columns) -> np.ndarray:
            return columns["alien"]

    assert "reads_alien" not in {record["detector"] for record in run(out="glyphs8")}
    with pytest.raises(OodbenchError, match=r"'reads_alien' applies to no .*: it needs alien\. The models were "):
        run(detectors="reads_alien", out="glyphs8")  # and not: train a background
