"""Networks that are contractions: convolutions whose spectral norm is bounded, and a smooth activation."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from oodbench.models.flows.transforms.base import require
from oodbench.models.nn import Convolution

__all__ = ["ContractiveNetwork", "LipschitzConvolution", "spectral_bound"]

Derivative = Callable[[Tensor, Tensor | None], Tensor]

_SQUARINGS = 5  # they leave the bound of an n x n matrix at most n^(1/128) too large: 3 % for 64 channels
_STEEPEST = 1.0999  # what the derivative of x sigmoid(x) never exceeds


def spectral_bound(weight: Tensor, places: tuple[int, int]) -> Tensor:
    """An upper bound () of the operator norm of a zero-padded convolution (out, in, k, k) on maps of H x W places.

    On a torus that is larger by the padding the convolution contains the padded one, and it is block diagonal in
    frequency. The largest singular value of each block is bounded from above by Gram iteration (Delattre et al. 2023,
    arXiv:2305.16173): sigma <= norm_F((M'M)^(2^t))^(1 / 2^(t+1)). Unlike a power iteration it has nothing that could
    fail to converge: every step of it is a bound. It is differentiable, and close to the norm itself. Of weights that
    are no numbers it is NaN.
    """
    largest = weight.detach().abs().amax().clamp_min(1)  # whose fourth powers, summed, overflow
    return largest * _spectral_bound(weight / largest, places)


def _spectral_bound(weight: Tensor, places: tuple[int, int]) -> Tensor:
    side = weight.shape[-1]
    height, width = (count + side // 2 for count in places) if side > 1 else (1, 1)
    # Half of the plane: a real kernel's blocks at opposite frequencies are conjugate.
    rows, columns = torch.arange(height, device=weight.device), torch.arange(width // 2 + 1, device=weight.device)
    frequencies = torch.cartesian_prod(rows.to(weight.dtype) / height, columns.to(weight.dtype) / width)
    with torch.no_grad():  # only the worst frequency decides, and only it is differentiated
        worst = _log_gram_bound(_gram(_blocks(weight, frequencies))).argmax()
    chosen = frequencies.index_select(0, worst.reshape(1))  # an index in brackets would make a GPU wait for it
    return (_log_gram_bound(_gram(_blocks(weight, chosen)))[0] / 2).exp()


def _blocks(weight: Tensor, frequencies: Tensor) -> Tensor:
    """The kernel's Fourier transform at frequencies (F, 2) in cycles a place: complex (F, out, in)."""
    taps = torch.cartesian_prod(*2 * [torch.arange(weight.shape[-1], device=weight.device).to(weight.dtype)])
    angle = -2 * torch.pi * frequencies @ taps.T
    kernel = weight.flatten(2)
    parts = [torch.einsum("ft,oit->foi", wave, kernel) for wave in (angle.cos(), angle.sin())]
    return torch.complex(parts[0].contiguous(), parts[1].contiguous())


def _gram(matrices: Tensor) -> Tensor:
    """M M' or M'M (..., n, n), whichever is smaller."""
    adjoint = matrices.mH
    return matrices @ adjoint if matrices.shape[-2] <= matrices.shape[-1] else adjoint @ matrices


def _log_gram_bound(gram: Tensor) -> Tensor:
    """Upper bounds (...) of the logarithms of the largest eigenvalues of matrices M'M (..., n, n)."""
    log_scale = gram.real.new_zeros(gram.shape[:-2])
    for _ in range(_SQUARINGS):
        norm = _frobenius(gram)
        gram = gram / norm[..., None, None]
        gram = gram @ gram
        log_scale = 2 * (log_scale + norm.log())
    return (log_scale + _frobenius(gram).log()) / (1 << _SQUARINGS)


def _frobenius(matrices: Tensor) -> Tensor:
    squares: Tensor = torch.view_as_real(matrices).square().sum((-3, -2, -1))
    return squares.clamp_min(1e-30) ** 0.5


class LipschitzConvolution(Convolution):
    """A convolution that keeps the size of maps (H, W) and stretches nothing by more than `coefficient`."""

    def __init__(self, inputs: int, outputs: int, size: int, places: tuple[int, int], coefficient: float) -> None:
        super().__init__(inputs, outputs, (size, size), (size // 2, size // 2))
        self.places = places
        self.coefficient = coefficient

    def effective_weight(self) -> Tensor:
        """The weight, scaled down where the bound of its norm exceeds the coefficient (Miyato et al. 2018)."""
        bound = spectral_bound(self.weight, self.places)
        if not torch.is_grad_enabled():  # a training step looks at its loss instead: this would make a GPU wait
            require(
                bool(bound.isfinite()),
                "The spectral norm of a convolution is no finite number, as its weights are none or huge: train with "
                "a lower learning rate.",
            )
        return self.weight * (self.coefficient / bound.clamp_min(self.coefficient))


class ContractiveNetwork(nn.Module):
    """g: 3x3, 1x1 and 3x3 convolution with x sigmoid(x) / 1.1 between (Chen et al. 2019), Lip(g) <= `coefficient`."""

    def __init__(self, channels: int, hidden: int, places: tuple[int, int], coefficient: float) -> None:
        super().__init__()
        each = coefficient ** (1 / 3)
        self.first = LipschitzConvolution(channels, hidden, 3, places, each)
        self.second = LipschitzConvolution(hidden, hidden, 1, places, each)
        self.last = LipschitzConvolution(hidden, channels, 3, places, each)

    def forward(self, x: Tensor) -> Tensor:
        """g(x), (B, H, W, C) -> the same."""
        return self.linearise(x)[0]

    def linearise(self, x: Tensor) -> tuple[Tensor, Derivative]:
        """(g(x), derivative): `derivative(v, rows)` is J_g v of vectors v (R, H, W, C) at the images `rows` (R,).

        Without `rows` there is one vector an image, in order.
        """
        layers = [layer.parameters_now() for layer in (self.first, self.second, self.last)]
        h, slopes = x.permute(0, 3, 1, 2).to(layers[0][0].dtype), []
        for weight, bias in layers[:-1]:
            h = torch.conv2d(h, weight, bias, padding=weight.shape[-1] // 2)
            gate = h.sigmoid()
            slopes.append(torch.addcmul(gate, h * gate, 1 - gate) / _STEEPEST)
            h = h * gate / _STEEPEST
        weight, bias = layers[-1]
        out: Tensor = torch.conv2d(h, weight, bias, padding=weight.shape[-1] // 2).permute(0, 2, 3, 1)

        def derivative(v: Tensor, rows: Tensor | None) -> Tensor:
            t = v.permute(0, 3, 1, 2)
            for (weight, _), slope in zip(layers, [*slopes, None], strict=True):
                t = torch.conv2d(t.to(weight.dtype), weight, padding=weight.shape[-1] // 2)
                if slope is not None:
                    t = t * (slope if rows is None else slope[rows])
            return t.permute(0, 2, 3, 1).to(v.dtype)

        return out.to(x.dtype), derivative
