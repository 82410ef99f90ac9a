"""What there is to compute: names of statistics become functions of a batch, one for all columns of a forward pass."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from oodbench.engine.device import is_out_of_memory
from oodbench.errors import OodbenchError, StatisticError
from oodbench.models.noise import Noise
from oodbench.registry import MODELS, STATISTICS, Registry

if TYPE_CHECKING:
    from oodbench.pretrained import TrainedModel

__all__ = ["Pass", "passes_for"]


@dataclass(frozen=True)
class Pass:
    """One function of a batch whose columns are computed and cached together."""

    columns: tuple[str, ...]
    function: Callable[[Tensor, Noise], Mapping[str, Any]]
    facts: Mapping[str, Any]  # the part of the cache key that says what is computed
    needs_model: bool = True  # False: it runs on the CPU, whatever the device
    cached: bool = True
    plugin: str | None = None  # whose statistic it is, where it is not our own

    def compute(self, x: Tensor, noise: Noise) -> dict[str, Tensor]:
        """`columns`, each (B, ...), of uint8 images (B, C, H, W); wrong shapes and names are an `OodbenchError`.

        Whatever goes wrong in a plugin's statistic, but for too little memory, is a `StatisticError` with its name.
        """
        try:
            return self._compute(x, noise)
        except Exception as error:
            if self.plugin is None or is_out_of_memory(error):
                raise
            (name,) = self.columns
            sentence = (
                str(error)
                if isinstance(error, OodbenchError)
                else f"The statistic {name!r} of {self.plugin} failed ({type(error).__name__}: {error}): mend it, or "
                "leave out the plugin."
            )
            raise StatisticError(name, sentence) from error

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
    if model is not None:
        facts = {
            "model": model.name,
            "model_version": model.module.version,
            "weights": model.weights,
            "config": model.config,
            "shape": model.module.shape,
            "model_parameters": model.module.statistic_parameters(),
            "precision": precision,
            **_code(MODELS, model.name, "model_plugin"),
        }
    forward = model.module.columns if model is not None else ()
    passes = []
    if model is not None and any(name in forward for name in names):
        passes.append(Pass(forward, model.module.statistics, {"statistic": "forward", "columns": forward, **facts}))
    for name in dict.fromkeys(names):
        if name not in forward:
            passes.append(_registered(name, model, forward, facts))
    return passes


def _registered(name: str, model: "TrainedModel | None", forward: Sequence[str], facts: Mapping[str, Any]) -> Pass:
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
    origin = STATISTICS.origin_of(name)
    plugin = None if origin == "oodbench" else origin
    return Pass((name,), function, facts, statistic.needs_model, statistic.cached, plugin)


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
