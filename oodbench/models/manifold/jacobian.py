"""J'J of an embedding g: R^d -> R^D, by forward-mode differentiation."""

import functools
import threading
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from oodbench.errors import OodbenchError

__all__ = ["jacobian_columns", "jacobian_products", "log_volume"]

Embedding = Callable[[Tensor], Tensor]  # (B, d) -> (B, D), row by row

_ROWS = 2048  # images times columns at a time: bounds memory
# Forward mode is one thing of the whole process: evaluation's threads take turns.
_FORWARD_MODE = threading.Lock()


def jacobian_products(embedding: Embedding, z: Tensor, tangents: Tensor) -> Tensor:
    """J(z_b) t_kb as (K, B, D), of tangents (K, B, d); differentiable in z and in what the embedding closes over."""

    z = z.contiguous()  # rows that share memory cannot carry derivatives

    def product(tangent: Tensor) -> Tensor:
        out: Tensor = torch.func.jvp(embedding, (z,), (tangent,))[1]
        return out

    with _FORWARD_MODE:
        _load_rules()
        out: Tensor = torch.func.vmap(product)(tangents)
        return out


@functools.cache
def _load_rules() -> None:
    """torch compiles the rules of forward mode at their first use, and warns of its own way of doing so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.func.jvp(torch.sin, (torch.zeros(1),), (torch.ones(1),))


def jacobian_columns(embedding: Embedding, z: Tensor) -> Tensor:
    """J(z_b) as (B, D, d)."""
    identity = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
    return jacobian_products(embedding, z, identity[:, None].expand(-1, len(z), -1)).permute(1, 2, 0)


def log_volume(embedding: Callable[[Tensor, slice], Tensor], z: Tensor) -> Tensor:
    """1/2 log det J'J in nats (B,), exactly, by a float64 Cholesky factor; the embedding is told which rows it gets.

    Raises `OodbenchError` where J has not full rank: there is no density on a surface of d dimensions then.
    """
    step = max(1, _ROWS // z.shape[1])
    parts = []
    for start in range(0, len(z), step):
        rows = slice(start, start + step)
        j = jacobian_columns(lambda part, rows=rows: embedding(part, rows), z[rows]).double()  # type: ignore[misc]
        factor, failed = torch.linalg.cholesky_ex(j.mT @ j)
        if bool(failed.any()):
            raise OodbenchError(
                f"The embedding's Jacobian has not the full rank of {z.shape[1]} at {int((failed > 0).sum())} of "
                f"{len(failed)} images: train with fewer latents."
            )
        parts.append(factor.diagonal(dim1=1, dim2=2).log().sum(1))
    return torch.cat(parts).to(z.dtype) if parts else z.new_zeros(0)
