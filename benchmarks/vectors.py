"""Spline couplings and masked autoregressive flows on vectors, of three peers and ours, of one architecture.

Networks have one residual block, but zuko's, which has no blocks: there it is as many layers, equally wide.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from glows import LogProb
from torch import Tensor, nn

from oodbench.engine.lanes import lanes
from oodbench.models.flows.flow import Flow
from oodbench.models.flows.networks import MLP
from oodbench.models.flows.transforms.autoregressive import Autoregressive
from oodbench.models.flows.transforms.base import Transform
from oodbench.models.flows.transforms.coupling import Coupling
from oodbench.models.flows.transforms.elementwise import Affine
from oodbench.models.flows.transforms.permutation import reverse, swap_halves
from oodbench.models.flows.transforms.spline import RationalQuadratic
from oodbench.models.nn import networks
from oodbench.models.noise import Noise

__all__ = ["OurDensity", "density", "mafs", "product_training", "products", "splines"]

BINS, BOUND = 8, 3.0


def splines(d: int, layers: int, hidden: int) -> dict[str, nn.Module]:
    """Couplings of halves, the rational-quadratic spline's numbers by a network of `hidden` units."""
    import normflows as nf
    import zuko
    from nflows import distributions, flows, transforms
    from nflows.nn.nets import ResidualNet
    from normflows.flows.neural_spline.coupling import PiecewiseRationalQuadraticCoupling
    from normflows.nets.resnet import ResidualNet as TheirResidualNet

    masks = [[0] * (d // 2) + [1] * (d // 2), [1] * (d // 2) + [0] * (d // 2)]
    masks = [masks[layer % 2] for layer in range(layers)]
    spline = {"num_bins": BINS, "tails": "linear", "tail_bound": BOUND}
    of_nflows = [
        transforms.PiecewiseRationalQuadraticCouplingTransform(
            mask, lambda i, o: ResidualNet(i, o, hidden, num_blocks=1), **spline
        )
        for mask in masks
    ]
    of_normflows = []
    for mask in reversed(masks):
        layer = nf.flows.CoupledRationalQuadraticSpline(d, 1, hidden, num_bins=BINS, tail_bound=BOUND)
        # The wrapper also bends the half that stays, by splines that no network steers: no part of the comparison.
        layer.prqct = PiecewiseRationalQuadraticCoupling(
            torch.tensor(mask), lambda i, o: TheirResidualNet(i, o, hidden, num_blocks=1), **spline
        )
        of_normflows.append(layer)
    of_zuko = zuko.flows.NICE(
        d,
        transforms=layers,
        univariate=partial(zuko.transforms.MonotonicRQSTransform, bound=BOUND),
        shapes=[(BINS,), (BINS,), (BINS - 1,)],
        hidden_features=[hidden] * 3,
    )
    element = RationalQuadratic(BINS, BOUND)
    of_ours: list[Transform] = []
    for _ in range(layers):
        network = MLP(d // 2, hidden, element.parameters * (d // 2), 1)
        of_ours += [Coupling(d // 2, network, element), swap_halves(d)]
    return {
        "normflows": LogProb(nf.NormalizingFlow(nf.distributions.DiagGaussian(d, trainable=False), of_normflows)),
        "nflows": LogProb(flows.Flow(transforms.CompositeTransform(of_nflows), distributions.StandardNormal([d]))),
        "zuko": _Zuko(of_zuko),
        "ours": perturbed(Flow((d,), of_ours[:-1])),
    }


def mafs(d: int, layers: int, hidden: int) -> dict[str, nn.Module]:
    """Masked affine autoregressive layers, the order of the numbers reversed between them; densities in one pass."""
    import normflows as nf
    import zuko
    from nflows import distributions, flows, transforms

    of_nflows, of_normflows = [], []
    of_ours: list[Transform] = []
    for _ in range(layers):
        of_nflows += [
            transforms.MaskedAffineAutoregressiveTransform(d, hidden, num_blocks=1),
            transforms.ReversePermutation(d),
        ]
        of_normflows += [_Backwards(d), nf.flows.Reverse(nf.flows.MaskedAffineAutoregressive(d, hidden, num_blocks=1))]
        of_ours += [Autoregressive(d, hidden, 1, Affine()), reverse(d)]
    base = nf.distributions.DiagGaussian(d, trainable=False)
    return {
        "normflows": LogProb(nf.NormalizingFlow(base, of_normflows[1:])),
        "nflows": LogProb(flows.Flow(transforms.CompositeTransform(of_nflows[:-1]), distributions.StandardNormal([d]))),
        "zuko": _Zuko(zuko.flows.MAF(d, transforms=layers, hidden_features=[hidden] * 3)),
        "ours": perturbed(Flow((d,), of_ours[:-1])),
    }


class _Zuko(nn.Module):
    def __init__(self, flow: nn.Module) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.flow().log_prob(x)
        return out


class OurDensity(nn.Module):
    """Our log density as a peer's call, with networks in `dtype`: for `training`."""

    def __init__(self, flow: Flow, batch: int, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.flow, self.dtype, self.noise = flow, dtype, Noise.of(torch.arange(batch))

    def forward(self, x: Tensor) -> Tensor:
        with networks(self.dtype):
            return self.flow.log_density(x, self.noise)


class _Backwards(nn.Module):
    """The reversal of a vector for normflows, which has only random permutations and swapped halves."""

    order: Tensor

    def __init__(self, d: int) -> None:
        super().__init__()
        self.register_buffer("order", torch.arange(d).flip(0))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z[:, self.order], z.new_zeros(())

    inverse = forward


def perturbed(flow: Flow) -> Flow:
    """With seeded noise on every parameter: at the start layers are the identity."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.01)
    return flow


def density(
    flow: Flow, x: Tensor, batch: int, dtype: torch.dtype | None = None, side_by_side: bool = True
) -> Callable[[], None]:
    """Our log density of all vectors, batches in lanes as the engine runs them, or one after another."""
    noise = Noise.of(torch.arange(batch))

    def one(part: Tensor) -> None:
        with torch.inference_mode():
            flow.log_density(part, noise)

    def run() -> None:
        wanted = len(x) // batch if side_by_side else 1
        with networks(dtype, fold=True), lanes(wanted, x.device) as (_, each):
            for _ in each(one, x.split(batch)):
                pass

    return run


def products(flow: Flow, x: Tensor, batch: int, dtype: torch.dtype = torch.float32) -> Callable[[], None]:
    """The floor: the matrix products of all networks on dense inputs, a batch after another."""
    chains = _chains(flow, batch, dtype)

    def run() -> None:
        with torch.inference_mode():
            for _ in range(0, len(x), batch):
                for first, weights in chains:
                    _product(first, weights)

    return run


def product_training(flow: Flow, batch: int, dtype: torch.dtype = torch.float32) -> Callable[[], None]:
    """The floor of a training step: the same products, of one batch, and their backward passes."""
    chains = _chains(flow, batch, dtype)
    for first, weights in chains:
        for leaf in (first, *(tensor for layer in weights for tensor in layer)):
            leaf.requires_grad_()

    def run() -> None:
        for first, weights in chains:
            out = _product(first, weights)
            torch.autograd.grad(out, [first, *(tensor for layer in weights for tensor in layer)], torch.ones_like(out))

    return run


def _chains(flow: Flow, batch: int, dtype: torch.dtype) -> list[tuple[Tensor, list[tuple[Tensor, Tensor]]]]:
    """Of every network random inputs (batch, n), and the weights and biases that follow one another."""
    chains = []
    for network in (module for module in flow.modules() if isinstance(module, MLP)):
        parts = [network.first, *network.inner, *network.outer, network.last]
        weights = [
            (part.weight.detach().to(dtype, copy=True), part.bias.detach().to(dtype, copy=True)) for part in parts
        ]
        assert all(len(one[0]) == two[0].shape[1] for one, two in pairwise(weights))
        chains.append((torch.randn(batch, weights[0][0].shape[1]).to(dtype), weights))
    return chains


def _product(h: Tensor, weights: list[tuple[Tensor, Tensor]]) -> Tensor:
    for weight, bias in weights:
        h = torch.addmm(bias, h, weight.t())
    return h
