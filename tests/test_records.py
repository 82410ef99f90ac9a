"""Results files: what is written comes back, nothing is lost, nothing is mixed."""

import copy
import json

import numpy as np
import pytest
from at_once import two_at_once

from oodbench import records as module
from oodbench.errors import OodbenchError
from oodbench.records import folder_of, read_records, to_json, write_records


def make_record(detector="likelihood", group_size=1, seed=0, **changes):
    provenance = {
        "weights": "abcdef01" * 8,
        "data": {"in": "1" * 64, "out": "2" * 64},
        "adaptation": "as it is",
        "device": "cpu",
        "created": "2025-01-01",
    }
    return {
        "schema": 1,
        "in": "cifar10",
        "out": "svhn",
        "model": "glow",
        "preset": "small",
        "likelihood": "lower_bound",
        "detector": detector,
        "group_size": group_size,
        "seed": seed,
        "metrics": {"auroc": {"value": 0.5, "low": 0.4, "high": 0.6}},
        **changes,
        "provenance": provenance | changes.get("provenance", {}),
    }


def test_what_is_written_comes_back_flat(tmp_path):
    written = [make_record("likelihood"), make_record("typicality", 10), make_record("typicality", 2, seed=1)]
    path = write_records(tmp_path, written)
    assert path == tmp_path / "cifar10" / "glow" / "svhn.json"
    found = read_records(tmp_path)
    assert sorted(map(to_json, map(sort_keys, found))) == sorted(map(to_json, map(sort_keys, written)))


def sort_keys(record):
    return json.loads(json.dumps(record, sort_keys=True))


def test_shared_facts_stand_once_in_a_file(tmp_path):
    path = write_records(tmp_path, [make_record("likelihood"), make_record("typicality")])
    assert path.read_text().count("abcdef01" * 8) == 1
    assert path.read_text().count('"model"') == 1
    assert len(json.loads(path.read_text())["entries"]) == 2


def test_a_repetition_replaces_its_own_entry_only(tmp_path):
    write_records(tmp_path, [make_record(), make_record("typicality"), make_record("typicality", 10)])
    again = make_record("typicality", seconds=9.0, provenance={"device": "cuda", "created": "2026-01-01"})
    write_records(tmp_path, [again, make_record("typicality", seed=1)])
    found = {(r["detector"], r["group_size"], r["seed"]): r for r in read_records(tmp_path)}
    assert set(found) == {("likelihood", 1, 0), ("typicality", 1, 0), ("typicality", 10, 0), ("typicality", 1, 1)}
    assert found["typicality", 1, 0]["provenance"]["device"] == "cuda"
    assert found["likelihood", 1, 0]["provenance"]["device"] == "cpu"


def test_other_code_of_a_plugin_replaces_what_more_images_would_keep(tmp_path):
    write_records(tmp_path, [make_record(n_in=100, n_out=100, provenance={"plugin": "old"})])
    write_records(tmp_path, [make_record(n_in=50, n_out=50, provenance={"plugin": "old"})])
    assert read_records(tmp_path)[0]["n_in"] == 100
    write_records(tmp_path, [make_record(n_in=50, n_out=50, provenance={"plugin": "new"})])
    assert read_records(tmp_path)[0]["n_in"] == 50


def test_two_processes_that_write_one_pair_at_once_lose_nothing(tmp_path):
    imports = "from test_records import make_record, write_records"
    work = "for seed in range(40): write_records(folder / 'results', [make_record(own, seed=seed)])"
    two_at_once(imports, work, tmp_path)
    found = {(record["detector"], record["seed"]) for record in read_records(tmp_path / "results")}
    assert found == {(name, seed) for name in "ab" for seed in range(40)}


def test_a_repetition_changes_no_byte(tmp_path):
    written = [make_record("typicality"), make_record()]
    before = write_records(tmp_path, written).read_bytes()
    assert write_records(tmp_path, written[::-1]).read_bytes() == before


def test_other_weights_of_the_same_name_get_their_own_folder(tmp_path):
    first = write_records(tmp_path, [make_record()])
    other = make_record(preset="paper", provenance={"weights": "12345678" * 8})
    second = write_records(tmp_path, [other])
    assert second == tmp_path / "cifar10" / "glow@paper-12345678" / "svhn.json"
    # Another pair of the second model stays with it, though glow/ has no such file yet.
    third = write_records(tmp_path, [other | {"out": "cifar100"}])
    assert third.parent == second.parent
    assert write_records(tmp_path, [other | {"detector": "typicality"}]) == second
    assert write_records(tmp_path, [make_record("typicality")]) == first
    assert len(read_records(tmp_path, models=["glow"])) == 5


def test_other_images_of_the_same_name_get_their_own_file(tmp_path):
    first = write_records(tmp_path, [make_record()])
    for provenance in ({"data": {"in": "1" * 64, "out": "3" * 64}}, {"adaptation": "grey to RGB"}):
        other = make_record("typicality", provenance=provenance)
        path = write_records(tmp_path, [other])
        assert path.parent == first.parent
        assert path.name.startswith("svhn@")
        assert write_records(tmp_path, [other]) == path
    assert len(read_records(tmp_path, outs=["svhn"])) == 3


def test_models_without_weights_are_one_model(tmp_path):
    free = make_record("compressed_size", model="none", preset=None, provenance={"weights": None})
    assert write_records(tmp_path, [free]) == write_records(tmp_path, [free | {"detector": "pixel_knn"}])
    assert len(read_records(tmp_path)) == 2


def test_records_of_two_models_in_one_call_are_refused(tmp_path):
    for wrong in ([], [make_record(), make_record(model="vae")], [make_record(), make_record(out="mnist")]):
        with pytest.raises(ValueError, match="one pair"):
            write_records(tmp_path, wrong)


@pytest.mark.parametrize(
    "name",
    ["npz:/data/my set.npz", "folder:C:\\x", "..", ".", "../../escape", "cifar10+vflip", "ü", "a" * 400, "x/" * 300],
)
def test_any_name_is_a_safe_path_and_comes_back(tmp_path, name):
    results = tmp_path / "results"
    path = write_records(results, [make_record(out=name) | {"in": name}])
    assert path.resolve().parent.parent.parent == results.resolve()
    assert len(path.name) < 150
    assert all(character.isascii() and character not in ':\\*?"<>| ' for character in path.name)
    assert read_records(results, in_=name, outs=[name])[0]["out"] == name


def test_long_names_with_one_beginning_stay_apart(tmp_path):
    a, b = (write_records(tmp_path, [make_record(out="x" * 300 + end)]) for end in "ab")
    assert a != b


def test_filters_select_by_name(tmp_path):
    for out in ("svhn", "cifar100"):
        for model in ("glow", "vae"):
            write_records(tmp_path, [make_record(out=out, model=model)])
    assert len(read_records(tmp_path)) == 4
    assert [r["model"] for r in read_records(tmp_path, in_="cifar10", models=["vae"], outs=["svhn"])] == ["vae"]
    assert len(read_records(tmp_path, detectors="likelihood", outs="svhn")) == 2
    assert read_records(tmp_path / "nowhere", in_="mnist") == []


def test_a_name_that_no_record_has_is_told_with_the_nearest(tmp_path):
    write_records(tmp_path, [make_record(), make_record("typicality")])
    write_records(tmp_path, [make_record(out="cifar100", model="vae")])
    for wrong, near in [
        ({"in_": "cifar1"}, "'cifar1' as its 'in': did you mean cifar10"),
        ({"models": ["vae", "glw"]}, "'glw' as its 'model': did you mean glow"),
        ({"outs": ["svnh"]}, "'svnh' as its 'out': did you mean svhn"),
        ({"detectors": ["typical"]}, "'typical' as its 'detector': did you mean typicality"),
    ]:
        with pytest.raises(OodbenchError, match=near):
            read_records(tmp_path, **wrong)
    assert read_records(tmp_path, models=["vae"], outs=["svhn"]) == []  # both are there, but not together


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", "null", '{"schema": 1}', '{"schema": 1, "entries": [], "provenance": {}}', '{"schema": "x"}'],
)
def test_a_broken_file_is_named_in_one_sentence_and_left_alone(tmp_path, text):
    path = write_records(tmp_path, [make_record()])
    path.write_text(text)
    for action in (lambda: read_records(tmp_path), lambda: write_records(tmp_path, [make_record()])):
        with pytest.raises(OodbenchError, match=r"svhn\.json"):
            action()
    assert path.read_text() == text


def test_what_is_no_record_goes_beside_the_records_of_its_weights(tmp_path):
    mine, other = "abcdef01" * 8, "12345678" * 8
    # Nobody's folder is claimed by what cannot say whose it is.
    assert folder_of(tmp_path, "cifar10", "glow", "small", mine) == tmp_path / "cifar10" / "glow@small-abcdef01"
    path = write_records(tmp_path, [make_record()])
    assert folder_of(tmp_path, "cifar10", "glow", "small", mine) == path.parent
    assert folder_of(tmp_path, "cifar10", "glow", "small", other) == tmp_path / "cifar10" / "glow@small-12345678"
    assert folder_of(tmp_path, "cifar10", "none", None, None) == tmp_path / "cifar10" / "none"
    for strange in ("../x", "a/b"):
        assert folder_of(tmp_path, strange, "glow", strange, mine).resolve().parents[1] == tmp_path


def test_a_file_of_a_newer_oodbench_is_told_so(tmp_path):
    path = write_records(tmp_path, [make_record()])
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 2'))
    with pytest.raises(OodbenchError, match="newer"):
        read_records(tmp_path)


def test_a_write_that_dies_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = write_records(tmp_path, [make_record()])
    before = path.read_bytes()

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", die)  # all is written, nothing renamed yet
    with pytest.raises(KeyboardInterrupt):
        write_records(tmp_path, [make_record("typicality")])
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["svhn.json"]


def test_leftovers_of_a_killed_write_are_not_read(tmp_path):
    path = write_records(tmp_path, [make_record()])
    path.with_name(".svhn.json.x1.tmp").write_text("{")
    assert len(read_records(tmp_path)) == 1


def test_json_is_strict_and_knows_numpy(tmp_path):
    text = to_json(
        {"a": np.float32(0.5), "b": [float("nan"), np.inf], "c": np.arange(2), "d": np.bool_(True), "e": tmp_path}
    )
    parsed = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert parsed == {"a": 0.5, "b": [None, None], "c": [0, 1], "d": True, "e": str(tmp_path)}


def test_records_given_are_not_changed(tmp_path):
    record = make_record()
    before = copy.deepcopy(record)
    write_records(tmp_path, [record])
    assert record == before
    assert record["schema"] == module.SCHEMA
