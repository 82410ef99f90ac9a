"""Contenders in one process and in turns, so that a busy or throttled machine slows all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["Target", "in_turns", "print_table", "runs_as_by_default"]


def in_turns(
    contenders: Mapping[str, Callable[[], None]],
    repeats: int,
    before: Callable[[str], None] = lambda name: None,
    finish: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of every turn, after one turn each that does not count.

    `before` gets the name ahead of each turn and does not count, `finish` ends it: it waits for a device that runs
    behind.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(repeats + 1):
        for name, run in contenders.items():
            time.sleep(0.05)
            before(name)
            started = time.perf_counter()
            run()
            finish()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def runs_as_by_default(name: str) -> bool:
    """Whether a contender is a peer that was not tuned."""
    return not name.startswith(("ours", "floor")) and "+" not in name


@dataclass(frozen=True)
class Target:
    """What a contender is to reach: so many times the images/s of the best peer (default or tuned), or of the floor."""

    contender: str
    of: Literal["default", "tuned", "floor"]
    factor: float


def print_table(
    title: str, seconds: Mapping[str, list[float]], images: int | Mapping[str, int], targets: Sequence[Target] = ()
) -> None:
    """A row a contender: median images/s, their spread, ratios to the best peers and to the float32 floor.

    `images` is how many a turn takes. Ours are called "ours ...", floors "floor ...", all others are peers, and
    "... + ..." one that was tuned. Ratios are those of medians: to the best peer as it runs by default, to the best of
    all, to the floor. The spread is that of the middle half of the turns, as a share of the median.
    """
    count = dict.fromkeys(seconds, images) if isinstance(images, int) else images
    speed = {name: count[name] / statistics.median(times) for name, times in seconds.items()}
    peers = [name for name in speed if not name.startswith(("ours", "floor"))]
    against = {
        "default": max(filter(runs_as_by_default, peers), key=lambda name: speed[name]),
        "tuned": max(peers, key=lambda name: speed[name]),
        "floor": "floor float32",
    }
    turns = len(next(iter(seconds.values())))
    print(f"\n{title}; n = {turns} turns")
    print(f"{'':38}{'images/s':>10}{'spread':>9}{'/ default':>11}{'/ tuned':>9}{'/ floor':>9}")
    for name, one in speed.items():
        low, _, high = statistics.quantiles(seconds[name], n=4)
        ratios = [one / speed[other] for other in against.values()]
        spread = (high - low) / statistics.median(seconds[name])
        print(f"{name:38}{one:10.0f}{spread:9.1%}{ratios[0]:11.2f}{ratios[1]:9.2f}{ratios[2]:9.2f}")
    for target in targets:
        other = against[target.of]
        ratio = speed[target.contender] / speed[other]
        said = "reached" if ratio >= target.factor else "NOT reached"
        print(f"  target: {target.contender} / {other} >= {target.factor}: {ratio:.2f}, {said}")
