"""Contenders in one process and in turns, so that a busy or throttled machine slows all of them alike."""

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

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
    """What a contender is to reach: so many times the images/s of another.

    `of` is the best peer (default or tuned), the floor, or a contender by its name.
    """

    contender: str
    of: str
    factor: float


def print_table(
    title: str, seconds: Mapping[str, list[float]], images: int | Mapping[str, int], targets: Sequence[Target] = ()
) -> None:
    """A row a contender: median images/s, their spread, ratios to the best peers and to the float32 floor.

    `images` is how many a turn takes. Ours are called "ours ...", floors "floor ...", all others are peers, and
    "... + ..." one that was tuned. Ratios are those of medians: to the best peer as it runs by default, to the best of
    all, to the floor; behind a bar the same for the fastest turns, as disturbances only slow. The spread is that of the
    middle half of the turns, as a share of the median: where it is large, only the fastest turns say something.
    """
    count = dict.fromkeys(seconds, images) if isinstance(images, int) else images
    middle = {name: count[name] / statistics.median(times) for name, times in seconds.items()}
    fastest = {name: count[name] / min(times) for name, times in seconds.items()}
    turns = len(next(iter(seconds.values())))
    print(f"\n{title}; n = {turns} turns")
    heads = f"{'/ default':>11}{'/ tuned':>9}{'/ floor':>9}"
    print(f"{'':38}{'images/s':>10}{'spread':>8}{heads} |{'fastest':>9}{heads}")
    for name in seconds:
        low, _, high = statistics.quantiles(seconds[name], n=4)
        spread = (high - low) / statistics.median(seconds[name])
        medians = f"{middle[name]:10.0f}{spread:8.0%}{_ratios(name, middle)}"
        print(f"{name:38}{medians} |{fastest[name]:9.0f}{_ratios(name, fastest)}")
    for target in targets:
        name, other = target.contender, _rivals(middle).get(target.of, target.of)
        at_best = fastest[name] / fastest[_rivals(fastest).get(target.of, target.of)]
        ratio = middle[name] / middle[other]
        said = "reached" if ratio >= target.factor else "NOT reached"
        print(f"  target: {name} / {other} >= {target.factor}: {ratio:.2f}, {said} ({at_best:.2f} at the fastest)")
    sys.stdout.flush()


def _rivals(speed: Mapping[str, float]) -> dict[str, str]:
    """Whom the others are held against: the fastest peer by default, the fastest of all peers, the floor."""
    peers = [name for name in speed if not name.startswith(("ours", "floor"))]
    return {
        "default": max(filter(runs_as_by_default, peers), key=lambda name: speed[name]),
        "tuned": max(peers, key=lambda name: speed[name]),
        "floor": "floor float32",
    }


def _ratios(name: str, speed: Mapping[str, float]) -> str:
    others = _rivals(speed).values()
    return "".join(f"{speed[name] / speed[other]:{width}.2f}" for other, width in zip(others, (11, 9, 9), strict=True))
