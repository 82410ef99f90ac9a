"""Whether two conditionals p(x | z) and q(z | x) belong to one joint distribution (Liu et al. 2021)."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["incompatibility"]


def incompatibility(log_ratio: Callable[[Tensor, Tensor], Tensor], x: Tensor, z: Tensor, probe: Tensor) -> Tensor:
    """An unbiased estimate of |d_x d_z log_ratio(x, z)|_F^2 (B,), of log p(x | z) - log q(z | x) in nats (B,).

    It is 0 everywhere if and only if log_ratio(x, z) = a(x) + b(z), as of the conditionals of one joint distribution
    (Liu et al. 2021). `probe` is standard normal, like z: |d_x (probe . d_z log_ratio)|^2 (Hutchinson 1990).
    Differentiable in the parameters of log_ratio, not in x and z.
    """
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        x, z = x.detach().requires_grad_(), z.detach().requires_grad_()
        (slope,) = torch.autograd.grad(log_ratio(x, z).sum(), z, create_graph=True)
        (mixed,) = torch.autograd.grad((slope * probe).sum(), x, create_graph=keep)
    return mixed.flatten(1).square().sum(1)
