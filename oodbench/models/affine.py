"""An affine map for evaluation: a matrix product, with its bias and ReLU in one call of oneDNN where that is faster."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Affine", "onednn_takes"]

# The operations that torch.compile emits for a matrix product with a ReLU, and for weights in oneDNN's own order; None
# where torch was built without oneDNN.
_FUSED: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
_REORDERED: Any = getattr(torch.ops.mkldnn, "_reorder_linear_weight", None)

# From so many products of numbers on oneDNN is faster: a call of it takes longer to start. To read a weight costs as
# much as its products with some rows.
_PRODUCTS, _READING = 1 << 21, 8


class Affine:
    """x W' + b in the dtype of W, rectified where asked: on a CPU one oneDNN call, where no gradient is recorded.

    What a `@folded` method may return. On a processor with AVX-512, oneDNN's product with a weight in its own order
    took 0.91 of the time of torch's, at 64 to 512 rows, and half of it at 2 to 16 rows with weights that no cache held.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.weight, self.bias = weight, bias
        self.reordered: Tensor | None = None

    def __call__(self, x: Tensor, relu: bool = False) -> Tensor:
        """(B, inputs) -> (B, outputs)."""
        x = x.to(self.weight.dtype)
        if self._is_fused(x):
            if self.reordered is None:
                self.reordered = _REORDERED(self.weight)
            out: Tensor = _FUSED(x, self.reordered, self.bias, "relu" if relu else "none", [], "")
            return out
        out = F.linear(x, self.weight, self.bias)
        return out.relu_() if relu else out

    def _is_fused(self, x: Tensor) -> bool:
        if _FUSED is None or torch.is_grad_enabled():
            return False
        return (len(x) + _READING) * self.weight.numel() >= _PRODUCTS and onednn_takes(x)


def onednn_takes(x: Tensor) -> bool:
    """Whether oneDNN's own calls compute with such a tensor: older processors have no bfloat16 there."""
    if x.device.type != "cpu":
        return False
    return x.dtype == torch.float32 or (
        x.dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )
