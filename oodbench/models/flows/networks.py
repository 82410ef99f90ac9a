"""The networks that steer couplings: (B, ..., inputs) -> (B, ..., outputs), channels last, zero at the start."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oodbench.models.flows.transforms.base import require
from oodbench.models.nn import Convolution, Linear, folded, in_cache, network_dtype, rectified

__all__ = ["MLP", "Band", "ConvolutionNetwork", "ResidualConvolutionNetwork"]


class ConvolutionNetwork(nn.Module):
    """3x3 convolution, ReLU, 1x1 convolution, ReLU, 3x3 convolution (Kingma & Dhariwal 2018, Section 5)."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.first = Convolution(inputs, hidden, (3, 3), (1, 1))
        self.second = Convolution(hidden, hidden)
        self.last = Convolution(hidden, outputs, (3, 3), (1, 1), zero=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, inputs) -> (B, H, W, outputs) in the dtype of x."""
        # Some of the channels are cast slowly where they lie among others.
        parts = in_cache(x.contiguous().permute(0, 3, 1, 2), self.second.weight.shape[0])
        outs = [self.last(rectified(self.second, rectified(self.first, part))) for part in parts]
        out = outs[0] if len(outs) == 1 else torch.cat(outs)
        return out.permute(0, 2, 3, 1).to(x.dtype)


class ResidualConvolutionNetwork(nn.Module):
    """3x3 convolution, `blocks` of h + 1x1(ReLU(3x3(ReLU(h)))), ReLU, 1x1 convolution (after Durkan et al. 2019)."""

    def __init__(self, inputs: int, hidden: int, outputs: int, blocks: int) -> None:
        super().__init__()
        _require_blocks(blocks)
        self.first = Convolution(inputs, hidden, (3, 3), (1, 1))
        self.inner = nn.ModuleList(Convolution(hidden, hidden, (3, 3), (1, 1)) for _ in range(blocks))
        self.outer = nn.ModuleList(Convolution(hidden, hidden, zero=True) for _ in range(blocks))
        self.last = Convolution(hidden, outputs, zero=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, inputs) -> (B, H, W, outputs) in the dtype of x."""
        hidden = self.first(x.contiguous().permute(0, 3, 1, 2))
        for inner, outer in zip(self.inner, self.outer, strict=True):
            hidden = hidden + outer(rectified(inner, hidden.relu()))
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
        _require_blocks(blocks)
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
        hidden: Tensor = self.first(x.to(network_dtype(self.first.weight)))  # in which it stays up to the end
        for inner, outer in zip(self.inner, self.outer, strict=True):
            hidden = hidden + outer(inner(hidden.relu()).relu_())
        return cast("Tensor", self.last(hidden.relu())).to(x.dtype)


class Band(nn.Module):
    """Direct connections from the `reach` numbers before each, and from some more: the product with a banded matrix.

    They give a masked network with fewer hidden units than numbers what it lacks, each number's nearest predecessors;
    an image's row above is width times channels before. Computed in blocks of `reach`: each number sees the block
    before its own and what precedes it in its own.
    """

    mask: Tensor

    def __init__(self, numbers: int, reach: int, parameters: int) -> None:
        super().__init__()
        self.numbers, self.reach, self.parameters_each = numbers, reach, parameters
        blocks = -(-numbers // reach)
        own = torch.ones(reach, reach).triu(1).bool()
        mask = torch.cat([torch.ones_like(own), own]).repeat(1, parameters)
        self.register_buffer("mask", mask, persistent=False)
        self.weight = nn.Parameter(torch.zeros(blocks, 2 * reach, parameters * reach))

    @folded
    def weight_now(self) -> Tensor:
        """The masked weight in the network dtype."""
        return (self.weight * self.mask).to(network_dtype(self.weight))

    def forward(self, x: Tensor) -> Tensor:
        """(B, numbers) -> (B, parameters * numbers), parameter by parameter, in the dtype of x."""
        weight = self.weight_now()
        blocks = len(weight)
        padded = F.pad(x.to(weight.dtype), (self.reach, blocks * self.reach - self.numbers))
        padded = padded.reshape(len(x), blocks + 1, self.reach).transpose(0, 1)
        out = torch.cat([padded[:-1], padded[1:]], -1) @ weight  # (blocks, B, parameters * reach)
        out = out.reshape(blocks, len(x), self.parameters_each, self.reach).permute(1, 2, 0, 3).flatten(2)
        return out[..., : self.numbers].flatten(1).to(x.dtype)


def _require_blocks(blocks: int) -> None:
    require(blocks >= 0, f"A network cannot have {blocks} blocks: use 0 for none, or more.")
