"""Paired tests between detectors or models: who orders the same images better, and is it more than chance."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Unpack

from oodbench.benchmark import trials
from oodbench.errors import OodbenchError
from oodbench.evaluation import Wins, count_nonfinite, difference, holm
from oodbench.how import How, Options, listed
from oodbench.plugins import load_plugins
from oodbench.pretrained import TrainedModel
from oodbench.registry import DETECTORS, MODELS, hint
from oodbench.selection import Contender
from oodbench.trial import Scored, measure

__all__ = ["Comparison", "compare"]

SCHEMA = 1

Comparison = dict[str, Any]
"""AUROC of `a` less that of `b` on one pair: `difference` with its interval, z, p, and p by Holm's correction."""


@dataclass(frozen=True)
class _Side:
    """A detector on a model, or without one."""

    model: str  # "none" for a control
    detector: str


@dataclass(frozen=True)
class _Scores:
    """What is kept of a side's scores."""

    wins: Wins
    nonfinite: int
    likelihood: str | None
    weights: str | None

    @classmethod
    def of(cls, scored: Scored, model: TrainedModel | None) -> "_Scores":
        return cls(
            Wins.of(scored.score_in, scored.score_out),
            count_nonfinite(scored.score_in, scored.score_out),
            model.module.likelihood.value if model else None,
            model.weights if model else None,
        )


def compare(
    in_: Sequence[str] | str | None = None,
    out: Sequence[str] | str | None = None,
    models: Sequence[str] | str | None = None,
    detectors: Sequence[str] | str | None = None,
    *,
    against: str | None = None,
    **options: Unpack[Options],
) -> list[Comparison]:
    """Paired tests of the AUROCs of single-image scores, one `Comparison` a pair of scores and pair of data sets.

    Compared are two detectors of one model, one detector of two models, and a control with everything; with `against`,
    a detector or a model, only what it takes part in, as `b`; with "model:detector" that score with all others. The
    scores come the way those of `run` do: from cached columns, of the same images for all. Holm's correction counts all
    tests of the call. The other keywords are those of `run`. Raises `OodbenchError` for wrong names, for scores of
    groups, and where nothing can be compared, before anything is computed.
    """
    how = How(**options)
    load_plugins(how.plugins)
    models, detectors, baseline = _baseline(listed(models), listed(detectors), against)
    for name in detectors or ():
        _refuse_groups(name)
    todo = list(trials(in_, out, models, detectors, how))
    contenders: dict[str, list[Contender]] = {}
    for trial in todo:
        contenders.setdefault(trial.test.name, []).append(trial.contender)
    plans = {name: _plan(of_set, baseline, name) for name, of_set in contenders.items()}
    found: dict[tuple[str, str], dict[_Side, _Scores]] = {
        (trial.test.name, outside.name): {} for trial in todo for outside in trial.outs
    }
    for trial, other, scored in measure(todo, how):
        for one in (one for one in scored if one.group_size == 1):
            side = _Side(trial.contender.name, one.detector)
            found[trial.test.name, other][side] = _Scores.of(one, trial.contender.model)
    rows: list[Comparison] = []
    for (inside, outside), scores in found.items():
        # A plugin's detector that failed was named on stderr and is not here.
        for a, b in (pair for pair in plans[inside] if scores.keys() >= set(pair)):
            facts = {"schema": SCHEMA, "in": inside, "out": outside, "seed": how.seed}
            rows.append(facts | _row((a, scores[a]), (b, scores[b])))
    adjusted = holm([row["p"] for row in rows])
    return [row | {"p_holm": p, "comparisons": len(rows)} for row, p in zip(rows, adjusted, strict=True)]


def _row(a: tuple[_Side, _Scores], b: tuple[_Side, _Scores]) -> Comparison:
    tested = difference(a[1].wins, b[1].wins)
    sides = {
        key: {
            "model": side.model,
            "detector": side.detector,
            "likelihood": scores.likelihood,
            "weights": scores.weights,
            "auroc": scores.wins.auroc,
            "nonfinite": scores.nonfinite,
        }
        for key, (side, scores) in (("a", a), ("b", b))
    }
    return {
        "n_in": len(a[1].wins.ins),
        "n_out": len(a[1].wins.outs),
        **sides,
        "difference": {"value": tested.value, "low": tested.low, "high": tested.high},
        "z": tested.z,
        "bounded": tested.bounded,
        "p": tested.p,
    }


def _plan(contenders: list[Contender], baseline: dict[str, str], name: str) -> list[tuple[_Side, _Side]]:
    """The pairs to compare: of one model, of one detector, or with a control; if so asked, with the baseline.

    A baseline of a model and a detector is paired with everything.
    """
    sides = [
        _Side(contender.name, detector)
        for contender in contenders
        for detector in contender.detectors
        if 1 in DETECTORS.get(detector).group_sizes
    ]
    pairs = [
        (a, b)
        for a, b in combinations(sides, 2)
        if a.model == b.model or a.detector == b.detector or "none" in (a.model, b.model) or len(baseline) == 2
    ]
    if baseline:
        mine = {side for side in sides if all(getattr(side, kind) == wanted for kind, wanted in baseline.items())}
        pairs = [(b, a) if a in mine else (a, b) for a, b in pairs if (a in mine) != (b in mine)]
    if not pairs:
        what = f"compare {':'.join(baseline.values())} with" if baseline else "compare"
        remedy = "two detectors of one model, or two models for one detector"
        if len(baseline) == 2:
            remedy = f"a detector that applies to {baseline['model']}, and others beside it"
        raise OodbenchError(f"There is nothing to {what} on {name}: name {remedy}.")
    return pairs


def _baseline(
    models: list[str] | None, detectors: list[str] | None, against: str | None
) -> tuple[list[str] | None, list[str] | None, dict[str, str]]:
    """The names asked for with the baseline among them, and its "model", its "detector", or both.

    A name of both is a detector, unless only the models asked for hold it.
    """
    if against is None:
        return models, detectors, {}
    model, both, detector = against.rpartition(":")
    _refuse_groups(detector)
    if both:
        MODELS.get(model), DETECTORS.get(detector)  # tell of wrong names
        models, detectors = models and [*models, model], detectors and [*detectors, detector]
        return _once(models), _once(detectors), {"model": model, "detector": detector}
    if against in DETECTORS and (against not in (models or []) or against in (detectors or [])):
        return models, _once(detectors and [*detectors, against]), {"detector": against}
    if against not in (models or []) and against not in MODELS:
        remedy = hint(against, [*DETECTORS, *MODELS], "see `oodbench list detectors` and `list models`.")
        raise OodbenchError(f"There is no detector and no model {against!r} to compare with: {remedy}")
    return _once(models and [*models, against]), detectors, {"model": against}


def _once(names: list[str] | None) -> list[str] | None:
    return names and [*dict.fromkeys(names)]


def _refuse_groups(name: str) -> None:
    """Raises `OodbenchError` for the scores of groups: their images are not the same for all."""
    plain = name.partition("@")[0]
    if plain != name and plain in DETECTORS:
        raise OodbenchError(f"{name!r} scores groups of images, and only single images are paired: name {plain!r}.")
    if name in DETECTORS and 1 not in DETECTORS.get(name).group_sizes:
        raise OodbenchError(f"{name!r} scores groups of images only, and only single images are paired: leave it out.")
