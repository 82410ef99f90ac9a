"""The density of a manifold model's latents: any flow on vectors of the registry, or a few couplings."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from oodbench.errors import OodbenchError
from oodbench.models.configuration import check_configuration
from oodbench.models.flows.flow import Flow, VectorFlow
from oodbench.models.flows.transforms.base import Transform, require
from oodbench.models.flows.transforms.coupling import Coupling
from oodbench.models.flows.transforms.elementwise import Affine
from oodbench.models.flows.transforms.mixing import Mixing
from oodbench.models.networks import DenseNetwork
from oodbench.registry import MODELS

__all__ = ["couplings", "latent_flow"]


def latent_flow(dimensions: int, name: str, config: Mapping[str, Any] | None) -> Flow:
    """A flow on vectors (B, dimensions): "couplings" (below) or a registered `VectorFlow`, with its configuration."""
    if name == "couplings":
        layers: Any = couplings
    else:
        model = MODELS.get(name)
        if not (isinstance(model, type) and issubclass(model, VectorFlow)):
            raise OodbenchError(f"{name} is no flow on vectors: take one for the latents, or 'couplings'.")
        layers = model.layers_on
    check_configuration(name, layers, config or {})
    return Flow((dimensions,), layers(dimensions, **(config or {})))


def couplings(dimensions: int, count: int = 4, hidden: int = 32) -> Iterator[Transform]:
    """`count` times an invertible matrix and an affine coupling of halves."""
    require(dimensions >= 2, f"Couplings need at least 2 latents, not {dimensions}.")
    require(count >= 1, f"A flow needs at least one coupling, not {count}.")
    generator = torch.Generator().manual_seed(0)
    element = Affine(bound=1.0)
    kept = dimensions // 2
    for _ in range(count):
        yield Mixing(dimensions, generator)
        network = DenseNetwork(kept, hidden, element.parameters * (dimensions - kept))
        yield Coupling(kept, network, element)
    yield Mixing(dimensions, generator)
