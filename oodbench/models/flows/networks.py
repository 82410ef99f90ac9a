"""The networks that steer couplings: (B, ..., inputs) -> (B, ..., outputs), channels last, zero at the start."""

from torch import Tensor, nn

from oodbench.models.nn import Convolution

__all__ = ["ConvolutionNetwork"]


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
