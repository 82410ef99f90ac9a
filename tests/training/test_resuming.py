"""A run that was stopped anywhere continues to the very same weights."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

import oodbench
from oodbench.registry import MODELS
from oodbench.training import Recipe, train
from oodbench.training import trainer as room
from oodbench.training.checkpoint import _checksum
from oodbench.training.recipe import load_recipe

STEPS = 12
RECIPES = {
    "glow": Recipe(STEPS, 16, 1e-3, 4, config={"levels": 2, "steps": 1, "hidden": 8}),
    "vae": Recipe(STEPS, 16, 1e-3, 4, weight_decay=0.1, mutation=0.2, config={"latents": 2, "hidden": 8, "draws": 2}),
    "pixelcnn": Recipe(STEPS, 16, 1e-3, 4, precision="bfloat16", config={"layers": 1, "filters": 4}),
}
OF_DECODER = {
    "config": load_recipe("vae", "digits").config,
    "members": 2,
    "part": "decoder",
}  # of the weights that ship
for outer, options in {"sghmc": {}, "bbb": {}, "swag": {"rank": 3, "every": 2}}.items():
    RECIPES[f"{outer}(vae)"] = Recipe(STEPS, 16, 1e-3, 4, config=OF_DECODER | options)


def run(name: str, folder: Path):
    return train(name, "digits", recipe=RECIPES[name], pretrained=folder, progress=False)


def measured(trained):
    """The curve without its seconds."""
    return [(step, bits) for step, _, bits in trained.entry["curve"]]


@pytest.fixture
def checkpoint_every_step(monkeypatch):
    monkeypatch.setattr(room, "CHECKPOINT_SECONDS", 0.0)


class Killed(BaseException):
    pass


def run_until(stop: int, name: str, folder: Path, patch: pytest.MonkeyPatch, last_saved: int = STEPS) -> None:
    """A run that is stopped before step `stop`, its last checkpoint written after `last_saved` steps."""
    save, step = room.save_checkpoint, room._Run.step

    def save_until(*arguments):
        if arguments[-1]["step"] <= last_saved:
            save(*arguments)

    def step_until(self, number):
        if number == stop:
            raise Killed
        return step(self, number)

    with patch.context() as patch:
        patch.setattr(room, "save_checkpoint", save_until)
        patch.setattr(room._Run, "step", step_until)
        with pytest.raises(Killed):
            run(name, folder)


@pytest.mark.parametrize("name", RECIPES)
def test_a_stopped_run_ends_with_the_weights_of_one_that_was_not(
    name, tmp_path, cache, checkpoint_every_step, monkeypatch, capsys
):
    whole = run(name, tmp_path / "whole")
    run_until(4, name, tmp_path / "stopped", monkeypatch, last_saved=3)  # a step that no checkpoint holds is done again
    run_until(9, name, tmp_path / "stopped", monkeypatch)
    assert not (tmp_path / "stopped").exists()
    capsys.readouterr()
    resumed = run(name, tmp_path / "stopped")
    assert f"continuing at step 9 of {STEPS}" in capsys.readouterr().err
    assert resumed.weights == whole.weights  # the file's hash: bit for bit
    assert measured(resumed) == measured(whole)
    assert list((cache / "checkpoints").iterdir()) == []


KILLED_RUN = """
import sys, time
from pathlib import Path
import torch
import oodbench.training.trainer as room
torch.set_num_threads(int(sys.argv[3]))
room.CHECKPOINT_SECONDS = 0.0
step = room._Run.step
def slow(self, number):
    time.sleep(0.3 if number >= 3 else 0)
    return step(self, number)
room._Run.step = slow
sys.path.insert(0, sys.argv[1])
from test_resuming import run
run("glow", Path(sys.argv[2]))
"""


def step_of(checkpoints: Path) -> int:
    """The step of the only checkpoint in a folder, 0 if there is none yet."""
    for path in checkpoints.glob("[!.]*.safetensors"):
        try:
            with safe_open(path, framework="pt") as file:
                return room.json.loads(file.metadata()["progress"])["step"]
        except (FileNotFoundError, SafetensorError):
            pass
    return 0


def test_an_interrupted_run_continues_at_the_step_where_it_was(tmp_path, cache, monkeypatch, capsys):
    step = room._Run.step

    def interrupted(self, number):
        loss = step(self, number)
        if number == 4:
            os.kill(os.getpid(), signal.SIGINT)  # within a step, which ends
            time.sleep(0.01)
        return loss

    with monkeypatch.context() as patch:
        patch.setattr(room._Run, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run("glow", tmp_path / "stopped")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    resumed = run("glow", tmp_path / "stopped")
    assert f"continuing at step 5 of {STEPS}" in capsys.readouterr().err
    assert resumed.weights == run("glow", tmp_path / "whole").weights


def test_a_second_interrupt_does_not_wait(tmp_path, cache, monkeypatch):
    def stuck(self, number):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
        pytest.fail("it was not interrupted")

    monkeypatch.setattr(room._Run, "step", stuck)
    with pytest.raises(KeyboardInterrupt):
        run("glow", tmp_path / "stopped")


def test_a_run_killed_by_the_system_ends_with_the_same_weights(tmp_path, cache, checkpoint_every_step, capsys):
    environment = os.environ | {"PYTHONPATH": str(Path(oodbench.__file__).parents[1])}
    arguments = [str(Path(__file__).parent), str(tmp_path / "killed"), str(torch.get_num_threads())]
    process = subprocess.Popen([sys.executable, "-c", KILLED_RUN, *arguments], env=environment)
    try:
        deadline = time.monotonic() + 120
        while step_of(cache / "checkpoints") < 4:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed").exists()
    resumed = run("glow", tmp_path / "killed")
    assert "continuing at step" in capsys.readouterr().err
    whole = run("glow", tmp_path / "whole")
    assert "continuing" not in capsys.readouterr().err
    assert resumed.weights == whole.weights


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def change_the_step(path: Path) -> None:
    data = path.read_bytes()
    assert data.count(b'\\"step\\": 5') == 1
    path.write_bytes(data.replace(b'\\"step\\": 5', b'\\"step\\": 4'))


def drop_metadata(path: Path) -> None:
    path.write_bytes(save(load_file(path)))


def name_a_weight_otherwise(path: Path) -> None:
    """A whole checkpoint, but of a version of the model that had other parameters."""
    with safe_open(path, framework="pt") as file:
        progress = file.metadata()["progress"]
    tensors = load_file(path)
    tensors["module.of.old"] = tensors.pop(next(key for key in tensors if key.startswith("module.")))
    path.write_bytes(save(tensors, {"progress": progress, "sha256": _checksum(tensors, progress)}))


@pytest.mark.parametrize("damage", [cut, flip_a_bit, change_the_step, drop_metadata, name_a_weight_otherwise])
def test_a_damaged_checkpoint_is_told_and_the_run_starts_anew(
    damage, tmp_path, cache, checkpoint_every_step, monkeypatch, capsys
):
    whole = run("vae", tmp_path / "whole")
    run_until(5, "vae", tmp_path / "again", monkeypatch)
    (checkpoint,) = (cache / "checkpoints").iterdir()
    damage(checkpoint)
    capsys.readouterr()
    assert run("vae", tmp_path / "again").weights == whole.weights
    error = capsys.readouterr().err
    assert error.count(f"cannot continue from {checkpoint}") == 1
    assert "continuing at step" not in error


def test_a_checkpoint_is_continued_by_its_own_run_only(tmp_path, cache, checkpoint_every_step, monkeypatch, capsys):
    run_until(5, "vae", tmp_path, monkeypatch)
    changed = Recipe(**(RECIPES["vae"].as_dict() | {"learning_rate": 2e-3}))
    train("vae", "digits", recipe=changed, pretrained=tmp_path, progress=False)
    train("vae", "digits", recipe=RECIPES["vae"], seed=1, pretrained=tmp_path, progress=False)
    monkeypatch.setattr(MODELS, "version_of", lambda name: "of a plugin's file")
    run("vae", tmp_path)
    assert "continuing" not in capsys.readouterr().err
    assert len(list((cache / "checkpoints").iterdir())) == 1


def test_a_run_killed_between_its_last_step_and_its_index_row_only_writes_the_row(
    tmp_path, checkpoint_every_step, monkeypatch
):
    whole = run("vae", tmp_path / "whole")

    def fail(*arguments):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(room, "save_model", fail)
        with pytest.raises(Killed):
            run("vae", tmp_path / "again")
    monkeypatch.setattr(room._Run, "step", fail)
    again = run("vae", tmp_path / "again")
    assert again.weights == whole.weights
    assert measured(again) == measured(whole)
