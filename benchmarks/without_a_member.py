"""Whether an ensemble's score hangs on one of its members: AUROC with all of them, and without each in turn.

    python benchmarks/without_a_member.py --model "ensemble(vae)" --in cifar10 --out svhn --limit 2000

Everything is computed as `oodbench run` computes it, so after a run of the same images nothing is computed anew.
"""

import argparse

import numpy as np

from oodbench.benchmark import trials
from oodbench.detector import Columns
from oodbench.evaluation.auroc import auroc
from oodbench.evaluation.levels import Levels
from oodbench.how import How
from oodbench.plugins import load_plugins
from oodbench.registry import DETECTORS
from oodbench.trial import Scored, measure


def without(columns: Columns, member: int) -> Columns:
    """The columns of an ensemble with a member fewer."""
    fewer = np.delete(columns["log_px_members"], member, axis=1)
    return Columns({"log_px_members": fewer}, columns.dimensions)


def aurocs(scored: Scored) -> list[float]:
    """Of all members, then without the first, the second and so on."""
    detector = DETECTORS.get(scored.detector)()
    sides = scored.inside.columns, scored.outside.columns
    members = sides[0]["log_px_members"].shape[1]
    scores = [(scored.score_in, scored.score_out)]
    scores += [tuple(detector.score(without(side, member)) for side in sides) for member in range(members)]
    return [auroc(Levels.of(score_in, score_out)) for score_in, score_out in scores]


def main() -> None:
    """Prints a line a pair and detector."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ensemble(vae)")
    parser.add_argument("--in", dest="in_", default="cifar10")
    parser.add_argument("--out", nargs="+", default=["svhn"])
    # These learn nothing from validation images, of which a member fewer would have to be computed anew.
    parser.add_argument("--detectors", nargs="+", default=["likelihood_std", "waic"])
    parser.add_argument("--limit", type=int, default=2000)
    arguments = parser.parse_args()
    how = How(limit=arguments.limit)
    load_plugins(how.plugins)
    chosen = trials(arguments.in_, arguments.out, arguments.model, arguments.detectors, how)
    for trial, other, scored in measure(list(chosen), how):
        for one in scored:
            whole, *fewer = (f"{value:.3f}" for value in aurocs(one))
            print(f"{trial.test.name} -> {other}, {one.detector}: {whole}; without a member each: {' '.join(fewer)}")


if __name__ == "__main__":
    main()
