"""InFlow's attention: whether an image is like those of training, by random features and a kernel mean embedding."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oodbench.models.flows.transforms.base import require

__all__ = ["Attention", "rbf"]

_WIDTHS = (16, 32, 64)
_FEATURES = 32


def rbf(a: Tensor, b: Tensor, bandwidth: Tensor) -> Tensor:
    """exp(-|a_i - b_j|^2 / (2 bandwidth^2)), (N, d) and (M, d) -> (N, M)."""
    return (torch.cdist(a, b).square() * (-0.5 / bandwidth**2)).exp()


class Attention(nn.Module):
    """A gate that one image opens or not: c = [w(x) >= t] with the witness w(x) = mean_j k(e(x), e(r_j)).

    e is a fixed random convolutional network to 32 numbers, as in InFlow (Kumar et al. 2021, arXiv:2106.15894); w is
    the kernel mean embedding of `references` training images r (Gretton et al. 2012, JMLR 13), with a normal kernel of
    median bandwidth. t is the `level` quantile of w on images held out of training, so that about this share of
    in-distribution images is closed out. Until it is fitted every image passes. It computes in float64, whatever the
    weights around it are, so that no rounding decides on which side an image falls.
    """

    projection: Tensor
    reference: Tensor
    bandwidth: Tensor
    threshold: Tensor

    def __init__(self, shape: tuple[int, int, int], references: int, level: float) -> None:
        super().__init__()
        require(references >= 2, f"A gate needs at least two reference images, not {references}.")
        require(0 <= level < 1, f"A gate cannot close out a share {level} of the images: use a level in [0, 1).")
        self.level = level
        channels, height, width = shape
        generator = torch.Generator().manual_seed(0)
        for number, (inputs, outputs) in enumerate(zip((channels, *_WIDTHS), _WIDTHS, strict=False)):
            weight = torch.randn(outputs, inputs, 4, 4, generator=generator) * (2 / (16 * inputs)) ** 0.5
            self.register_buffer(f"convolution_{number}", weight)
            height, width = (-(-side // 2) for side in (height, width))
        flat = _WIDTHS[-1] * height * width
        self.register_buffer("projection", torch.randn(_FEATURES, flat, generator=generator) * flat**-0.5)
        self.register_buffer("reference", torch.zeros(references, _FEATURES))
        self.register_buffer("bandwidth", torch.ones(()))
        self.register_buffer("threshold", torch.zeros(()))

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """uint8 (B, C, H, W) -> float64 (B, 32)."""
        h = x.double() / 127.5 - 1
        for number in range(len(_WIDTHS)):
            height, width = h.shape[-2:]
            h = F.pad(h, (1, 1 + width % 2, 1, 1 + height % 2))  # odd sides are padded to even ones: halves, rounded up
            h = torch.conv2d(h, self.get_buffer(f"convolution_{number}").double(), stride=2).relu()
        return F.linear(h.flatten(1), self.projection.double())

    def witness(self, x: Tensor) -> Tensor:
        """w(x), float64 (B,): near 0 far from all training images."""
        return rbf(self.encode(x), self.reference.double(), self.bandwidth.double()).mean(1)

    def margin(self, x: Tensor) -> Tensor:
        """w(x) - t, float64 (B,): the gate is open where it is not negative."""
        return self.witness(x) - self.threshold.double()

    @torch.no_grad()
    def fit(self, known: Tensor, held_out: Tensor) -> None:
        """Reference and bandwidth from training images, the threshold from others; both uint8 (N, C, H, W)."""
        count = len(self.reference)
        encoded = self.encode(known)
        spread = torch.arange(count, device=encoded.device) * len(encoded) // count  # too few stand there several times
        self.reference.copy_(encoded[spread])
        some = encoded[:: -(-len(encoded) // 1000)]
        self.bandwidth.copy_(torch.pdist(some).median().clamp_min(1e-6))
        self.threshold.copy_(self.witness(held_out).quantile(self.level))
