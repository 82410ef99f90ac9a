"""A device that is not the CPU, for machines without one: tensors with values that say that they lie elsewhere.

A model that makes a tensor without saying where, keeps one that does not move with it, or goes through NumPy works on
a CPU and fails on a GPU. Here it fails as it would there: an operation that meets tensors of both places raises, except
copies and CPU tensors of no dimension, which a GPU takes too. So does one on `torch.tensor(numbers, device=...)`, which
no mode sees and which makes a GPU wait: `new_full` and `arange` do not.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["PLACE", "Elsewhere", "elsewhere", "move"]

PLACE = torch.device("meta")  # no tensor of its own is ever made there
_CPU = torch.device("cpu")
_COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class Elsewhere(Tensor):
    """A tensor of `PLACE` whose values are those of the CPU tensor `here`."""

    here: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, here: Tensor) -> "Elsewhere":
        strides, offset = here.stride(), here.storage_offset()
        with torch.inference_mode(False):  # a view of another tensor could not be made of an inference tensor
            made: Elsewhere = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
                cls, here.shape, strides=strides, storage_offset=offset, dtype=here.dtype, device=PLACE
            )
        made.here = here
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


class elsewhere(TorchDispatchMode):  # noqa: N801 - a context manager
    """Inside, `PLACE` is a device like others; `move` brings tensors and modules there."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


def move(module: nn.Module) -> None:
    """Moves parameters and buffers, as `module.to(PLACE)` would; within `elsewhere()`."""
    module._apply(lambda tensor: Elsewhere(tensor.detach()))


def _run(function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """One operation, on the values; its results are where it says, or where its tensors are."""
    there: list[Elsewhere] = []
    here: list[Tensor] = []

    def value(argument: Any) -> Any:
        if isinstance(argument, Elsewhere):
            there.append(argument)
            return argument.here
        if isinstance(argument, Tensor) and argument.ndim:
            here.append(argument)
        return _CPU if isinstance(argument, torch.device) else argument

    values, options = _each(value, args), {name: _each(value, argument) for name, argument in kwargs.items()}
    if there and here and function not in _COPIES:
        shapes = [tuple(tensor.shape) for tensor in here]
        raise RuntimeError(f"{function} takes tensors of two devices: those of shape {shapes} are on the CPU")
    if function is torch.ops.aten._efficientzerotensor.default:  # zeros without memory
        function, options = torch.ops.aten.zeros.default, options | {"pin_memory": False}
    target = kwargs.get("device")
    moved = bool(there) if target is None else torch.device(target) == PLACE
    if function is torch.ops.aten.copy_.default:
        moved = isinstance(args[0], Elsewhere)

    def result(made: Any) -> Any:
        if not isinstance(made, Tensor):
            return made
        same = next((tensor for tensor in there if tensor.here is made), None)  # what it changed in place
        # Resolved, as the outer tensor could not say that it is a lazy conjugate.
        return same if same is not None else Elsewhere(made.resolve_conj().resolve_neg()) if moved else made

    return _each(result, function(*values, **options))


def _each(function: Callable[[Any], Any], structure: Any) -> Any:
    if isinstance(structure, (list, tuple)):
        return type(structure)(_each(function, item) for item in structure)
    return function(structure)
