"""Modules that a test builds draw their weights from torch's global generator: it starts alike in every test."""

import pytest
import torch


@pytest.fixture(autouse=True)
def same_start() -> None:
    torch.manual_seed(0)
