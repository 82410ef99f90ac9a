"""What a run is about: which pairs, which models with which weights, which detectors apply to them."""

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from oodbench.data import Images, in_domain
from oodbench.detector import EVERY_COLUMN, Detector
from oodbench.errors import ModelError, OodbenchError
from oodbench.how import How
from oodbench.messages import tell
from oodbench.models.base import DensityModel
from oodbench.models.configuration import check_configuration
from oodbench.pretrained import TrainedModel, available_models, has_weights, load_model
from oodbench.records import folder_of
from oodbench.registry import DETECTORS, MODELS, POSTERIORS, STATISTICS

__all__ = ["BACKGROUND", "Contender", "check_names", "contenders", "needs_of", "pairs", "tell_skipped"]

BACKGROUND = "@background"  # `log_px@background` is the column `log_px` of the companion model

EMBEDDED = {"photos": ["glyphs"], "digits": ["glyphs8"]}
"""In-distribution sets to out-of-distribution sets that need no download: what `oodbench run` takes by itself."""

USUAL = EMBEDDED | {
    "cifar10": ["svhn", "cifar100", "cifar10+vflip", "noise", "constant"],
    "cifar100": ["svhn", "cifar10", "cifar100+vflip", "noise", "constant"],
    "svhn": ["cifar10", "cifar100", "svhn+vflip", "noise", "constant"],
    "fashionmnist": ["mnist", "kmnist", "emnist_letters"],
    "mnist": ["fashionmnist", "kmnist"],
    "kmnist": ["mnist", "fashionmnist"],
}
"""What an in-distribution set is usually held against, where `--out` is not given."""


@dataclass(frozen=True)
class Contender:
    """A model with the detectors that apply to it; without a model, the model-free controls."""

    model: TrainedModel | None
    background: TrainedModel | None
    detectors: tuple[str, ...]

    @property
    def name(self) -> str:
        """The model's name in records."""
        return self.model.name if self.model else "none"

    def folder(self, root: Path, in_: str) -> Path:
        """Where under `root` pictures and scores of this model lie: those of two weights never in one folder."""
        preset, weights = (self.model.entry["preset"], self.model.weights) if self.model else (None, None)
        return folder_of(root, in_, self.name, preset, weights)


def pairs(in_: Sequence[str] | None, out: Sequence[str] | None) -> dict[str, list[str]]:
    """In-distribution names to out-of-distribution names."""
    if not in_:
        if out:
            raise OodbenchError("--out needs --in: name the data set that the models were trained on.")
        return EMBEDDED
    unknown = [name for name in in_ if not out and name not in USUAL]
    if unknown:
        near = difflib.get_close_matches(unknown[0], USUAL, n=3, cutoff=0.5)
        remedy = f"did you mean {' or '.join(near)}? Or name" if near else "name"
        raise OodbenchError(f"Nothing is usually held against {unknown[0]!r}: {remedy} data sets with --out.")
    held = {name: [other for other in out or USUAL[name] if other != name] for name in in_}
    alone = [name for name, others in held.items() if not others]
    if alone:
        raise OodbenchError(f"{alone[0]!r} cannot be held against itself: name another data set with --out.")
    return held


def check_names(models: Sequence[str] | None, detectors: Sequence[str] | None) -> None:
    """Raises `OodbenchError` for a model or detector that nobody registered, or a named detector that cannot exist.

    A plugin's detector that was not named but reads what nothing computes is told on stderr: it applies nowhere.
    """
    for name in models or ():
        MODELS.get(name)
    for name, _, size in (name.partition("@") for name in detectors or () if "@" in name):
        if name in DETECTORS and size.isdecimal():
            raise OodbenchError(f"Groups come with their detector: name {name!r} alone, which scores them all.")
    for name in detectors or DETECTORS:
        fault = _typo(name)
        if fault and detectors:
            raise OodbenchError(fault)
        if fault:
            tell(f"oodbench: {fault}")


def _typo(name: str) -> str | None:
    """A sentence on a detector's need that is neither a statistic nor a column of any registered model."""
    suspects = [need for need in _detector(name).needs if need.removesuffix(BACKGROUND) not in STATISTICS]
    origin = DETECTORS.origin_of(name)
    if origin == "oodbench" or not suspects:
        return None
    classes = [*(MODELS.get(model) for model in MODELS), *(POSTERIORS.get(posterior) for posterior in POSTERIORS)]
    of_models = (column for each in classes for column in getattr(each, "columns", ()))
    known = {EVERY_COLUMN, *STATISTICS, *of_models}
    wrong = [need for need in suspects if need.removesuffix(BACKGROUND) not in known]
    if not wrong:
        return None
    near = difflib.get_close_matches(wrong[0], known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "see `oodbench list statistics`."
    return f"The detector {name!r} (from {origin}) needs {wrong[0]!r}, which nothing computes: {hint}"


def contenders(
    images: Images,
    models: Sequence[str] | None,
    detectors: Sequence[str] | None,
    how: How,
    must_apply: bool = True,
) -> list[Contender]:
    """Every model asked for (default: all with weights for these in-distribution images) and what applies to it.

    Unless detectors are named, those that cost seconds an image are left out. A named model without weights is trained
    first. A plugin's model that cannot be built or trained is named on stderr and left out. A named detector that
    applies to no model is an `OodbenchError`, if it `must_apply`.
    """
    wanted = tuple(detectors or (name for name in DETECTORS if _detector(name).most_images is None))
    controls = tuple(name for name in wanted if _is_control(name))
    rest = [name for name in wanted if name not in controls]
    trained = []
    if rest:
        trained = _models(images, models, rest, how)
    found = []
    for model in trained:
        with _skipping(model.name):
            found.append(_contender(model, rest, how))
    missing = [name for name in detectors or () if name in rest and not any(name in c.detectors for c in found)]
    if missing and must_apply:
        raise OodbenchError(_applies_nowhere(missing[0], images, models or [model.name for model in trained], how))
    found = [contender for contender in found if contender.detectors]
    return found + ([Contender(None, None, controls)] if controls else [])


def _applies_nowhere(detector: str, images: Images, models: Sequence[str], how: How) -> str:
    needs = _detector(detector).needs
    said = f"The detector {detector!r} applies to no model here: it needs {', '.join(needs)}. "
    if any(need.endswith(BACKGROUND) for need in needs):
        seed = f" --seed {how.training_seed}" if how.training_seed else ""
        return said + (
            f"A background model is trained by `oodbench train --model MODEL --in {images.name} --background{seed}`."
        )
    classes = {name: MODELS.get(name) for name in MODELS} | {f"{p}(MODEL)": POSTERIORS.get(p) for p in POSTERIORS}
    giving = [name for name, each in classes.items() if set(needs) <= set(getattr(each, "columns", ()))]
    remedy = f" Take one of {', '.join(giving)}." if giving else ""
    return said + f"The models were {', '.join(models) or 'none'}.{remedy}"


def _models(images: Images, models: Sequence[str] | None, detectors: Sequence[str], how: How) -> list[TrainedModel]:
    seed = how.training_seed
    there = available_models(images.name, how.weights, seed=seed)
    if not (models or there):
        of_seed = "" if seed is None else f" of seed {seed}"
        tell(
            f"oodbench: there are no weights{of_seed} for {images.name}; only model-free controls can run. "
            "Name a model with --model to train it first."
        )
    trained = []
    for name in models or there:
        with _skipping(name):
            if name in there:
                trained.append(load_model(name, images.name, weights=how.weights, seed=seed))
            elif how.weights is not None:
                load_model(name, images.name, weights=how.weights, seed=seed)  # says what is missing
            elif _untrained_serves(name, images, detectors):
                from oodbench.training import train

                what = "the small preset" + (f" with seed {seed}" if seed else "")
                tell(f"oodbench: {name} has no such weights for {images.name}: training {what}.")
                common: dict[str, Any] = {"data_root": how.data_root, "device": how.device, "progress": how.progress}
                trained.append(train(name, images.name, seed=seed or 0, **common))
            else:
                tell(f"oodbench: {name} is not trained for {images.name}: none of the detectors would apply to it.")
    for model in trained:
        if model.entry["data_fingerprint"] != images.fingerprint:
            tell(
                f"oodbench: {model.name} was trained on another copy of {images.name} (fingerprint "
                f"{model.entry['data_fingerprint'][:12]}, here {images.fingerprint[:12]})."
            )
    return trained


def _untrained_serves(name: str, images: Images, detectors: Sequence[str]) -> bool:
    """Whether any of the detectors may apply to the small preset once it is trained: else that would be for nothing."""
    from oodbench.training import load_recipe

    build, config = MODELS.get(name), load_recipe(name, images.name).config
    check_configuration(name, build, config)
    with torch.random.fork_rng(devices=[]):
        module: DensityModel = build(in_domain(images).shape, **config)
    return any(_applies(detector, module, with_background=False) for detector in detectors)


@contextmanager
def _skipping(name: str) -> Iterator[None]:
    """Names a plugin's model that is broken, on stderr, and lets the others live; other `OodbenchError`s are raised."""
    try:
        yield
    except Exception as error:
        origin = MODELS.origin_of(name)
        if origin == "oodbench" or (isinstance(error, OodbenchError) and not isinstance(error, ModelError)):
            raise
        tell_skipped(f"the model {name!r} (from {origin})", error)


def tell_skipped(who: str, error: Exception) -> None:
    """Says on stderr, in one line, who cannot go on and why."""
    what = str(error) if isinstance(error, OodbenchError) else f"{type(error).__name__}: {error}"
    tell(f"oodbench: skipped {who}: {' '.join(what.split())}")


def _contender(model: TrainedModel, detectors: Sequence[str], how: How) -> Contender:
    # The companion is of the model's kind: its preset and its seed.
    kind: dict[str, Any] = {"preset": model.entry["preset"], "seed": how.training_seed, "weights": how.weights}
    background = None
    if has_weights(model.name, model.dataset, role="background", **kind):
        background = load_model(model.name, model.dataset, role="background", **kind)
    applying = tuple(name for name in detectors if _applies(name, model.module, background is not None))
    return Contender(model, background, applying)


def _applies(detector: str, module: DensityModel, with_background: bool) -> bool:
    def there(need: str) -> bool:
        own, companion = need.removesuffix(BACKGROUND), need.endswith(BACKGROUND)
        if companion and not with_background:
            return False
        return own in module.columns or (own in STATISTICS and STATISTICS.get(own).applies(module))

    return all(there(need) for need in _needs(detector, module.columns))


def needs_of(detector: str, model: TrainedModel | None) -> tuple[str, ...]:
    """The columns that a detector reads where it is run on this model."""
    return _needs(detector, model.module.columns if model else ())


def _needs(detector: str, forward: tuple[str, ...]) -> tuple[str, ...]:
    needs = [forward if need == EVERY_COLUMN else (need,) for need in _detector(detector).needs]
    return tuple(dict.fromkeys(column for columns in needs for column in columns))


def _detector(name: str) -> type[Detector]:
    detector: type[Detector] = DETECTORS.get(name)
    return detector


def _is_control(name: str) -> bool:
    """Whether a detector needs no model."""
    return all(need in STATISTICS and not STATISTICS.get(need).needs_model for need in _detector(name).needs)
