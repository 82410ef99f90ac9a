"""Laplace's approximation on a decoder that is linear near every z: N(mode, precision^-1) with all covariances."""

import math
from typing import Any, cast

import torch
from torch import Tensor

from oodbench.errors import OodbenchError
from oodbench.models.likelihoods import logistic_expansion
from oodbench.models.nn import Linear
from oodbench.models.noise import Noise
from oodbench.models.vae.networks import DenseDecoder
from oodbench.models.vae.posteriors import Posterior, standard_normal_log_prob

__all__ = ["FullGaussian", "cholesky", "expansion", "linearised"]


class FullGaussian(Posterior):
    """N(mean, precision^-1) of vectors (B, L), against a standard normal prior.

    `factor` is the lower triangle F (B, L, L) of the precision F F'. With U = F'^-1 the covariance is U U'.
    """

    def __init__(self, mean: Tensor, factor: Tensor) -> None:
        self.mean = mean
        one = torch.eye(mean.shape[1], dtype=mean.dtype, device=mean.device)
        self.upper = torch.linalg.solve_triangular(factor.mT, one.expand_as(factor), upper=True)
        self.log_scales = -factor.diagonal(dim1=1, dim2=2).log()  # of every latent, given the later ones
        self.std = self.upper.square().sum(2).sqrt()

    def draw(self, noise: Noise, count: int) -> tuple[Tensor, Tensor]:
        e = noise.normal((self.mean.shape[1],), "latent").to(self.mean.dtype)
        turned = e.reshape(len(self.mean), count, self.mean.shape[1]) @ self.upper.mT
        log_q = standard_normal_log_prob(e) - self.log_scales.sum(1).repeat_interleave(count)
        return (self.mean[:, None] + turned).flatten(0, 1), log_q

    def kl(self) -> Tensor:
        """Its summands by the chain rule (B, L): each latent's expected KL given the later ones, none negative."""
        return 0.5 * (self.mean.square() + self.std.square() - 1) - self.log_scales


def cholesky(precision: Tensor) -> Tensor:
    """The lower factor (B, L, L) of precisions (B, L, L)."""
    factor, failed = torch.linalg.cholesky_ex(precision)
    if failed.any():
        raise OodbenchError(
            "A Laplace posterior's precision is not positive definite, so the decoder's numbers overflow or are NaN: "
            "train with a lower learning_rate or clip."
        )
    return cast(Tensor, factor)


def expansion(decoder: DenseDecoder, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Slope (B, L) and negated curvature (B, L, L) of log P(x | z) p(z) at z, as if the decoder were linear there.

    P(x | z) is one discretised logistic a number. In float64: sharp pixels give eigenvalues of 10^7 and more, beside
    which float32 loses the prior's 1.
    """
    searched = slice(0, 2 * x.shape[1])  # of the decoder's outputs: means and log-scales
    parameters, jacobian = linearised(decoder, z, searched)
    slope, curvature = (t.flatten(1).double() for t in logistic_expansion(x, parameters))
    jacobian, z = jacobian.double(), z.double()
    one = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
    precision = (jacobian * curvature[:, None]) @ jacobian.mT + one
    return (jacobian @ slope[..., None])[..., 0] - z, precision


def linearised(decoder: DenseDecoder, z: Tensor, outputs: slice) -> tuple[Tensor, Tensor]:
    """What a decoder gives for z (B, L), and the Jacobian's transpose (B, L, places) of some of its outputs.

    Explicit products of weights with the ReLUs' masks, one row a latent, in half of the time of torch's forward mode
    (49 ms against 82 for 64 grey 28x28 images and 32 latents, 193 against 458 for colour 32x32 and 64). It computes
    in the network dtype.
    """
    first, _, second, _, last = cast(tuple[Linear, Any, Linear, Any, Linear], tuple(decoder.layers))
    weight, bias = first.parameters_now()
    hidden = torch.addmm(bias, z.to(weight.dtype), weight.mT).relu()
    tangents = weight.mT * (hidden > 0)[:, None]
    weight, bias = second.parameters_now()
    hidden = torch.addmm(bias, hidden, weight.mT).relu()
    tangents = (tangents @ weight.mT) * (hidden > 0)[:, None]
    weight, bias = (t[decoder.idle :] for t in last.parameters_now())
    linear, of_linear = (t[decoder.idle :] for t in decoder.linear.parameters_now())
    of_network = torch.addmm(bias, hidden, weight.mT).to(z.dtype)
    straight = torch.addmm(of_linear, z.to(linear.dtype), linear.mT).to(z.dtype)
    parameters = (straight + of_network).reshape(-1, *decoder.image)
    places = math.prod(decoder.image[1:])
    rows = slice(outputs.start * places, outputs.stop * places)
    return parameters, (tangents @ weight[rows].mT + linear[rows].mT).to(z.dtype)
