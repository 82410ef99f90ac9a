"""The pictures: written whole, in every format, for every shape of scores that a benchmark meets."""

from itertools import pairwise

import matplotlib.figure
import numpy as np
import pytest

from oodbench.errors import OodbenchError
from oodbench.evaluation import Levels, auroc
from oodbench.report import histograms, roc_curves
from oodbench.report.plots import _curve, _edges

MAGIC = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}


@pytest.fixture
def scores():
    rng = np.random.default_rng(0)
    return {"cifar10 (in)": rng.normal(3.5, 0.5, 2000), "svhn": rng.normal(2.6, 0.3, 1000)}


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved."""
    figures = []
    save = matplotlib.figure.Figure.savefig

    def spy(figure, *args, **kwargs):
        figures.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", spy)
    return figures


def legend(figure):
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_pictures_are_written_by_suffix_and_are_the_same_twice(tmp_path, scores, suffix):
    pair = tuple(scores.values())
    for draw in (
        lambda path: histograms(path, scores, title="a → b"),
        lambda path: roc_curves(path, {"likelihood": pair}),
    ):
        first, second = draw(tmp_path / f"new folder/a{suffix}"), draw(tmp_path / f"b{suffix}")
        assert first.read_bytes().startswith(MAGIC[suffix])
        assert first.read_bytes() == second.read_bytes()


def test_another_suffix_is_told_so(tmp_path, scores):
    with pytest.raises(OodbenchError, match="png"):
        histograms(tmp_path / "a.bmp", scores)


def test_the_legend_says_what_the_picture_leaves_out(tmp_path, scores, drawn):
    scores["far"] = np.full(500, 1e4) + np.arange(500)
    scores["near"] = -scores["far"]
    scores["holes"] = np.r_[scores["svhn"], np.nan, np.inf]
    scores["tower"] = np.full(500, 3.0)
    histograms(tmp_path / "a.png", scores)
    assert legend(drawn[0]) == [
        "cifar10 (in)",
        "svhn",
        "far (100% off the axis, right)",
        "near (100% off the axis, left)",
        "holes (2 not finite)",
        "tower (peak cut off)",
    ]


def test_a_set_without_a_finite_score_is_told_so(tmp_path, scores):
    with pytest.raises(OodbenchError, match="broken"):
        histograms(tmp_path / "a.png", scores | {"broken": np.full(3, np.nan)})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("far", [8.0, 40.0, 1e6, -1e6])
def test_the_in_distribution_set_keeps_enough_bins(scores, far):
    first = scores["cifar10 (in)"]
    edges = _edges([first, np.random.default_rng(1).normal(far, 0.1, 3000)])
    assert np.mean((first >= edges[0]) & (first <= edges[-1])) > 0.995
    assert np.count_nonzero(np.histogram(first, edges)[0]) >= 15
    assert len(edges) <= 241


@pytest.mark.parametrize("columns", [[np.full(10, 2.0)], [np.full(10, 2.0), np.full(10, 5.0)], [np.array([1.0])]])
def test_constant_scores_have_bins(columns):
    edges = _edges(columns)
    assert (np.diff(edges) > 0).all()
    for column in columns:
        assert np.histogram(column, edges)[0].sum() == len(column)


def test_the_legend_gives_auroc_and_says_inverted(tmp_path, drawn):
    ranks = np.arange(100.0)
    roc_curves(tmp_path / "a.png", {"good": (ranks, ranks + 80), "bad": (ranks + 80, ranks), "odd": (ranks, ranks)})
    good, bad, odd = legend(drawn[0])
    assert good.startswith("0.980 [")
    assert bad.startswith("0.020 [")
    assert bad.endswith("bad, inverted")
    assert odd.startswith("0.500 [")
    assert not odd.endswith("inverted")


@pytest.mark.parametrize("size", [5, 200, 20_000])
@pytest.mark.parametrize("shift", [-3.0, 0.0, 3.0])
def test_a_thinned_curve_has_the_same_area(size, shift):
    rng = np.random.default_rng(2)
    levels = Levels.of(rng.normal(0, 1, size), rng.normal(shift, 1, size))
    false, true = _curve(levels)
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    assert len(false) <= 2 * size + 1
    assert len(false) <= 1100
    assert np.trapezoid(true, false) == pytest.approx(auroc(levels), abs=1e-5)


def test_no_text_of_a_full_picture_overlaps(tmp_path, drawn):
    rng = np.random.default_rng(3)
    scores = {f"detector_{i}": (rng.normal(0, 1, 50), rng.normal(i / 4, 1, 50)) for i in range(11)}
    roc_curves(tmp_path / "a.png", scores, title="fashionmnist → emnist_letters, pixelcnn++")
    axes = drawn[0].axes[0]
    boxes = [text.get_window_extent() for text in axes.get_legend().get_texts()]
    assert all(upper.y0 >= lower.y1 - 1 for upper, lower in pairwise(boxes))
    assert not axes.get_window_extent().overlaps(axes.get_legend().get_window_extent())
