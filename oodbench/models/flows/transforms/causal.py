"""Convolutions whose Jacobian is triangular (Hoogeboom et al. 2019): the halves of an invertible n x n convolution."""

import torch
from torch import Tensor, nn

from oodbench.models.flows.transforms.base import Transform, positions, require, require_inverse
from oodbench.models.nn import folded
from oodbench.models.noise import Noise

__all__ = ["CausalConvolution"]


class CausalConvolution(Transform):
    """y = K * h, where a place sees only itself and the places before it in raster order (`reverse`: after it).

    At its own place it sees channels triangularly, so that the whole Jacobian is triangular and log|det| is
    H W sum_c log K_cc, and so that the inverse is a substitution, place by place (Hoogeboom et al. 2019,
    arXiv:1901.11137, Section 3). Two, one of them reversed, see a whole n x n neighbourhood. It starts as the identity.
    An inverse that rounding destroys, which huge kernels can cause, is an `OodbenchError`.
    """

    mask: Tensor

    def __init__(self, channels: int, size: int, reverse: bool = False) -> None:
        super().__init__()
        require(
            size >= 3 and size % 2 == 1,
            f"An invertible convolution's kernel needs a centre and neighbours, and {size}x{size} has not both: "
            "use an odd size of at least 3.",
        )
        self.radius = size // 2
        self.reverse = reverse
        self.weight = nn.Parameter(torch.zeros(channels, channels, size, size))
        self.log_diagonal = nn.Parameter(torch.zeros(channels))
        mask = torch.zeros(channels, channels, size * size)
        mask[..., : size * size // 2] = 1
        mask[..., size * size // 2] = torch.ones(channels, channels).tril(-1)
        self.register_buffer("mask", mask.reshape(self.weight.shape), persistent=False)

    @folded
    def kernel(self) -> Tensor:
        """(C, C, n, n) as of the raster order: masked, with a positive diagonal in its centre."""
        centre = torch.zeros_like(self.mask)
        centre[..., self.radius, self.radius] = torch.eye(len(self.log_diagonal)).to(centre)
        return self.weight * self.mask + centre * self.log_diagonal.exp()[:, None, None, None]

    def forward(self, h: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        kernel = self.kernel()
        kernel = kernel.flip(0, 1, 2, 3) if self.reverse else kernel
        y = torch.conv2d(h.permute(0, 3, 1, 2), kernel, padding=self.radius).permute(0, 2, 3, 1)
        return y, self.log_diagonal.sum() * positions(h)

    @torch.no_grad()
    def inverse(self, y: Tensor, noise: Noise) -> Tensor:
        turned = y.flip(1, 2, 3) if self.reverse else y
        h = self._substitute(turned.double(), self.kernel().double()).to(y.dtype)
        h = h.flip(1, 2, 3) if self.reverse else h
        require_inverse(
            self(h, noise)[0], y, "a convolution", "rounding grows from place to place with such a kernel; train with "
            "weight decay or a lower learning rate"
        )  # fmt: skip
        return h

    def _substitute(self, y: Tensor, kernel: Tensor) -> Tensor:
        """Solves for one place after another: h_ij = K_centre^-1 (y_ij - what the places before contribute)."""
        r = self.radius
        _, height, width, channels = y.shape
        eye = torch.eye(channels, dtype=y.dtype, device=y.device)
        unmix = torch.linalg.solve_triangular(kernel[:, :, r, r], eye, upper=False).T
        before = kernel[:, :, : r + 1].clone()
        before[:, :, r, r:] = 0
        before = before.permute(2, 3, 1, 0).reshape(-1, channels)  # as patches (rows, columns, channels) lie
        h = y.new_zeros(len(y), height + r, width + 2 * r, channels)
        for i in range(height):
            for j in range(width):
                patch = h[:, i : i + r + 1, j : j + 2 * r + 1].reshape(len(y), len(before))
                h[:, i + r, j + r] = (y[:, i, j] - patch @ before) @ unmix
        return h[:, r:, r : r + width]
