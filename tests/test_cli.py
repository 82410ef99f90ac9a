"""The commands: which function they call with what, what they print where, and how they fail."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from oodbench import cli
from oodbench.errors import OodbenchError

COMMANDS = ("run", "compare", "suite", "train", "score", "table", "plot", "list", "info")
RECORD = {"detector": "likelihood"}


def invoke(line: str, **environment: str) -> Result:
    return CliRunner().invoke(cli.app, line.split(), env=environment)


@pytest.fixture(autouse=True)
def _no_options_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's own OODBENCH_DATA and the like would be taken for options."""
    for name in [name for name in os.environ if name.startswith("OODBENCH_") and name != "OODBENCH_CACHE"]:
        monkeypatch.delenv(name)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """What the commands call, replaced by functions that only write down their arguments."""
    made: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def recorder(name: str, result: Any) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            made.append((name, arguments, keywords))
            return result

        return call

    replaced: dict[str, dict[str, Any]] = {
        "benchmark": {"run_records": [RECORD]},
        "scoring": {"score_images": SimpleNamespace(to_csv=lambda index: "image,score\n0,1.5\n")},
        "comparing": {"compare": [{"p": 0.5}]},
        "pictures": {"plot": [Path("a.png"), Path("b.png")]},
        "report": {"table": "the table\n", "comparison_table": "the tests\n", "suite_table": "the suite\n"},
        "suites.running": {"run_suite": ("the paper", [RECORD])},
        "records": {"read_records": [RECORD]},
        "training": {"train": SimpleNamespace(entry={"file": "digits/glow.safetensors", "bits_per_dim": 1.5})},
        "plugins": {"load_plugins": None},
    }
    for module, functions in replaced.items():
        double = ModuleType(f"oodbench.{module}")
        for name, result in functions.items():
            setattr(double, name, recorder(name, result))
        monkeypatch.setitem(sys.modules, f"oodbench.{module}", double)
    return made


DEFAULTS = {
    "in_": None, "out": None, "models": None, "detectors": None, "data_root": None, "results": Path("results"),
    "seed": 0, "device": "auto", "batch_size": "auto", "precision": "float32", "limit": None, "plugins": [],
    "weights": None,
}  # fmt: skip


def test_run_without_arguments_leaves_everything_to_the_benchmark(calls: list[Any]) -> None:
    result = invoke("run")
    assert result.exit_code == 0, result.output
    assert calls == [
        ("run_records", (), DEFAULTS | {"scores": None, "seeds": []}),
        ("table", ([RECORD],), {"format": "table"}),
    ]
    assert result.stdout == "the table\n"


def test_run_hands_every_option_on(calls: list[Any]) -> None:
    result = invoke(
        "run --in cifar10 --out svhn --out cifar10+vflip --model glow --model vae --detector likelihood "
        "--data-root d --results r --seed 3 --device cuda:1 --batch-size 64 --precision bfloat16 --limit 9 "
        "--plugin a.py --plugin b.py --weights w --scores s --format latex"
    )
    assert result.exit_code == 0, result.output
    assert calls[0][2] == {
        "in_": ["cifar10"], "out": ["svhn", "cifar10+vflip"], "models": ["glow", "vae"], "detectors": ["likelihood"],
        "data_root": Path("d"), "results": Path("r"), "seed": 3, "device": "cuda:1", "batch_size": 64,
        "precision": "bfloat16", "limit": 9, "plugins": [Path("a.py"), Path("b.py")], "weights": Path("w"),
        "scores": Path("s"), "seeds": [],
    }  # fmt: skip
    assert type(calls[0][2]["precision"]) is str
    assert calls[1][2] == {"format": "latex"}


def test_training_seeds_are_those_of_weights_and_not_of_noise(calls: list[Any]) -> None:
    assert invoke("run --seeds 0,1,2").exit_code == 0
    assert (calls[0][2]["seeds"], calls[0][2]["seed"]) == ([0, 1, 2], 0)


def test_options_come_from_the_environment_too(calls: list[Any]) -> None:
    result = invoke(
        "run", OODBENCH_IN="mnist", OODBENCH_OUT="kmnist omniglot", OODBENCH_DATA="root", OODBENCH_BATCH_SIZE="7",
        OODBENCH_PLUGIN="a.py:b.py", OODBENCH_SEEDS="4", OODBENCH_FORMAT="csv", OODBENCH_SCORES="s",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    changed = {"in_": ["mnist"], "out": ["kmnist", "omniglot"], "data_root": Path("root"), "batch_size": 7,
               "seeds": [4], "plugins": [Path("a.py"), Path("b.py")], "scores": Path("s")}  # fmt: skip
    assert calls[0][2] == DEFAULTS | changed
    assert calls[1][2] == {"format": "csv"}


def test_train_loads_plugins_first_and_says_what_came_out(calls: list[Any]) -> None:
    result = invoke("train --model glow --in digits --preset tiny --background --seed 2 --pretrained w --plugin p.py")
    assert result.exit_code == 0, result.output
    assert calls == [
        ("load_plugins", ([Path("p.py")],), {}),
        ("train", ("glow", "digits"), {"preset": "tiny", "background": True, "data_root": None, "device": "auto",
                                       "pretrained": Path("w"), "seed": 2}),
    ]  # fmt: skip
    assert result.stdout == "digits/glow.safetensors: 1.500 bits/dim on validation images\n"


def test_score_prints_a_csv_or_leaves_it_to_the_file(calls: list[Any]) -> None:
    result = invoke("score folder:scans --in cifar10 --model glow --detector typicality")
    assert result.exit_code == 0, result.output
    assert result.stdout == "image,score\n0,1.5\n"
    common = {key: DEFAULTS[key] for key in DEFAULTS.keys() - {"in_", "out", "models", "detectors", "results"}}
    assert calls[0][2] == common | {
        "images": "folder:scans", "dataset": "cifar10", "model": "glow", "detector": ["typicality"], "output": None,
    }  # fmt: skip
    assert invoke("score x --in cifar10 --model glow --output s.csv").stdout == ""
    assert calls[1][2]["output"] == Path("s.csv")


def test_compare_hands_every_option_on_and_prints_the_tests(calls: list[Any]) -> None:
    result = invoke(
        "compare --in cifar10 --out svhn --model glow --detector likelihood --detector typicality --against likelihood "
        "--limit 9 --seed 3 --format csv"
    )
    assert result.exit_code == 0, result.output
    assert result.stdout == "the tests\n"
    common = {key: value for key, value in DEFAULTS.items() if key != "results"} | {"limit": 9, "seed": 3}
    assert calls == [
        ("compare", (), common | {"in_": ["cifar10"], "out": ["svhn"], "models": ["glow"],
                                  "detectors": ["likelihood", "typicality"], "against": "likelihood"}),
        ("comparison_table", ([{"p": 0.5}],), {"format": "csv"}),
    ]  # fmt: skip


def test_suite_hands_every_option_on_and_prints_one_table(calls: list[Any]) -> None:
    result = invoke("suite nalisnick2019 --in cifar10 --model glow --train --limit 9 --results r --format latex")
    assert result.exit_code == 0, result.output
    assert result.stdout == "the suite\n"
    common = {key: value for key, value in DEFAULTS.items() if key not in ("in_", "out", "models", "detectors")}
    assert calls == [
        (
            "run_suite",
            ("nalisnick2019", ["cifar10"], ["glow"]),
            common | {"train": True, "seeds": [], "limit": 9, "results": Path("r")},
        ),
        ("suite_table", ("the paper", [RECORD]), {"format": "latex"}),
    ]


def test_list_shows_the_suites() -> None:
    rows = {row["name"]: row for row in json.loads(invoke("list suites --json").stdout)}
    assert "cifar10 → svhn cifar100" in rows["nalisnick2019"]["pairs"]
    assert "waic" in rows["glazunov2022"]["detectors"]


def test_table_reads_records_and_prints_them(calls: list[Any]) -> None:
    result = invoke(
        "table --results r --in mnist --out kmnist --model vae --detector elbo --format markdown --metric fpr95"
    )
    assert result.stdout == "the table\n"
    assert calls == [
        ("read_records", (Path("r"),), {"in_": "mnist", "models": ["vae"], "outs": ["kmnist"], "detectors": ["elbo"]}),
        ("table", ([RECORD],), {"format": "markdown", "metric": "fpr95", "rows": "auto", "published": True}),
    ]
    invoke("table --no-published")
    assert calls[-1][2]["published"] is False


def test_plot_prints_the_pictures_paths(calls: list[Any]) -> None:
    assert invoke("plot --in mnist").stdout == "a.png\nb.png\n"
    assert calls[0][2] == DEFAULTS | {"in_": ["mnist"], "picture": "png"}
    invoke("plot --in mnist --picture svg")
    assert calls[1][2]["picture"] == "svg"
    assert invoke("plot --in mnist --picture gif").exit_code == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_with_examples_that_parse(command: str, calls: list[Any], tmp_path: Path) -> None:
    text = invoke(f"{command} --help").stdout
    assert text.count("Examples:\n") == 1
    examples = text.split("Examples:\n")[1].strip().splitlines()
    assert examples
    for example in examples:
        words = example.split(" > ")[0].split()
        assert words[:2] == ["oodbench", command]
        if command not in ("list", "info"):
            result = invoke(" ".join(words[1:]))
            assert result.exit_code == 0, result.output
    assert calls or command in ("list", "info")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_an_environment_variable_of_its_name(command: str) -> None:
    from typer.main import get_command

    for option in get_command(cli.app).commands[command].params:  # type: ignore[attr-defined]
        if option.param_type_name == "option" and option.name != "help":
            variables = [option.envvar] if isinstance(option.envvar, str) else option.envvar
            assert f"OODBENCH_{option.opts[0].removeprefix('--').replace('-', '_').upper()}" in variables


WRONG = {
    "no such command": "rum",
    "no such option": "run --modle glow",
    "a batch of none": "run --batch-size 0",
    "a batch of words": "run --batch-size many",
    "no seeds": "run --seeds 1,two",
    "a negative seed": "run --seed -1",
    "a limit of none": "run --limit 0",
    "an unknown format": "run --format html",
    "train without a model": "train --in mnist",
    "score without images": "score --in mnist --model glow",
    "an unknown kind": "list colours",
    "an unknown suite": "suite nowhere2020",
    "a suite that is not there": "suite nowhere.toml",
    "a plugin that is not there": "list models --plugin nowhere.py",
}


@pytest.mark.parametrize("line", WRONG.values(), ids=WRONG)
def test_wrong_input_exits_with_2_and_no_traceback(line: str) -> None:
    result = invoke(line)
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert "rror: " in result.stderr


def stopped_by(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> Result:
    def stop(**_: Any) -> None:
        raise error

    double = ModuleType("oodbench.benchmark")
    double.run_records = stop  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "oodbench.benchmark", double)
    report = ModuleType("oodbench.report")
    report.table = lambda records, format: ""  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "oodbench.report", report)
    return invoke("run")


def test_an_oodbench_error_is_one_sentence_and_exit_code_2(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    result = stopped_by(monkeypatch, OodbenchError("Unknown data set 'svnh': did you mean svhn?"))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "error: Unknown data set 'svnh': did you mean svhn?\n"


def test_a_file_that_the_system_refuses_is_one_sentence_and_exit_code_2(monkeypatch: pytest.MonkeyPatch) -> None:
    result = stopped_by(monkeypatch, PermissionError(13, "Permission denied", "/locked/in"))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "error: Permission denied: /locked/in: mend it, or name another place.\n"
    assert isinstance(stopped_by(monkeypatch, OSError("not of a file")).exception, OSError)


def test_an_interrupt_says_how_to_continue(monkeypatch: pytest.MonkeyPatch) -> None:
    result = stopped_by(monkeypatch, KeyboardInterrupt())
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr == "interrupted; run the same command again to continue\n"


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(stopped_by(monkeypatch, ZeroDivisionError()).exception, ZeroDivisionError)


@pytest.mark.parametrize("kind", ["models", "detectors", "statistics"])
def test_list_as_json_holds_what_the_text_shows(kind: str) -> None:
    rows = json.loads(invoke(f"list {kind} --json").stdout)
    lines = invoke(f"list {kind}").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["name", *(row["name"] for row in rows)]
    assert all(row["what"] and row["from"] == "oodbench" for row in rows)


def test_list_shows_needs_and_forward_columns() -> None:
    detectors = {row["name"]: row for row in json.loads(invoke("list detectors --json").stdout)}
    assert detectors["typicality"]["needs"] == ["log_px"]
    assert detectors["typicality"]["groups"] == [1, 2, 10, 25]
    statistics = {row["name"]: row["needs"] for row in json.loads(invoke("list statistics --json").stdout)}
    assert statistics["log_px@background"] == "a model"
    assert statistics["complexity_bits"] == "images"


def test_list_and_info_show_a_plugin() -> None:
    example = Path(__file__).resolve().parent / "plugins" / "my_score.py"
    program = [sys.executable, "-m", "oodbench.cli"]  # of its own: what a plugin registers stays
    listed = subprocess.run(
        [*program, "list", "detectors", "--plugin", example], capture_output=True, text=True, check=True
    )
    (line,) = (line for line in listed.stdout.splitlines() if line.startswith("my_score "))
    assert line.split()[:4] == ["my_score", "brightness", "1", str(example)]
    told = subprocess.run([*program, "info", "--plugin", example], capture_output=True, text=True, check=True).stdout
    assert f"{example}: detector my_score, statistic brightness" in told
    assert {line.split()[0] for line in told.splitlines()} >= {
        "oodbench",
        "python",
        "torch",
        "devices",
        "cache",
        "pretrained",
    }


def test_models_are_listed_with_a_plugin_that_builds_on_a_builtin_detector_and_one_that_takes_its_name(
    tmp_path: Path,
) -> None:
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text(
        "from oodbench.models.flows.glow import Glow\n"
        "from oodbench.registry import DETECTORS, register\n"
        "register.model('mine')(type('Mine', (Glow,), {'__doc__': DETECTORS.get('likelihood').__name__}))\n"
    )
    bad.write_text(
        "from oodbench.registry import DETECTORS, register\n"
        "from oodbench import Detector\n"
        "register.detector('likelihood')(type('Theirs', (Detector,), {'needs': ('log_px',)}))\n"
    )
    program = [sys.executable, "-m", "oodbench.cli", "list", "models"]
    listed = subprocess.run([*program, "--plugin", good, "--plugin", bad], capture_output=True, text=True, check=True)
    assert any(line.startswith("mine ") for line in listed.stdout.splitlines())
    assert str(bad) in listed.stderr
    assert "exists already" in listed.stderr
    assert str(good) not in listed.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["list", "models"]])
def test_help_and_list_import_nothing_heavy_and_answer_at_once(arguments: list[str]) -> None:
    code = (
        "import sys; from oodbench.cli import app; app(sys.argv[1:], standalone_mode=False); "
        "heavy = {'numpy', 'torch', 'sklearn', 'matplotlib', 'pandas', 'scipy', 'rich'}; "
        "print(*(heavy & set(sys.modules)), file=sys.stderr)"
    )
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert result.stdout
        assert result.stderr.strip() == ""
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    # Processor time, and the fastest of three: a machine that is busy with something else slows single ones.
    assert min(seconds) < 0.5


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "ascii", "utf-8"])
def test_a_table_survives_an_output_of_a_small_alphabet(encoding: str) -> None:
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    code = "from oodbench.cli import main; main()"
    listed = subprocess.run(
        [sys.executable, "-c", code, "list", "suites"], capture_output=True, check=True, env=environment
    )
    assert "cifar10 → svhn" in listed.stdout.decode("utf-8")
    told = subprocess.run([sys.executable, "-c", code, "run", "--in", "digits→"], capture_output=True, env=environment)
    assert (told.returncode, "Traceback" in told.stderr.decode()) == (2, False)
    assert "did you mean digits? Or name data sets with --out" in told.stderr.decode()
