"""Cached columns survive damage, full disks and other processes."""

import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from factorised import Factorised, run, some_images

from oodbench.engine.cache import Chunk, Entry, key_of
from oodbench.errors import OodbenchError


def chunk(*rows, seconds=1.0):
    numbers = np.array(rows, np.int64)
    columns = {"a": numbers * 0.5, "b": np.stack([numbers, -numbers], 1).astype(np.float32)}
    return Chunk(numbers, np.full(len(rows), seconds), columns)


def files(folder):
    return sorted(folder.rglob("*.safetensors"))


def damage(path, kind):
    content = path.read_bytes()
    changed = bytearray(content)
    changed[-5] ^= 1
    path.write_bytes({"bit": bytes(changed), "truncated": content[: len(content) // 2], "empty": b""}[kind])


def test_chunks_come_back_as_they_were_and_in_row_order(tmp_path):
    entry = Entry(tmp_path, {"x": 1}, {})
    assert entry.read() is None
    entry.append(chunk(5, 3))
    entry.append(chunk(0, 3, seconds=2.0))
    known = entry.read()
    assert known.rows.tolist() == [0, 3, 5]
    np.testing.assert_array_equal(known.columns["a"], [0, 1.5, 2.5])
    np.testing.assert_array_equal(known.take(np.array([5, 0])).columns["b"], [[5, -5], [0, 0]])
    assert known.columns["b"].dtype == np.float32
    assert json.loads((entry.folder / "key.json").read_text())["facts"] == {"x": 1}


def test_the_key_is_that_of_canonical_json():
    assert key_of({"a": 1, "b": (1, 2)}) == key_of({"b": [1, 2], "a": np.int64(1)})
    assert key_of({"a": 1}) != key_of({"a": 2}) != key_of({"a": "2"})
    with pytest.raises(OodbenchError, match="plain data"):
        key_of({"a": object()})


@pytest.mark.parametrize("kind", ["bit", "truncated", "empty"])
def test_a_damaged_chunk_is_named_dropped_and_computed_again(tmp_path, kind, capsys):
    before = run(some_images(), tmp_path)
    (path,) = files(tmp_path)
    damage(path, kind)
    again = run(some_images(), tmp_path)
    assert str(path) in capsys.readouterr().err
    assert again.computed == 150
    for name in Factorised.columns:
        np.testing.assert_array_equal(again.columns[name], before.columns[name])
    assert run(some_images(), tmp_path).computed == 0


def test_of_many_chunks_only_the_damaged_one_is_lost(tmp_path):
    entry = Entry(tmp_path, {}, {})
    for row in range(4):
        entry.append(chunk(row))
    damage(files(tmp_path)[2], "bit")
    assert len(entry.read().rows) == 3
    assert len(files(tmp_path)) == 3


def test_a_chunk_under_a_wrong_name_or_that_is_no_chunk_is_dropped(tmp_path):
    entry = Entry(tmp_path, {}, {})
    entry.append(chunk(1))
    (path,) = files(tmp_path)
    path.rename(path.with_stem("0" * 64))
    (entry.folder / f"{'1' * 64}.safetensors").write_bytes(b"\x80\x04K\x01.")  # a pickle
    assert entry.read() is None
    assert files(tmp_path) == []


def test_a_chunk_that_cannot_be_read_now_is_computed_again_and_stays(tmp_path, monkeypatch, capsys):
    run(some_images(), tmp_path)
    (path,) = files(tmp_path)

    def denied(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    with monkeypatch.context() as context:
        context.setattr(Path, "read_bytes", denied)
        assert run(some_images(), tmp_path).computed == 150
    assert f"cannot read the cached columns in {path} (Permission denied)" in capsys.readouterr().err
    assert path in files(tmp_path)
    assert run(some_images(), tmp_path).computed == 0


def test_a_finished_run_leaves_one_chunk_with_everything(tmp_path):
    for n in (20, 60, 150):
        run(some_images().limit(n), tmp_path)
    assert len(files(tmp_path)) == 1
    assert run(some_images(), tmp_path).computed == 0


def test_writers_and_mergers_at_once_lose_no_row(tmp_path):
    def work(writer):
        entry = Entry(tmp_path, {}, {})
        for row in range(10 * writer, 10 * writer + 20):  # half of the rows are the next writer's too
            entry.append(chunk(row, seconds=1.0 + writer))
            entry.merge()
            assert row in entry.read().rows

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    np.testing.assert_array_equal(Entry(tmp_path, {}, {}).read().columns["a"], np.arange(50) * 0.5)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failing_disk_is_told_in_a_sentence_and_leaves_the_cache_intact(tmp_path, monkeypatch, code):
    run(some_images().limit(40), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def full(descriptor):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as context:
        context.setattr(os, "fsync", full)
        with pytest.raises(OodbenchError, match=r"full|Could not write"):
            run(some_images(), tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert run(some_images(), tmp_path).computed == 110


def test_a_merge_that_fails_costs_nothing(tmp_path, monkeypatch):
    run(some_images().limit(40), tmp_path)

    def failing(self):
        raise OodbenchError("The disk is full.")

    with monkeypatch.context() as context:
        context.setattr(Entry, "merge", failing)
        assert run(some_images(), tmp_path).computed == 110
    assert run(some_images(), tmp_path).computed == 0


def test_a_column_whose_shape_changed_asks_for_a_new_version(tmp_path):
    entry = Entry(tmp_path, {}, {})
    entry.append(chunk(1))
    changed = chunk(2)
    entry.append(Chunk(changed.rows, changed.seconds, {"a": np.zeros((1, 7)), "b": changed.columns["b"]}))
    with pytest.raises(OodbenchError, match="new version"):
        entry.read()
