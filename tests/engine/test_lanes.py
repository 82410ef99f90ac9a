"""Batches in lanes are the same batches: order, numbers, errors and the number of threads stay as they were."""

import threading

import numpy as np
import pytest
import torch
from factorised import Factorised, Trained, run, some_images
from threads import fixture_of

from oodbench.engine.lanes import lanes

CPU = torch.device("cpu")


three_threads = fixture_of(3)


def test_results_come_in_order_from_threads_that_share_the_processor(three_threads):
    together = threading.Barrier(3, timeout=10)  # nobody passes unless three run at a time

    def work(number):
        together.wait()
        return number, threading.get_ident(), torch.get_num_threads()

    with lanes(100, CPU) as (count, side_by_side):
        assert count == 3
        numbers, threads, shares = zip(*side_by_side(work, range(9)), strict=True)
    assert numbers == tuple(range(9))
    assert len(set(threads)) == 3
    assert set(shares) == {1}
    assert torch.get_num_threads() == 3


def test_there_are_no_more_lanes_than_wanted_and_one_is_the_caller_itself(three_threads):
    with lanes(2, CPU) as (count, _):
        assert count == 2
    with lanes(1, CPU) as (count, side_by_side):
        assert list(side_by_side(lambda _: threading.get_ident(), [0])) == [threading.get_ident()]
    with lanes(5, torch.device("cuda")) as (count, _):
        assert count == 1


def test_the_number_of_threads_survives_an_error(three_threads):
    with pytest.raises(ValueError, match="here"), lanes(3, CPU):
        raise ValueError("here")
    assert torch.get_num_threads() == 3


def test_columns_do_not_depend_on_the_lanes(three_threads, tmp_path):
    several = run(some_images(), tmp_path / "several", batch_size=16)
    torch.set_num_threads(1)
    one = run(some_images(), tmp_path / "one", batch_size=16)
    for name in Factorised.columns:
        np.testing.assert_allclose(several.columns[name], one.columns[name], rtol=1e-6)


def test_what_other_lanes_computed_beside_an_error_is_kept(three_threads, tmp_path):
    images = some_images()
    wrong = int(images.index[20])  # in the second of three batches side by side

    class Failing(Factorised):
        def statistics(self, x, noise):
            if wrong in noise.index.tolist():
                raise RuntimeError("this image")
            return super().statistics(x, noise)

    with pytest.raises(RuntimeError, match="this image"):
        run(images, tmp_path, Trained(Failing()), batch_size=16)
    assert run(images, tmp_path, batch_size=16).computed == 150 - 2 * 16
