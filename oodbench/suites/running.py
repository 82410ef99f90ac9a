"""Runs a suite, pair by pair, through the ordinary `run`."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from oodbench.benchmark import run_records
from oodbench.errors import OodbenchError
from oodbench.files import check_writable
from oodbench.how import How, Options, listed, listed_seeds
from oodbench.messages import tell
from oodbench.plugins import load_plugins
from oodbench.pretrained import available_models
from oodbench.records import Record
from oodbench.suites.suite import Suite, load_suite, split_label

__all__ = ["run_suite"]


def run_suite(
    name: str,
    in_: Sequence[str] | str | None = None,
    models: Sequence[str] | str | None = None,
    *,
    train: bool = False,
    results: Path | str | None = None,
    seeds: Sequence[int] | int = (),
    **options: Unpack[Options],
) -> tuple[Suite, list[Record]]:
    """The suite (or its part with these in-distribution sets and models) and its records, pairs in the suite's order.

    Everything is computed by `run_records`: what is cached is not computed again, a killed suite continues, and records
    are kept in the folder `results`. A `limit` among the options holds for all models, above those of the suite. Wrong
    files, names, data sets and missing weights raise `OodbenchError` before anything is computed; with `train` models
    without weights are trained first.
    """
    how = How(**options)
    load_plugins(how.plugins)
    suite = load_suite(name).only(listed(in_), listed(models))
    suite.check_names()
    results, seeds = results and check_writable(results), listed_seeds(seeds)
    for data_set in dict.fromkeys(name for pair in suite.pairs for name in (pair.in_, *pair.out)):
        how.load(data_set, "test")
    if not train:
        _check_weights(suite, how.weights, seeds)
    records: dict[tuple[object, ...], Record] = {}
    detectors = list(dict.fromkeys(split_label(label)[0] for label in suite.detectors))
    for pair in suite.pairs:
        for limit in dict.fromkeys(suite.limit_of(model) for model in pair.models):
            alike = [model for model in pair.models if suite.limit_of(model) == limit]
            asked = options if how.limit is not None else options | {"limit": limit}
            for record in run_records(
                pair.in_, pair.out, alike, detectors, results=results, seeds=seeds, must_apply=False, **asked
            ):
                key = tuple(record[key] for key in ("in", "out", "model", "training_seed", "detector", "group_size"))
                # A control runs once for every limit; the most images count.
                if key not in records or record["n_in"] > records[key]["n_in"]:
                    records[key] = record
    wanted = [split_label(label) for label in suite.detectors]
    for detector, size in wanted:
        if not any((r["detector"], r["group_size"]) == (detector, size) for r in records.values()):
            label = detector if size == 1 else f"{detector}@{size}"
            tell(f"oodbench: {label} applies to no model of the suite {suite.name}.")
    kept = [record for record in records.values() if (record["detector"], record["group_size"]) in wanted]
    if not kept:
        raise OodbenchError(f"No detector of the suite {suite.name} applies to any of its models: name others.")
    order = [(pair.in_, out) for pair in suite.pairs for out in pair.out]
    kept.sort(key=lambda record: order.index((record["in"], record["out"])))
    return suite, kept


def _check_weights(suite: Suite, weights: Path | str | None, seeds: Sequence[int]) -> None:
    """Raises `OodbenchError` naming all models that have no weights for one of their in-distribution sets."""
    missing: dict[str, list[str]] = {}
    wanted: Sequence[int | None] = seeds or [None]
    for pair in suite.pairs:
        for seed in wanted:
            there = available_models(pair.in_, weights, seed=seed)
            which = pair.in_ + (f" --seed {seed}" if seed else "")
            for model in (model for model in pair.models if model not in there):
                if which not in missing.setdefault(model, []):
                    missing[model].append(which)
    if missing:
        what = "; ".join(f"{model} for {' and '.join(sets)}" for model, sets in missing.items())
        model, sets = next(iter(missing.items()))
        raise OodbenchError(
            f"The suite {suite.name} lacks the weights of {what}: make them with "
            f"`oodbench train --model {shlex.quote(model)} --in {sets[0]}` and so on (or all with --train), "
            "or name what to run with --model and --in."
        )
