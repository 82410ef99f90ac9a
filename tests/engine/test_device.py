"""Where work runs, how much at a time, and what is kept between batches."""

import ctypes

import pytest
import torch

from oodbench.engine.device import BatchSize, Stopwatch, choose_device, is_out_of_memory, keep_freed_memory
from oodbench.errors import OodbenchError


def test_auto_is_a_gpu_if_there_is_one():
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == torch.device("cpu")


def test_an_absent_gpu_is_told_in_a_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(OodbenchError, match="finds 0 GPUs"):
        choose_device("cuda")


@pytest.mark.parametrize(("free", "expected"), [(1 << 20, 64), (9 << 30, 256), (20 << 30, 512), (140 << 30, 1024)])
def test_the_batch_grows_with_a_gpus_free_memory(monkeypatch, free, expected):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
    assert BatchSize("auto", torch.device("cuda")).value == expected


def test_halving_starts_from_what_was_used_and_ends_at_one_image(capsys):
    size = BatchSize(64, torch.device("cpu"))
    size.halve(10)
    assert size.value == 5
    size.halve(5)
    size.halve(2)
    assert size.value == 1
    with pytest.raises(OodbenchError, match="single image"):
        size.halve(1)


def test_allocation_errors_of_this_computer_count_as_out_of_memory():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 55, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(KeyError("out of memory"))


def test_a_stopwatch_counts_only_what_ran_since_the_last_reading(monkeypatch):
    times = iter([1.0, 3.0, 10.0, 10.5])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    watch = Stopwatch(torch.device("cpu"))
    with watch.running():
        pass
    with watch.running():
        pass
    assert watch.read() == 2.5
    assert watch.read() == 0


def test_freed_memory_is_kept_where_glibc_is_and_nothing_happens_elsewhere(monkeypatch):
    keep_freed_memory()

    def missing(name):
        raise OSError

    monkeypatch.setattr(ctypes, "CDLL", missing)
    keep_freed_memory()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    keep_freed_memory()
