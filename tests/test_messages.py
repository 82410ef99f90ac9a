"""What is said while a progress bar is drawn stands on a line of its own."""

import io
import subprocess
import sys

import pytest
from tqdm import tqdm

from oodbench.messages import tell


def test_a_bar_is_cleared_before_a_sentence_and_drawn_below_it(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    with tqdm(total=2, desc="working", file=screen, mininterval=0):
        tell("something happened")
    before, _, after = screen.getvalue().partition("something happened\n")
    assert "working" in before
    assert before.endswith("\r")  # to the start of the line, which was wiped
    assert not before.split("\r")[-2].strip()
    assert "working" in after


def test_nobody_waits_for_the_import_of_bars_to_hear_something() -> None:
    code = "import sys; from oodbench.messages import tell; tell('well'); assert 'tqdm' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr == "well\n"
