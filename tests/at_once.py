"""Two processes that do the same at the same time."""

import os
import subprocess
import sys
from pathlib import Path

import oodbench

__all__ = ["two_at_once"]

_MEETING = """
import time
from pathlib import Path
folder, own, other = Path(sys.argv[2]), sys.argv[3], sys.argv[4]
(folder / f"{own}.ready").touch()
while not (folder / f"{other}.ready").exists():
    time.sleep(0.001)
"""


def two_at_once(imports: str, work: str, folder: Path) -> None:
    """Runs `work` in a process called `own` "a" and in one called "b", with `folder`, once both have done `imports`."""
    environment = os.environ | {"PYTHONPATH": str(Path(oodbench.__file__).parents[1])}
    code = f"import sys; sys.path.insert(0, sys.argv[1])\n{imports}\n{_MEETING}\n{work}"
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(folder)]
    started = [subprocess.Popen([*command, *names], env=environment) for names in (("a", "b"), ("b", "a"))]
    try:
        assert [process.wait(120) for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()
