"""Places that cannot be read or written are told in one sentence."""

import os
from pathlib import Path

import pytest

from oodbench.errors import OodbenchError
from oodbench.files import cache_dir, check_writable, expanded, write_atomically


def test_a_place_that_is_no_folder_is_told_before_and_while_writing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check_writable(tmp_path / "not" / "there" / "yet")
    with pytest.raises(OodbenchError, match="name another"):
        check_writable(tmp_path / "file" / "below")
    for wrong in (tmp_path / "file" / "below", tmp_path):
        with pytest.raises(OodbenchError, match="Could not write"), write_atomically(wrong) as file:
            file.write(b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OodbenchError, match="it is not a file"), write_atomically(tmp_path / "pipe") as file:
        file.write(b"x")
    assert (tmp_path / "pipe").is_fifo()


def test_a_cache_that_is_a_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OODBENCH_CACHE", str(tmp_path / "file"))
    assert cache_dir() == tmp_path / "file"
    (tmp_path / "file").write_text("")
    with pytest.raises(OodbenchError, match="OODBENCH_CACHE"):
        cache_dir()


def test_a_cache_that_cannot_be_written_is_told_by_its_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OODBENCH_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(OodbenchError, match="OODBENCH_CACHE"):
        check_writable(cache_dir() / "columns")
    with pytest.raises(OodbenchError, match="name another"):
        check_writable(tmp_path / "file" / "results")


def test_a_home_that_nobody_has_is_told() -> None:
    with pytest.raises(OodbenchError, match="HOME"):
        expanded("~nobody-has-this-name/images")


def test_a_folder_to_write_to_is_given_back_with_the_home_written_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert check_writable("~/results") == tmp_path / "results"
