"""Injective networks from gradients of convex potentials (Brenier maps), as of Wang et al. 2021.

The gradient g' of a strongly convex g is injective, as (g'(a) - g'(b))'(a - b) grows with norm(a - b)^2.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oodbench.models.networks import Perceptron, Skipped
from oodbench.models.nn import Linear, folded, network_dtype
from oodbench.models.vae.observations import Observation
from oodbench.models.vae.principal import Principal

__all__ = ["BrenierMap", "InjectiveDecoder"]

_START = 0.01  # how far a fresh map is from the identity, about
_LEAST = 1e-3  # width that a latent without a principal component starts with


class BrenierMap(nn.Module):
    """u -> u + r A' relu(A u + b): the gradient of norm(u)^2 / 2 + r sum_i relu(a_i u + b_i)^2 / 2, with r > 0.

    Its Jacobian I + r A' D A is symmetric and at least I, so norm(g(a) - g(b)) >= norm(a - b).
    """

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.layer = Linear(size, hidden)
        self.log_rate = nn.Parameter(torch.tensor(math.log(_START * size / hidden)))

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """(B, size) -> the map (B, size) and its hidden units (B, hidden), these in the network dtype."""
        weight, bias = self.layer.parameters_now()
        hidden = F.linear(u.to(weight.dtype), weight, bias).relu()
        return u + self.log_rate.exp() * (hidden @ weight).to(u.dtype), hidden


class InjectiveDecoder(Skipped):
    """(B, latents) -> (B, outputs that are not idle, H, W), with the means m(z) = g2'(C g1'(z)), injective in z.

    g1 is the potential of one `BrenierMap` on the latents, C = U S^-1 with U'U = I and S a positive diagonal matrix,
    and g2 is strongly convex on all d means:

        g2(y) = y' (U S^2 U' + P) y / 2 + c'y + r sum_i relu(a_i y + b_i)^2 / 2,    P = I - U U',
        A = B S U' + Q P / r

    On the columns of C that is m(z) = U S t + P Q' h + c, where (t, h) are the map and the hidden units of a second
    `BrenierMap` with the weights B: the image's side costs one matrix product, as in any decoder, and what lies beyond
    the columns is free. S^-1 U' (m(z) - c) = t, so norm(m(a) - m(b)) >= min(S) norm(a - b).

    U is the orthonormal factor of learned `axes`. Scales and the other numbers are a network of the injective t. A
    second hidden layer in either potential, with positive weights between the two, gave the same bits/dim.
    """

    def __init__(self, shape: tuple[int, int, int], hidden: int, latents: int, pixel: Observation) -> None:
        super().__init__()
        assert pixel.location is not None
        (first, last), places = pixel.location, math.prod(shape[1:])
        self.size, self.means, self.idle = shape[1:], slice(first - pixel.idle, last - pixel.idle), pixel.idle * places
        means, others = last - first, (pixel.outputs - (last - first)) * places
        self.inner, self.outer = BrenierMap(latents, hidden), BrenierMap(latents, hidden)
        self.axes = nn.Parameter(torch.eye(means * places, latents))
        self.log_widths = nn.Parameter(torch.zeros(latents))  # of S
        self.beyond = nn.Parameter(torch.zeros(means * places, hidden))  # Q'
        self.bias = nn.Parameter(torch.zeros(means * places))
        self.linear = Linear(latents, others)
        self.layers = Perceptron(latents, hidden, hidden, others)

    def basis(self) -> Tensor:
        """U (d, latents): orthonormal columns, a continuous function of `axes`."""
        q, r = torch.linalg.qr(self.axes)
        basis: Tensor = q * torch.where(r.diagonal() < 0, -1.0, 1.0).to(q)
        return basis

    @folded
    def weights_now(self) -> tuple[Tensor, Tensor]:
        """[U S, P Q'] (d, latents + hidden) and c (d,) in the network dtype."""
        basis, dtype = self.basis(), network_dtype(self.beyond)
        weight = torch.cat([basis * self.log_widths.exp(), self.beyond - basis @ (basis.T @ self.beyond)], 1)
        return weight.to(dtype), self.bias.to(dtype)

    def forward(self, z: Tensor) -> Tensor:
        weight, bias = self.weights_now()
        t, hidden = self.outer(self.inner(z)[0])
        means = F.linear(torch.cat([t.to(weight.dtype), hidden], 1), weight, bias).to(z.dtype)
        places = math.prod(self.size)
        means, others = (p.reshape(len(z), p.shape[1] // places, *self.size) for p in (means, self.sum(t)))
        at = self.means.start
        return torch.cat([others[:, :at], means, others[:, at:]], 1)

    def start_at(self, principal: Principal, pixel: Observation) -> None:
        """Its means become about those of the principal components, which U and S hold."""
        rank, widths = len(principal.kept), (principal.kept - principal.rest).sqrt()
        columns = torch.cat([principal.w / widths, torch.eye(*self.axes.shape).to(principal.w)], 1)
        self.axes.copy_(torch.linalg.qr(columns)[0][:, : self.axes.shape[1]])
        self.axes[:, :rank] = (principal.w / widths).to(self.axes)
        self.log_widths.fill_(math.log(_LEAST))
        self.log_widths[:rank] = widths.clamp_min(_LEAST).log().to(self.log_widths)
        self.bias.copy_(principal.mean)
        self.linear.weight.zero_()
        start = pixel.start(principal.rest).to(self.linear.bias)
        assert pixel.location is not None
        others = torch.cat([start[: pixel.location[0]], start[pixel.location[1] :]])
        self.linear.bias.copy_(others.repeat_interleave(math.prod(self.size)))
