"""What there is to compute: names of statistics become functions of a batch, one for all columns of a forward pass."""

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from oodbench.engine.device import is_out_of_memory
from oodbench.errors import ModelError, OodbenchError, PluginError, StatisticError
from oodbench.models.noise import Noise
from oodbench.registry import MODELS, STATISTICS, Registry

if TYPE_CHECKING:
    from oodbench.pretrained import TrainedModel

__all__ = ["Pass", "passes_for"]

Blame = Callable[[Exception], PluginError]  # what went wrong, as an error of the plugin that takes part


@dataclass(frozen=True)
class Pass:
    """One function of a batch whose columns are computed and cached together."""

    columns: tuple[str, ...]
    function: Callable[[Tensor, Noise], Mapping[str, Any]]
    facts: Mapping[str, Any]  # the part of the cache key that says what is computed
    needs_model: bool = True  # False: it runs on the CPU, whatever the device
    cached: bool = True
    blame: Blame | None = None

    def compute(self, x: Tensor, noise: Noise) -> dict[str, Tensor]:
        """`columns`, each (B, ...), of uint8 images (B, C, H, W); wrong shapes and names are an `OodbenchError`.

        Whatever goes wrong in a plugin's statistic, but for too little memory, is a `StatisticError` with its name, and
        in a plugin's model a `ModelError`.
        """
        with _blaming(self.blame):
            return self._compute(x, noise)

    def _compute(self, x: Tensor, noise: Noise) -> dict[str, Tensor]:
        outputs = self.function(x, noise)
        missing = [name for name in self.columns if name not in outputs]
        if missing:
            raise OodbenchError(f"The model declares the column {missing[0]!r}, but its statistics() did not give it.")
        columns = {name: torch.as_tensor(outputs[name]) for name in self.columns}
        for name, column in columns.items():
            if column.ndim == 0 or len(column) != len(x):
                raise OodbenchError(
                    f"The statistic {name!r} gave the shape {tuple(column.shape)} for {len(x)} images: "
                    "its first axis must count the images."
                )
        return columns


def passes_for(names: Sequence[str], model: "TrainedModel | None", precision: str) -> list[Pass]:
    """The passes that give all of `names`; an unknown name, or one that needs a model without one, is an error."""
    facts: dict[str, Any] = {}
    blame = _blame(MODELS, model.name, ModelError) if model is not None else None
    if model is not None:
        with _blaming(blame):
            parameters = model.module.statistic_parameters()
        facts = {
            "model": model.name,
            "model_version": model.module.version,
            "weights": model.weights,
            "config": model.config,
            "shape": model.module.shape,
            "model_parameters": parameters,
            "precision": precision,
            **_code(MODELS, model.name, "model_plugin"),
        }
    forward = model.module.columns if model is not None else ()
    passes = []
    if model is not None and any(name in forward for name in names):
        own = {"statistic": "forward", "columns": forward}
        passes.append(Pass(forward, model.module.statistics, {**own, **facts}, blame=blame))
    for name in dict.fromkeys(names):
        if name not in forward:
            passes.append(_registered(name, model, forward, facts, blame))
    return passes


def _registered(
    name: str, model: "TrainedModel | None", forward: Sequence[str], facts: Mapping[str, Any], blame: Blame | None
) -> Pass:
    if name not in STATISTICS:
        raise OodbenchError(_unknown(name, model, forward))
    statistic = STATISTICS.get(name)
    if statistic.needs_model and model is None:
        raise OodbenchError(f"The statistic {name!r} needs a model, and none was given.")
    module = model.module if model is not None and statistic.needs_model else None

    def function(x: Tensor, noise: Noise) -> dict[str, Any]:
        return {name: statistic.function(module, x, noise)}

    own = {
        "statistic": name,
        "version": statistic.version,
        "parameters": dict(statistic.parameters),
        **_code(STATISTICS, name, "plugin"),
    }
    facts = {**own, **facts} if statistic.needs_model else own
    blame = _blame(STATISTICS, name, partial(StatisticError, name)) or (blame if module is not None else None)
    return Pass((name,), function, facts, statistic.needs_model, statistic.cached, blame)


def _blame(registry: Registry[Any], name: str, make: Callable[[str], PluginError]) -> Blame | None:
    """Makes a plugin's error of what went wrong in the thing of that name; None where it is our own."""
    origin = registry.origin_of(name) if name in registry else "oodbench"
    if origin == "oodbench":
        return None

    def blame(error: Exception) -> PluginError:
        if isinstance(error, OodbenchError):
            return make(str(error))
        what = " ".join(f"failed ({type(error).__name__}: {error})".split())
        return make(f"The {registry.kind} {name!r} of {origin} {what}: mend it, or leave out the plugin.")

    return blame


@contextmanager
def _blaming(blame: Blame | None) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if blame is None or is_out_of_memory(error):
            raise
        raise blame(error) from error


def _code(registry: Registry[Any], name: str, fact: str) -> dict[str, str]:
    """The part of the cache key that changes with a plugin's code; nothing for our own, which has declared versions."""
    version = registry.version_of(name)
    return {} if version is None else {fact: version}


def _unknown(name: str, model: "TrainedModel | None", forward: Sequence[str]) -> str:
    known = [*forward, *STATISTICS]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(sorted(known)) or 'none'}."
    whose = f" of {model.name}" if model is not None else " without a model"
    return f"Unknown statistic {name!r}{whose}: {hint}"
