"""The networks that steer couplings: (B, ..., inputs) -> (B, ..., outputs), channels last, zero at the start."""

from typing import cast

from torch import Tensor, nn

from oodbench.models.nn import Convolution, Linear

__all__ = ["MLP", "ConvolutionNetwork", "ResidualConvolutionNetwork"]


class ConvolutionNetwork(nn.Module):
    """3x3 convolution, ReLU, 1x1 convolution, ReLU, 3x3 convolution (Kingma & Dhariwal 2018, Section 5)."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.first = Convolution(inputs, hidden, (3, 3), (1, 1))
        self.second = Convolution(hidden, hidden)
        self.last = Convolution(hidden, outputs, (3, 3), (1, 1), zero=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, inputs) -> (B, H, W, outputs) in the dtype of x."""
        # Some of the channels are cast slowly where they lie among others; in-place, as memory traffic is what counts.
        hidden = self.second(self.first(x.contiguous().permute(0, 3, 1, 2)).relu_()).relu_()
        out: Tensor = self.last(hidden).permute(0, 2, 3, 1)
        return out.to(x.dtype)


class ResidualConvolutionNetwork(nn.Module):
    """3x3 convolution, `blocks` of h + 1x1(ReLU(3x3(ReLU(h)))), ReLU, 1x1 convolution (after Durkan et al. 2019)."""

    def __init__(self, inputs: int, hidden: int, outputs: int, blocks: int) -> None:
        super().__init__()
        self.first = Convolution(inputs, hidden, (3, 3), (1, 1))
        self.inner = nn.ModuleList(Convolution(hidden, hidden, (3, 3), (1, 1)) for _ in range(blocks))
        self.outer = nn.ModuleList(Convolution(hidden, hidden, zero=True) for _ in range(blocks))
        self.last = Convolution(hidden, outputs, zero=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, inputs) -> (B, H, W, outputs) in the dtype of x."""
        hidden = self.first(x.contiguous().permute(0, 3, 1, 2))
        for inner, outer in zip(self.inner, self.outer, strict=True):
            hidden = hidden + outer(inner(hidden.relu()).relu_())
        out: Tensor = self.last(hidden.relu()).permute(0, 2, 3, 1)
        return out.to(x.dtype)


class MLP(nn.Module):
    """Linear, `blocks` of h + Linear(ReLU(Linear(ReLU(h)))), ReLU, Linear.

    With `ranks`, those (n,) of inputs, hidden units and outputs, a number sees only what has no higher rank than itself
    (the masks of Germain et al. 2015, Equations 8 and 9).
    """

    def __init__(
        self, inputs: int, hidden: int, outputs: int, blocks: int, ranks: tuple[Tensor, Tensor, Tensor] | None = None
    ) -> None:
        super().__init__()
        first = inner = last = None
        if ranks is not None:
            into, within, out = ranks
            first, inner, last = within[:, None] >= into, within[:, None] >= within, out[:, None] >= within
        self.first = Linear(inputs, hidden, mask=first)
        self.inner = nn.ModuleList(Linear(hidden, hidden, mask=inner) for _ in range(blocks))
        self.outer = nn.ModuleList(Linear(hidden, hidden, zero=True, mask=inner) for _ in range(blocks))
        self.last = Linear(hidden, outputs, zero=True, mask=last)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs) -> (B, outputs) in the dtype of x."""
        hidden: Tensor = self.first(x)
        for inner, outer in zip(self.inner, self.outer, strict=True):
            hidden = hidden + outer(inner(hidden.relu()).relu_())
        return cast("Tensor", self.last(hidden.relu())).to(x.dtype)
