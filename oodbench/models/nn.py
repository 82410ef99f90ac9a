"""How networks run: the precision of convolutions, and weights that are folded once for a whole evaluation."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oodbench.errors import OodbenchError
from oodbench.models.affine import Affine, onednn_takes

__all__ = ["Convolution", "Linear", "folded", "in_cache", "network_dtype", "networks", "rectified"]

T = TypeVar("T")

# What torch.compile emits for a convolution with a ReLU, and for weights that are laid out for one kind of input once;
# None where torch was built without oneDNN.
_FUSED: Any = getattr(torch.ops.mkldnn, "_convolution_pointwise", None)
_PACK: Any = getattr(torch.ops.mkldnn, "_reorder_convolution_weight", None)

_CACHE_BYTES = 1 << 21  # of activations that stay in a core's caches while the next layer reads them
_ROWS = 128  # of a masked weight in one product: smaller ones take longer than what they leave out


@dataclass(frozen=True)
class _Mode:
    dtype: torch.dtype | None = None
    cache: dict[tuple[Any, ...], Any] | None = None


# A thread's own, unless it runs in another's context, as lanes do: some models enter a mode for a search of theirs.
_mode: ContextVar[_Mode] = ContextVar("_mode", default=_Mode())  # noqa: B039  # frozen


@contextmanager
def networks(dtype: torch.dtype | None = None, fold: bool = False) -> Iterator[None]:
    """Inside, networks compute in `dtype` (None: that of their weights) while sums of likelihoods stay in float32.

    With `fold`, each `@folded` method runs once per module for the whole block: for evaluation, where weights stand
    still. Nothing outlives the block, so no folded weight can be stale.
    """
    token = _mode.set(_Mode(dtype, {} if fold else None))
    try:
        yield
    finally:
        _mode.reset(token)


def network_dtype(weight: Tensor) -> torch.dtype:
    """The dtype in which a network with such a weight computes now."""
    return _mode.get().dtype or weight.dtype


def folded(method: Callable[..., T]) -> Callable[..., T]:
    """Marks a method that derives constants from weights (masks, LU factors, casts), one for each of its arguments."""

    @functools.wraps(method)
    def derive(module: Any, *arguments: Any) -> T:
        cache = _mode.get().cache
        if cache is None:
            return method(module, *arguments)
        key = (module, method.__name__, *arguments)
        if key not in cache:
            # Made in inference mode, it could not be in the graph of one who leaves the mode for gradients in z or x.
            with torch.inference_mode(False), torch.no_grad():
                cache[key] = method(module, *arguments)
        value: T = cache[key]
        return value

    return derive


class Convolution(nn.Module):
    """A 2-d convolution that computes in the network dtype; `zero` starts it as the zero function."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        stride: int = 1,
        zero: bool = False,
    ) -> None:
        super().__init__()
        _require_sizes(inputs, outputs)
        self.padding = padding
        self.stride = stride
        self.weight = nn.Parameter(torch.zeros(outputs, inputs, *kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        if not zero:
            nn.init.kaiming_normal_(self.weight, nonlinearity="linear")

    @folded
    def parameters_now(self) -> tuple[Tensor, Tensor]:
        """Weight (channels last) and bias in the network dtype."""
        dtype = network_dtype(self.weight)
        weight = self.effective_weight().to(dtype)
        return weight.contiguous(memory_format=torch.channels_last), self.bias.to(dtype)

    @folded
    def packed(self, *shape: int) -> Tensor:
        """The weight as oneDNN lays it out for inputs (B, inputs, H, W) of this shape: opaque, for its own calls."""
        weight, _ = self.parameters_now()
        if _mode.get().cache is None:  # for a single call oneDNN does it itself
            return weight
        packed: Tensor = _PACK(weight, list(self.padding), [self.stride] * 2, [1, 1], 1, list(shape))
        return packed

    def effective_weight(self) -> Tensor:
        """The weight that the convolution uses; masked convolutions multiply theirs."""
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H', W') in the network dtype, channels last."""
        return self.followed_by(x, "none")

    def followed_by(self, x: Tensor, operation: Literal["none", "relu"]) -> Tensor:
        """The same and what follows it, in one oneDNN call where no gradient is asked.

        So each number is rectified before it leaves the processor's caches, and weights are laid out once.
        """
        weight, bias = self.parameters_now()
        x = x.to(weight.dtype)
        if _FUSED is not None and _PACK is not None and _for_onednn(x):
            stride = [self.stride, self.stride]
            out: Tensor = _FUSED(
                x, self.packed(*x.shape), bias, list(self.padding), stride, [1, 1], 1, operation, [], ""
            )
            return out
        out = torch.conv2d(x, weight, bias, self.stride, self.padding)
        return out.relu_() if operation == "relu" else out


class Linear(nn.Module):
    """x W' + b in the network dtype, given back in that of x; `zero` starts it as the zero function.

    `mask` (outputs, inputs) is true where a weight may be other than zero. Where rows of few inputs come first, as in
    autoregressive networks with sorted ranks, a third of a large product is not computed.
    """

    mask: Tensor | None

    def __init__(self, inputs: int, outputs: int, zero: bool = False, mask: Tensor | None = None) -> None:
        super().__init__()
        _require_sizes(inputs, outputs)
        self.register_buffer("mask", mask, persistent=False)
        # Of every block of outputs, how many of the first inputs it needs.
        self.needed = [inputs] if mask is None else [_last_used(part) for part in torch.split(mask, _ROWS)]
        self.weight = nn.Parameter(torch.zeros(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        if not zero:
            nn.init.kaiming_normal_(self.weight, nonlinearity="linear")

    @folded
    def blocks_now(self) -> list[tuple[int, Tensor, Tensor]]:
        """Masked weight (rows, n) and bias (rows,) of blocks of outputs, which need the first n inputs alone."""
        dtype = network_dtype(self.weight)
        weight = (self.weight if self.mask is None else self.weight * self.mask).to(dtype)
        bias = self.bias.to(dtype)
        if len(self.needed) == 1 or weight.device.type != "cpu":  # on a GPU one product is faster than several
            return [(weight.shape[1], weight, bias)]
        parts = zip(self.needed, torch.split(weight, _ROWS), torch.split(bias, _ROWS), strict=True)
        return [(n, part[:, :n].contiguous(), of_part) for n, part, of_part in parts]

    def parameters_now(self) -> tuple[Tensor, Tensor]:
        """Weight and bias in the network dtype, of a layer without a mask."""
        ((_, weight, bias),) = self.blocks_now()
        return weight, bias

    @folded
    def affine_now(self) -> Affine:
        """The map for evaluation, of a layer without a mask."""
        return Affine(*self.parameters_now())

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs) in the dtype of x."""
        blocks = self.blocks_now()
        rows = x.to(blocks[0][1].dtype)
        parts = [F.linear(rows[..., :n], weight, bias) for n, weight, bias in blocks]
        return (parts[0] if len(parts) == 1 else torch.cat(parts, -1)).to(x.dtype)


def rectified(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """ReLU of what a layer gives, of a convolution in the same call."""
    if type(layer) is Convolution:
        return layer.followed_by(x, "relu")
    return layer(x).relu_()


def in_cache(x: Tensor, channels: int) -> tuple[Tensor, ...]:
    """Maps (B, C, H, W) in parts of so many images that hidden maps with `channels` channels stay in a core's caches.

    Where gradients are asked, or on a GPU, there is one part.
    """
    if x.device.type != "cpu" or not torch.is_inference_mode_enabled():
        return (x,)
    size = 2 if _mode.get().dtype is torch.bfloat16 else x.element_size()
    images = max(1, _CACHE_BYTES // (channels * x.shape[2] * x.shape[3] * size))
    return torch.split(x, images) if images < len(x) else (x,)


def _for_onednn(x: Tensor) -> bool:
    return x.numel() > 0 and torch.is_inference_mode_enabled() and onednn_takes(x)


def _require_sizes(inputs: int, outputs: int) -> None:
    if min(inputs, outputs) < 1:
        raise OodbenchError(f"A layer from {inputs} to {outputs} numbers cannot be: each of them is at least 1.")


def _last_used(mask: Tensor) -> int:
    """How many of the first columns hold all that is true."""
    used = mask.any(0).nonzero()
    return int(used.max()) + 1 if len(used) else 0
