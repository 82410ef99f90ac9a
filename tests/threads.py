"""Fixtures that set how many threads torch has."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

__all__ = ["fixture_of", "threads"]


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many inside, as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fixture_of(count: int):
    """A fixture under which there are so many."""

    @pytest.fixture
    def with_threads():
        with threads(count):
            yield

    return with_threads
