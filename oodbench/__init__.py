"""Out-of-distribution detection with deep density models, measured honestly."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from oodbench.benchmark import run as run
    from oodbench.detector import Columns, Detector
    from oodbench.errors import OodbenchError
    from oodbench.models.base import DensityModel, Likelihood
    from oodbench.models.noise import Noise
    from oodbench.pretrained import load_model
    from oodbench.registry import register
    from oodbench.scoring import score_images as score

__all__ = [
    "Columns",
    "DensityModel",
    "Detector",
    "Likelihood",
    "Noise",
    "OodbenchError",
    "load_model",
    "register",
    "run",
    "score",
]

_WHERE = {
    "Columns": "oodbench.detector:Columns",
    "DensityModel": "oodbench.models.base:DensityModel",
    "Detector": "oodbench.detector:Detector",
    "Likelihood": "oodbench.models.base:Likelihood",
    "Noise": "oodbench.models.noise:Noise",
    "OodbenchError": "oodbench.errors:OodbenchError",
    "load_model": "oodbench.pretrained:load_model",
    "register": "oodbench.registry:register",
    "run": "oodbench.benchmark:run",
    "score": "oodbench.scoring:score_images",
}


def __getattr__(name: str) -> Any:
    """Public names are imported when first used: torch takes seconds, `oodbench --help` must not."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    module, _, attribute = _WHERE[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return __all__
