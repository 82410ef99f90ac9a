"""A statistic: named per-image columns that one pass over the images gives."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Statistic"]


def _to_all(model: Any) -> bool:
    return True


@dataclass(frozen=True)
class Statistic:
    """What the engine needs to know to batch, cache and shard one function of images.

    `function(model, x, noise)` takes uint8 (B, C, H, W) and the images' `Noise`, and returns one tensor (B, ...).
    A change of the function that changes a number needs a new `version`, because cached columns are found by it; of a
    plugin's file every change counts as one, but not those of what the file imports.
    """

    name: str
    function: Callable[..., Any]
    needs_model: bool = True  # False: `model` is None, and every model of one domain shares the column
    version: int = 1
    parameters: Mapping[str, Any] = field(default_factory=dict)  # recorded, and part of the cache key
    cached: bool = True  # False for what is quicker computed than read
    applies: Callable[[Any], bool] = _to_all  # to this model (a loaded module) or not, where it needs one
