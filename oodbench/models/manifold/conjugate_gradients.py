"""Conjugate gradients (Hestenes & Stiefel 1952) for a batch of symmetric positive definite systems."""

from collections.abc import Callable

import torch
from torch import Tensor

from oodbench.errors import OodbenchError

__all__ = ["conjugate_gradients"]


@torch.no_grad()
def conjugate_gradients(
    product: Callable[[Tensor], Tensor], b: Tensor, tolerance: float = 1e-3, iterations: int | None = None
) -> Tensor:
    """x (B, d) with |A x - b| <= tolerance |b| in every row; `product` gives A v (B, d).

    At most `iterations` products, by default 10 d: d would do in exact arithmetic. Raises `OodbenchError` if a row has
    not converged by then.
    """
    most = 10 * b.shape[1] if iterations is None else iterations
    goal = tolerance * b.norm(dim=1, keepdim=True)
    x, residual = torch.zeros_like(b), b.clone()
    direction, squared = residual, residual.square().sum(1, True)
    for _ in range(most):
        if bool((squared.sqrt() <= goal).all()):
            return x
        image = product(direction)
        curvature = (direction * image).sum(1, True)
        done = squared.sqrt() <= goal  # rows that are there stay, or 0 / 0 would follow
        step = torch.where(done, 0.0, squared / curvature)
        x = x + step * direction
        residual = residual - step * image
        last, squared = squared, residual.square().sum(1, True)
        direction = torch.where(done, direction, residual + squared / last * direction)
    if bool((squared.sqrt() <= goal).all()):
        return x
    worst = float((squared.sqrt() / b.norm(dim=1, keepdim=True)).max())
    raise OodbenchError(
        f"Conjugate gradients did not converge in {most} iterations (relative residual {worst:.2g}, wanted "
        f"{tolerance:.2g}): the embedding is ill-conditioned, so use fewer latents or a lower learning_rate."
    )
