"""The plugin door: what works comes in whole, what does not is named and leaves nothing behind."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from oodbench import plugins
from oodbench.data import load
from oodbench.detector import Columns
from oodbench.errors import OodbenchError
from oodbench.models.noise import Noise
from oodbench.plugins import load_builtin, load_entry_points, load_plugin, load_plugins, loaded
from oodbench.registry import DATASETS, DETECTORS, MODELS, STATISTICS

REPOSITORY = Path(__file__).parent.parent
EXAMPLE = Path(__file__).resolve().parent / "plugins" / "my_score.py"
REGISTRIES = (DATASETS, DETECTORS, MODELS, STATISTICS)

GOOD = """
from oodbench.detector import Detector
from oodbench.registry import register

@register.detector("{name}")
class Good(Detector):
    \"\"\"-log p(x), once more\"\"\"
    needs = ("log_px",)
    def score(self, columns):
        return -columns["log_px"]
"""


def names() -> list[set[str]]:
    return [set(registry) for registry in REGISTRIES]


def plugin(folder: Path, text: str, name: str = "plugin.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_the_readmes_example_is_this_file() -> None:
    assert EXAMPLE.read_text().strip() in (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_the_example_scores_images_by_its_own_statistic() -> None:
    load_plugin(EXAMPLE)
    images = torch.tensor([[[[100, 102]]], [[[98, 100]]], [[[0, 2]]]], dtype=torch.uint8)
    brightness = STATISTICS.get("brightness").function(None, images, Noise.of(torch.arange(3))).numpy()
    np.testing.assert_array_equal(brightness, [101, 99, 1])
    detector = DETECTORS.get("my_score")()
    detector.fit(Columns({"brightness": brightness[:2]}, 2))
    np.testing.assert_array_equal(detector.score(Columns({"brightness": brightness}, 2)), [1, 1, 99])
    assert DETECTORS.origin_of("my_score") == str(EXAMPLE)


def test_a_file_may_register_a_detector_a_statistic_a_model_and_a_data_set(tmp_path: Path) -> None:
    text = (
        GOOD.format(name="new-detector")
        + """
from oodbench.models.base import DensityModel, Likelihood

@register.statistic("new-statistic", needs_model=False, version=3)
def statistic(model, x, noise):
    \"\"\"One\"\"\"
    return x.new_ones(len(x))

@register.model("new-model")
class Model(DensityModel):
    \"\"\"Uniform\"\"\"
    likelihood = Likelihood.EXACT

@register.dataset("new-images")
def load(split):
    \"\"\"Nothing\"\"\"
    return None, None
"""
    )
    path = plugin(tmp_path, text)
    load_plugin(path)
    for registry, name in ((DETECTORS, "new-detector"), (STATISTICS, "new-statistic"), (MODELS, "new-model"),
                           (DATASETS, "new-images")):  # fmt: skip
        assert name in registry
        assert registry.origin_of(name) == str(path)
    assert STATISTICS.get("new-statistic").version == 3
    assert DETECTORS.summary("new-detector") == "-log p(x), once more"


BAD = "@register.detector('bad')\n"
BROKEN = {
    "an exception": ("raise ValueError('no\\nluck')", "line 11: ValueError: no luck"),
    "a syntax error": ("def", "line 11: SyntaxError"),
    "an import error": ("import no_such_module", "line 11: ModuleNotFoundError: No module named 'no_such_module'"),
    "an exit": ("import sys; sys.exit('bye')", "line 11: SystemExit: bye"),
    "a taken name": ("register.detector('likelihood')(Good)", "'likelihood' exists already (from oodbench)"),
    "a name that cannot be one": ("register.detector('a/b')(Good)", "'a/b' cannot name a detector"),
    "no score": (f"{BAD}class Bad(Detector):\n    needs = ('log_px',)", "Bad ('bad') does not define score()"),
    "no needs": (f"{BAD}class Bad(Detector):\n    def score(self, columns): ...", "must name its columns in needs"),
    "needs that are a string": (f"{BAD}class Bad(Good):\n    needs = ('log_px')", "must name its columns in needs"),
    "group sizes of zero": (f"{BAD}class Bad(Good):\n    group_sizes = (0,)", "positive integers"),
    "no detector": ("register.detector('bad')(int)", "'bad' is not a subclass of oodbench.Detector"),
    "no likelihood": ("register.model('bad')(int)", "does not say what its likelihood is"),
    "no function": ("register.dataset('bad')(3)", "is not a function of the split"),
}


@pytest.mark.parametrize(("code", "told"), BROKEN.values(), ids=BROKEN)
def test_a_broken_plugin_is_named_in_one_line_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], code: str, told: str
) -> None:
    before = names()
    # What it registered before it failed goes too; the good one beside it stays.
    broken = plugin(tmp_path, GOOD.format(name="half") + code, "broken.py")
    good = plugin(tmp_path, GOOD.format(name="good"), "good.py")
    load_plugins([broken, good])
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert output.err.startswith(f"skipped plugin {broken}")
    assert told in output.err
    assert names() == [before[0], before[1] | {"good"}, *before[2:]]
    assert DETECTORS.origin == "oodbench"  # who registers next is not the plugin
    assert {p.where: p.fault is None for p in loaded()}[str(broken)] is False


def test_an_interrupted_plugin_leaves_nothing_and_interrupts(tmp_path: Path) -> None:
    before = names()
    path = plugin(tmp_path, GOOD.format(name="half") + "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load_plugin(path)
    assert names() == before


def test_loading_twice_is_harmless(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = plugin(tmp_path, GOOD.format(name="good"))
    load_plugin(path)
    first = DETECTORS.get("good")
    load_plugins([path, tmp_path / ".." / tmp_path.name / path.name])
    assert DETECTORS.get("good") is first
    assert capsys.readouterr().err == ""


def test_a_changed_file_is_loaded_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = plugin(tmp_path, GOOD.format(name="first"))
    load_plugin(path)
    plugin(tmp_path, "1 / 0")
    load_plugin(path)
    assert "ZeroDivisionError" in capsys.readouterr().err
    plugin(tmp_path, GOOD.format(name="second"))
    load_plugin(path)
    assert "first" not in DETECTORS
    assert "second" in DETECTORS


def test_files_of_one_name_do_not_meet(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        load_plugin(plugin(tmp_path / folder, GOOD.format(name=folder)))
    assert DETECTORS.get("a").__module__ != DETECTORS.get("b").__module__
    assert sys.modules[DETECTORS.get("a").__module__].Good is DETECTORS.get("a")


def test_a_missing_file_is_an_error_before_anything_is_loaded(tmp_path: Path) -> None:
    good = plugin(tmp_path, GOOD.format(name="good"))
    with pytest.raises(OodbenchError, match=r"no plugin file .*nowhere\.py"):
        load_plugins([good, tmp_path / "nowhere.py"])
    assert "good" not in DETECTORS


def test_entry_points_are_loaded_once_and_a_broken_one_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin(tmp_path, GOOD.format(name="from-entry"), "good_entry_plugin.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = [metadata.EntryPoint(name, module, "oodbench.plugins")
             for name, module in (("gone", "no_such_module"), ("good", "good_entry_plugin"))]  # fmt: skip
    monkeypatch.setattr(plugins, "metadata", SimpleNamespace(entry_points=lambda group: found))
    load_entry_points()
    load_entry_points()
    assert DETECTORS.origin_of("from-entry") == "entry point good = good_entry_plugin"
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("skipped plugin entry point gone = no_such_module: ModuleNotFoundError")


def test_builtin_detectors_come_through_the_same_door() -> None:
    files = {Path(p.where).stem: p for p in loaded() if p.origin == "oodbench"}
    assert {path.stem for path in (REPOSITORY / "detectors").glob("*.py")} == set(files)
    assert all((DETECTORS, stem) in p.names for stem, p in files.items())


def test_somebody_elses_folder_of_detectors_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "oodbench").mkdir()
    (tmp_path / "detectors").mkdir()
    plugin(tmp_path / "detectors", GOOD.format(name="foreign"))
    monkeypatch.setattr(plugins, "__file__", str(tmp_path / "oodbench" / "plugins.py"))
    with pytest.raises(OodbenchError, match="install oodbench again"):
        load_builtin()
    (tmp_path / "detectors").rename(tmp_path / "oodbench" / "detectors")  # as in a wheel
    load_builtin()
    assert "foreign" in DETECTORS


def test_loading_imports_nothing_heavy() -> None:
    code = (
        "import sys; from oodbench.plugins import load_plugins; load_plugins(); "
        "print(*({'torch', 'sklearn', 'matplotlib', 'pandas', 'PIL', 'scipy', 'detectors'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert result.stdout.strip() == ""


def test_a_name_that_a_skipped_plugin_may_have_is_told_with_it(tmp_path: Path) -> None:
    path = plugin(tmp_path, "import no_such_module")
    load_plugin(path)
    for kind in (DETECTORS, MODELS):
        with pytest.raises(OodbenchError, match=f"^Unknown {kind.kind} 'zorg': the plugin {path} may have it"):
            kind.get("zorg")
    with pytest.raises(OodbenchError, match=rf"did you mean .*\? Or the plugin {path} may have it"):
        DETECTORS.get("likelyhood")
    with pytest.raises(OodbenchError, match=f"Unknown data set 'zorg': the plugin {path} may have it"):
        load("zorg", "test")
    plugin(tmp_path, GOOD.format(name="good"))
    load_plugin(path)
    with pytest.raises(OodbenchError, match="'zorg': there are"):
        DETECTORS.get("zorg")


def test_a_plugin_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    path = plugin(tmp_path, GOOD.format(name="good"))
    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(OodbenchError, match=r"Cannot read the plugin .* \(Permission denied\)"):
        load_plugins(path)
