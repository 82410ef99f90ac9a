import subprocess
import sys

import numpy as np
import pytest

from oodbench.data import available, load
from oodbench.errors import OodbenchError
from oodbench.registry import DATASETS


@pytest.fixture
def plugin():
    pixels = np.random.default_rng(0).integers(0, 256, (60, 1, 4, 4), np.uint8)
    state = {"pixels": pixels, "labels": np.arange(60)}

    def stripes(part):
        """Striped things."""
        if part == "test":
            raise OodbenchError("stripes has no test split.")
        return state["pixels"], state["labels"]

    DATASETS.origin = "my_sets.py"
    DATASETS.add("stripes", stripes)
    DATASETS.origin = "oodbench"
    yield state
    DATASETS.remove("stripes")


def test_the_data_root_comes_from_the_argument_else_from_the_environment(root, tmp_path, monkeypatch):
    monkeypatch.setenv("OODBENCH_DATA", str(root))
    assert len(load("toys", "test")) == 30
    other = tmp_path / "other" / "toys"
    other.mkdir(parents=True)
    np.savez(other / "test.npz", images=np.zeros((2, 3, 3), np.uint8))
    assert len(load("toys", "test", other.parent)) == 2
    assert len(load("toys", "test")) == 30


def test_the_data_root_wins_over_torchvision(root, monkeypatch):
    monkeypatch.setattr("oodbench.data.sources.prepared_torchvision", None)
    (root / "toys").rename(root / "cifar10")
    assert len(load("cifar10", "test", root)) == 30


def test_a_split_that_the_data_root_lacks_is_said_so(root):
    (root / "toys" / "train.npz").unlink()
    for split in ("train", "validation"):
        with pytest.raises(OodbenchError, match="toys has no train split under the data root, only test"):
            load("toys", split, root)


def test_a_data_root_that_is_not_there_is_said_so(tmp_path):
    with pytest.raises(OodbenchError, match="not a folder"):
        load("toys", "test", tmp_path / "nowhere")


def test_unknown_names_are_told_the_nearest_from_everywhere(root):
    for wrong, right in (("toyz", "toys"), ("cifr10", "cifar10"), ("digit", "digits")):
        with pytest.raises(OodbenchError, match=rf"did you mean .*{right}"):
            load(wrong, "test", root)
    with pytest.raises(OodbenchError, match="there are digits"):
        load("???", "test", root)
    with pytest.raises(OodbenchError, match="Unknown data set 'cifr10'"):
        load("cifr10+hflip", "test", root)


def test_an_unknown_split_is_said_so(root):
    with pytest.raises(OodbenchError, match="Unknown split 'val'"):
        load("toys", "val", root)


def test_too_few_images_for_a_validation_part_is_said_so(tmp_path):
    folder = tmp_path / "root" / "few"
    folder.mkdir(parents=True)
    np.savez(folder / "train.npz", images=np.zeros((2, 3, 3), np.uint8))
    with pytest.raises(OodbenchError, match="none fell into validation"):
        load("few", "validation", folder.parent)


def test_a_plugins_images_are_prepared_and_fingerprinted_by_content(plugin):
    images = load("stripes", "train")
    assert isinstance(images.pixels, np.memmap)
    assert len(images) + len(load("stripes", "validation")) == 60
    assert np.array_equal(images.pixels, plugin["pixels"][images.labels])
    plugin["pixels"] = plugin["pixels"] ^ 1
    assert load("stripes", "train").fingerprint != images.fingerprint
    plugin["labels"] = plugin["labels"] + 5
    assert load("stripes", "train").labels.min() >= 5


@pytest.mark.parametrize("result", [np.zeros((3, 1, 4, 4)), np.zeros((3, 4, 4), np.uint8), "nonsense", [[1], [1, 2]]])
def test_a_plugin_that_gives_no_images_is_said_so(plugin, result):
    plugin["pixels"] = result
    with pytest.raises(OodbenchError, match="stripes"):
        load("stripes", "train")


def test_a_plugin_that_breaks_is_named(plugin):
    plugin.clear()
    with pytest.raises(OodbenchError, match=r"'stripes' of my_sets\.py failed \(KeyError"):
        load("stripes", "train")
    with pytest.raises(OodbenchError, match="stripes has no test split"):
        load("stripes", "test")


def test_everything_known_is_listed_once_and_from_where_it_would_come(root, plugin):
    (root / "toys").rename(root / "mnist")
    listed = {name: (summary, where) for name, summary, where in available(root)}
    assert len(listed) == len(available(root))
    assert listed["digits"][1] == "embedded"
    assert listed["stripes"] == ("Striped things.", "my_sets.py")
    assert listed["mnist"] == ("Handwritten digits, grey 28x28 (test, train)", str(root / "mnist"))
    assert listed["svhn"][1] == "torchvision"
    assert all(summary for summary, _ in listed.values())


def test_loading_prepared_images_imports_nothing_heavy(root):
    program = (
        "import sys; from pathlib import Path; from oodbench.data import available, load;"
        f"load('toys+hflip', 'test', Path({str(root)!r})); available();"
        "print(sorted({'torch', 'torchvision', 'matplotlib', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
