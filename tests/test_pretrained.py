"""Weights are found where they should be, are what their index says, and no index row is ever lost."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from at_once import two_at_once

from oodbench import pretrained as room
from oodbench.errors import OodbenchError
from oodbench.files import sha256
from oodbench.pretrained import available_models, entries, load_model, pretrained_folders, save_model
from oodbench.registry import MODELS

CONFIG = {"layers": 1, "filters": 2}


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, and no other folder with weights: not even this checkout's."""
    monkeypatch.setenv("OODBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OODBENCH_PRETRAINED", raising=False)
    monkeypatch.setattr(room, "__file__", str(tmp_path / "checkout" / "oodbench" / "pretrained.py"))
    return tmp_path


def save(folder: Path | None = None, value: float = 0.5, **changed: Any) -> room.TrainedModel:
    """Saves a small PixelCNN with all weights equal to `value`."""
    entry = {
        "dataset": "toys", "model": "pixelcnn", "role": "model", "preset": "small", "seed": 0, "shape": [1, 4, 4],
        "recipe": {"steps": 1, "config": CONFIG}, "data_fingerprint": "0", "undertrained": False,
    }  # fmt: skip
    module = MODELS.get("pixelcnn")((1, 4, 4), **CONFIG)
    for parameter in module.parameters():
        parameter.data.fill_(value)
    return save_model(module, entry | changed, folder)


def value_of(model: room.TrainedModel) -> float:
    return float(next(model.module.parameters()).detach().flatten()[0])


def message_of(function: Any, *arguments: Any, **keywords: Any) -> str:
    """The sentence of the `OodbenchError` that the call raises."""
    with pytest.raises(OodbenchError) as caught:
        function(*arguments, **keywords)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith((".", "?"))
    return message


def test_saved_weights_are_found_by_name_and_data_set(places):
    saved = save()
    assert (places / "cache" / "pretrained" / "toys" / "pixelcnn.safetensors").is_file()
    found = load_model("pixelcnn", "toys")
    assert (found.weights, found.entry, found.config) == (saved.weights, saved.entry, CONFIG)
    assert (found.name, found.dataset) == ("pixelcnn", "toys")
    assert not found.module.training
    assert available_models("toys") == ["pixelcnn"]
    assert available_models("others") == []
    assert available_models("toys", role="background") == []


def test_the_named_folder_comes_before_own_trainings_and_these_before_the_checkout(places, monkeypatch):
    save(places / "checkout" / "pretrained", 0.25)
    assert value_of(load_model("pixelcnn", "toys")) == 0.25
    save(None, 0.5)
    assert value_of(load_model("pixelcnn", "toys")) == 0.5
    monkeypatch.setenv("OODBENCH_PRETRAINED", str(places / "mine"))
    assert value_of(load_model("pixelcnn", "toys")) == 0.5  # there is nothing yet
    save(None, 0.75)
    assert (places / "mine" / "index.json").is_file()
    assert value_of(load_model("pixelcnn", "toys")) == 0.75
    assert len(pretrained_folders()) == 3
    assert len(entries("toys")) == 3


def test_a_tiny_training_of_ones_own_does_not_stand_for_the_usual_weights_unless_its_folder_is_named(
    places, monkeypatch
):
    save(places / "checkout" / "pretrained", 0.25)
    save(None, 0.5, preset="tiny")
    assert value_of(load_model("pixelcnn", "toys")) == 0.25
    assert value_of(load_model("pixelcnn", "toys", preset="tiny")) == 0.5
    monkeypatch.setenv("OODBENCH_PRETRAINED", str(places / "cache" / "pretrained"))
    assert value_of(load_model("pixelcnn", "toys")) == 0.5


def test_weights_of_ones_own_images_belong_to_their_place_not_to_how_it_was_typed(places, monkeypatch):
    for number, project in enumerate(("first", "second")):
        (places / project).mkdir()
        monkeypatch.chdir(places / project)
        save(None, number, dataset="folder:images")
    assert value_of(load_model("pixelcnn", "folder:images")) == 1
    assert value_of(load_model("pixelcnn", f"folder:{places / 'second' / 'images'}")) == 1
    assert value_of(load_model("pixelcnn", "folder:../first/images")) == 0
    assert available_models("folder:./images") == ["pixelcnn"]


def test_roles_presets_and_seeds_lie_side_by_side_and_the_usual_one_comes_first(places):
    variants = [{"preset": "paper"}, {"seed": 1}, {"role": "background"}, {"preset": "tiny"}, {}]
    for number, changed in enumerate(variants):
        save(None, number, **changed)
    assert len(entries()) == 5
    assert value_of(load_model("pixelcnn", "toys")) == 4
    assert value_of(load_model("pixelcnn", "toys", preset="paper")) == 0
    assert value_of(load_model("pixelcnn", "toys", preset="tiny")) == 3
    assert value_of(load_model("pixelcnn", "toys", role="background")) == 2
    assert value_of(load_model("pixelcnn", "toys", preset="small")) == 4


def test_weights_of_another_training_seed_are_found_by_it(places):
    for number, seed in enumerate((0, 1, 2)):
        save(places / "w", number, seed=seed)
    save(places / "w", 9, seed=1, role="background")
    asked = {"weights": places / "w"}
    assert [value_of(load_model("pixelcnn", "toys", seed=seed, **asked)) for seed in (None, 0, 1, 2)] == [0, 0, 1, 2]
    assert value_of(load_model("pixelcnn", "toys", role="background", seed=1, **asked)) == 9
    assert available_models("toys", places / "w", seed=2) == ["pixelcnn"]
    assert available_models("toys", places / "w", seed=3) == []
    assert available_models("toys", places / "w", "background", seed=0) == []
    assert "--in toys --seed 3`" in message_of(load_model, "pixelcnn", "toys", seed=3, **asked)


def test_saving_again_replaces_the_row_and_keeps_the_others(places):
    save(places / "w", 1, model="pixelcnn")
    save(places / "w", 2, dataset="others")
    save(places / "w", 3)
    rows = json.loads((places / "w" / "index.json").read_text())["weights"]
    assert [row["file"] for row in rows] == ["others/pixelcnn.safetensors", "toys/pixelcnn.safetensors"]
    assert value_of(load_model("pixelcnn", "toys", weights=places / "w")) == 3


def test_data_sets_that_are_paths_have_files_of_their_own(places):
    names = ["folder:/a/b", "folder:/a_b", "npz:../x.npz", "cifar10+hflip"]
    for number, name in enumerate(names):
        save(places / "w", number, dataset=name)
    for number, name in enumerate(names):
        found = load_model("pixelcnn", name, weights=places / "w")
        assert value_of(found) == number
        assert (places / "w" / found.entry["file"]).resolve().parent.parent == places / "w"


def test_weights_may_be_named_by_folder_or_file_wherever_one_stands(places, monkeypatch):
    save(places / "w", 1)
    save(places / "w", 2, seed=7)
    save(None, 3)
    file = places / "w" / "toys" / "pixelcnn-seed7.safetensors"
    assert value_of(load_model("pixelcnn", "toys", weights=places / "w")) == 1
    assert value_of(load_model("pixelcnn", "toys", weights=file)) == 2
    assert available_models("toys", places / "w") == ["pixelcnn"]
    assert available_models("toys", file, role="background") == []
    monkeypatch.chdir(places / "w" / "toys")
    assert value_of(load_model("pixelcnn", "toys", weights=Path("pixelcnn-seed7.safetensors"))) == 2
    assert value_of(load_model("pixelcnn", "toys", weights=Path("pixelcnn.safetensors"))) == 1


def test_a_folder_without_an_index_is_told(places):
    assert "index.json" in message_of(load_model, "pixelcnn", "toys", weights=places / "nowhere")


@pytest.mark.parametrize(
    ("asked", "command"),
    [
        ({}, "`oodbench train --model pixelcnn --in photos`"),
        ({"role": "background"}, "`oodbench train --model pixelcnn --in photos --background`"),
        ({"preset": "paper"}, "`oodbench train --model pixelcnn --in photos --preset paper`"),
    ],
)
def test_missing_weights_are_told_with_the_command_that_makes_them(asked, command):
    save()
    assert command in message_of(load_model, "pixelcnn", "photos", **asked)


def test_an_unknown_model_is_told_with_the_nearest_ones():
    assert "did you mean pixelcnn" in message_of(load_model, "pixelcn", "toys")


def test_a_file_that_was_changed_is_refused(places):
    save()
    file = places / "cache" / "pretrained" / "toys" / "pixelcnn.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert "SHA-256" in message_of(load_model, "pixelcnn", "toys")
    file.write_bytes(b"")
    assert "SHA-256" in message_of(load_model, "pixelcnn", "toys")


def test_a_row_whose_file_is_gone_does_not_count(places):
    save(places / "w")
    (places / "w" / "toys" / "pixelcnn.safetensors").unlink()
    assert available_models("toys", places / "w") == []
    assert "oodbench train" in message_of(load_model, "pixelcnn", "toys", weights=places / "w")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"weights": 3}', '{"weights": [1]}', '{"weights": [{"file": "a"}]}', "{}", '"weights"']
)
def test_an_index_that_cannot_be_read_is_told_and_never_overwritten(places, text):
    folder = places / "cache" / "pretrained"
    folder.mkdir(parents=True)
    (folder / "index.json").write_text(text)
    for function, arguments in ((load_model, ("pixelcnn", "toys")), (available_models, ("toys",)), (save, ())):
        assert str(folder / "index.json") in message_of(function, *arguments)
    assert (folder / "index.json").read_text() == text


def test_weights_that_do_not_fit_the_model_are_told(places):
    save(recipe={"steps": 1, "config": CONFIG})
    index = places / "cache" / "pretrained" / "index.json"
    for wrong in ('"filters": 4', '"width": 2'):
        index.write_text(index.read_text().replace('"filters": 2', wrong))
        assert "does not fit" in message_of(load_model, "pixelcnn", "toys")
        index.write_text(index.read_text().replace(wrong, '"filters": 2'))
    assert load_model("pixelcnn", "toys")


def test_loading_leaves_torchs_global_generator_alone():
    save()
    before = torch.get_rng_state()
    load_model("pixelcnn", "toys")
    assert torch.equal(torch.get_rng_state(), before)


def test_two_processes_that_write_one_index_at_once_lose_nothing(places):
    folder = places / "w"
    folder.mkdir()
    two_at_once("from test_pretrained import save", "for n in range(15): save(folder, dataset=f'{own}{n}')", folder)
    rows = json.loads((folder / "index.json").read_text())["weights"]
    assert {row["dataset"] for row in rows} == {f"{name}{number}" for name in "ab" for number in range(15)}
    assert len(rows) == 30
    assert not list(folder.glob(".*.tmp"))
    for row in rows[::7]:
        load_model("pixelcnn", row["dataset"], weights=folder)


def test_one_model_saved_twice_at_once_leaves_weights_that_agree_with_the_index(places, monkeypatch):
    others: list[threading.Thread] = []

    def hash_and_let_the_other_save(path: Path) -> str:
        digest = sha256(path)
        if not others:  # between the first one's file and its row, the second one tries to save all of its own
            others.append(threading.Thread(target=save, args=(places / "w", 0.75)))
            others[0].start()
            others[0].join(1.0)
        return digest

    monkeypatch.setattr(room, "sha256", hash_and_let_the_other_save)
    assert value_of(save(places / "w", 0.25)) == 0.25
    others[0].join()
    assert value_of(load_model("pixelcnn", "toys", weights=places / "w")) == 0.75


def test_an_index_that_cannot_be_read_leaves_the_weights_beside_it(places):
    save(places / "w", 0.25)
    index = (places / "w" / "index.json").read_text()
    (places / "w" / "index.json").write_text("{")
    message_of(save, places / "w", 0.75)
    (places / "w" / "index.json").write_text(index)
    assert value_of(load_model("pixelcnn", "toys", weights=places / "w")) == 0.25


def test_weights_that_are_not_there_are_told_even_below_an_index(places):
    save(places / "mine")
    assert "There are no weights" in message_of(available_models, "toys", places / "mine" / "tyops")


def test_a_file_that_holds_no_weights_is_told(places: Path) -> None:
    save(places)
    index = places / "index.json"
    rows = json.loads(index.read_text())
    file = places / rows["weights"][0]["file"]
    file.write_bytes(b"no weights")
    rows["weights"][0]["sha256"] = sha256(file)
    index.write_text(json.dumps(rows))
    assert "does not fit" in message_of(load_model, "pixelcnn", "toys", weights=str(places))
