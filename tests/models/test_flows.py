"""Every flow is held to everything that it declares. A new one is a line in FLOWS and one in tiny_models.CONFIGS.

What a layer declares decides what is asked of its flow: a Jacobian's determinant of exact volumes between bijections,
an inverse of bijections and a right inverse of the others, unit mass of exact volumes. Saving, loading and single
precision are asked of all density models in test_every_model.py.
"""

import copy
import math
from collections.abc import Callable, Iterable

import pytest
import torch
from tiny_models import CONFIGS, noise_of, perturb, smooth_images, some_images, tiny
from torch import Tensor

from oodbench.errors import OodbenchError
from oodbench.models.base import Likelihood
from oodbench.models.flows.flow import Flow, ImageFlow, VectorFlow
from oodbench.models.flows.networks import ConvolutionNetwork, ResidualConvolutionNetwork
from oodbench.models.flows.transforms.base import Transform
from oodbench.models.flows.transforms.causal import CausalConvolution
from oodbench.models.flows.transforms.conformal import Projection
from oodbench.models.flows.transforms.cosine import Cosine
from oodbench.models.flows.transforms.coupling import Coupling
from oodbench.models.flows.transforms.elementwise import Additive, Affine, Elementwise, Sigmoid
from oodbench.models.flows.transforms.funnel import Decoder, Funnel
from oodbench.models.flows.transforms.inverse import Inverse
from oodbench.models.flows.transforms.mixing import Mixing
from oodbench.models.flows.transforms.part import Part
from oodbench.models.flows.transforms.permutation import swap, swap_halves
from oodbench.models.flows.transforms.prior import FactorOut, Standardise
from oodbench.models.flows.transforms.residual import Residual
from oodbench.models.flows.transforms.rotation import Rotation
from oodbench.models.flows.transforms.spline import RationalQuadratic
from oodbench.models.flows.transforms.squeeze import Flatten
from oodbench.models.manifold.aef import Centred
from oodbench.models.manifold.latents import couplings
from oodbench.models.networks import DenseNetwork
from oodbench.models.noise import Noise
from oodbench.registry import MODELS

Layers = Iterable[Transform | FactorOut]


def glow_on_the_plane(element: Elementwise) -> Layers:
    generator = torch.Generator().manual_seed(4)
    for _ in range(3):
        yield Mixing(2, generator)
        yield Coupling(1, ConvolutionNetwork(1, 6, element.parameters), element)
    yield FactorOut((1, 1, 2), not isinstance(element, Additive))
    yield Standardise((1,))


def couplings_on_the_plane(element: Elementwise) -> Layers:
    for _ in range(3):
        yield Standardise((2,))
        yield Coupling(1, ResidualConvolutionNetwork(1, 6, element.parameters, 1), element)
        yield swap_halves(2)


def nxn_on_the_plane() -> Layers:
    for layer in glow_on_the_plane(Sigmoid()):
        yield layer
        if isinstance(layer, Mixing):
            yield CausalConvolution(2, 3)
            yield CausalConvolution(2, 3, reverse=True)


def residual_blocks_on_the_plane() -> Layers:
    """Contractions that bend: at random weights on one place their slopes are 0.02, and all is linear to 3e-6.

    So the middle tap, the only one that meets a number, takes up the whole Lipschitz constant, in few units; and the
    blocks see the plane enlarged, as a swish needs a few units to bend.
    """
    generator = torch.Generator().manual_seed(4)
    yield scaled(12.0)
    for block in range(3):
        yield Mixing(2, generator)
        yield (layer := Residual((1, 1, 2), 2, 0.9, "exact", 1, f"block {block}"))
        for convolution in (layer.network.first, layer.network.second, layer.network.last):
            middle = convolution.weight.shape[-1] // 2
            convolution.weight.data[..., middle, middle] *= 10
    yield scaled(0.2)


def scaled(factor: float) -> Standardise:
    layer = Standardise((2,))
    torch.nn.init.constant_(layer.log_std, -math.log(factor))
    return layer


def funnel_on_the_plane() -> Layers:
    yield Mixing(2, torch.Generator().manual_seed(4))
    yield Funnel(1, ConvolutionNetwork(1, 6, 2), Sigmoid(), Decoder(ConvolutionNetwork(1, 6, 6), 2), "funnel")
    yield Standardise((1,))


def rotations_on_the_plane() -> Layers:
    generator, element = torch.Generator().manual_seed(4), Affine()
    for _ in range(3):
        yield Rotation(2, generator)
        yield Coupling(1, ConvolutionNetwork(1, 6, element.parameters), element)


def autoencoder_on_the_plane() -> Layers:
    yield Flatten((1, 1, 2))
    yield swap(1, 1)
    yield Coupling(1, DenseNetwork(1, 8, 2), Affine(2.0))
    yield swap(1, 1)
    yield Coupling(1, DenseNetwork(1, 8, 2), Centred(-0.5, 1.0))
    yield Part(2, couplings(2, count=1, hidden=4))


# How a flow looks on states (1, 1, 2), out of its own layers; a flow on vectors says so itself.
FLOWS: dict[str, Callable[[], Layers] | None] = {
    "glow": lambda: glow_on_the_plane(Sigmoid()),
    "glow-cv": lambda: glow_on_the_plane(Additive()),
    "nice": None,
    "realnvp": lambda: couplings_on_the_plane(Affine()),
    "maf": None,
    "iaf": None,
    "nsf": lambda: couplings_on_the_plane(RationalQuadratic(4)),
    "nsf-ar": None,
    "nxn-flow": nxn_on_the_plane,
    "iresnet": residual_blocks_on_the_plane,
    "funnel": funnel_on_the_plane,
    "inflow": rotations_on_the_plane,  # the open flow, which is what layers can declare; the gate has its own tests
    "aef": autoencoder_on_the_plane,
}
SHAPES = [(1, 4, 4), (2, 4, 4), (3, 4, 8)]

every_flow = pytest.mark.parametrize("name", FLOWS)
every_shape = pytest.mark.parametrize("shape", SHAPES)


def test_every_registered_flow_is_tested_here():
    flows = {n for n in CONFIGS if isinstance(MODELS.get(n), type) and issubclass(MODELS.get(n), ImageFlow)}
    assert flows == set(FLOWS)


def a_flow(name: str, shape: tuple[int, int, int] = (3, 4, 4), scale: float = 0.3) -> tuple[ImageFlow, Tensor, Noise]:
    """A float64 flow, states in its domain (5, H, W, C), and their noise."""
    model = tiny(name, shape, double=True, scale=scale)
    assert isinstance(model, ImageFlow)
    noise = noise_of(5)
    return model, model.dequantise(smooth_images(5, shape), noise), noise


def bijective(flow: Flow) -> bool:
    return all(layer.bijective for layer in flow.layers)


def skip_unless(condition: bool, what: str) -> None:
    if not condition:
        pytest.skip(f"does not declare {what}")


def skip_if_gated(model: ImageFlow) -> None:
    if "attention_margin" in model.columns:
        pytest.skip("its columns are those of the gated flow")


def flatten(latents: list[Tensor]) -> Tensor:
    return torch.cat([e.flatten(1) for e in latents], 1)


@every_flow
@every_shape
def test_shapes_and_dtypes(name, shape):
    model, h, noise = a_flow(name, shape)
    for flow, states in ((model, h), (copy.deepcopy(model).float(), h.float())):
        latents, volumes = flow.flow(states, noise)
        assert [tuple(e.shape) for e in latents] == [(5, *s) for s in flow.flow.latent_shapes]
        assert volumes.shape == (5, len(latents))
        assert {volumes.dtype, *(e.dtype for e in latents)} == {states.dtype}
        assert all(e.isfinite().all() for e in (*latents, volumes))
    sizes = sum(math.prod(s) for s in model.flow.latent_shapes)
    assert sizes == model.dimensions if bijective(model.flow) else sizes <= model.dimensions


@every_flow
@every_shape
def test_the_log_determinant_is_that_of_the_jacobian(name, shape):
    model, _, _ = a_flow(name, shape)
    skip_unless(model.flow.volume is Likelihood.EXACT and bijective(model.flow), "an exact volume between bijections")
    skip_if_gated(model)
    x, noise = some_images(2, shape), noise_of(2)
    dequantised = x.double() + noise.uniform(shape, "dequantisation").double()
    log_dets = model.statistics(x, noise)["log_det"].detach()
    for i in range(2):
        row = noise.rows(slice(i, i + 1))

        def latents(y: Tensor, row: Noise = row) -> Tensor:  # from pixels on the scale of bytes: division counts
            return flatten(model.flow((y / 256 - 0.5).permute(1, 2, 0)[None], row)[0])[0]

        jacobian = torch.autograd.functional.jacobian(latents, dequantised[i])
        expected = torch.linalg.slogdet(jacobian.reshape(model.dimensions, model.dimensions))[1]
        assert float(log_dets[i]) == pytest.approx(float(expected), rel=1e-10, abs=1e-8)


@every_flow
@every_shape
@torch.no_grad()
def test_inverse_and_forward_undo_each_other(name, shape):
    model, h, noise = a_flow(name, shape)
    if bijective(model.flow):
        torch.testing.assert_close(model.flow.inverse(model.flow(h, noise)[0], noise), h, rtol=0, atol=1e-8)
    latents = [0.5 * noise.normal(s, str(i)).double() for i, s in enumerate(model.flow.latent_shapes)]
    inverse = model.flow.inverse(latents, noise)
    torch.testing.assert_close(flatten(model.flow(inverse, noise)[0]), flatten(latents), rtol=0, atol=1e-8)
    assert (h - inverse).abs().max() > 0.1


@every_flow
def test_the_columns_are_parts_of_one_density(name):
    model, _, _ = a_flow(name)
    skip_if_gated(model)
    skip_unless("log_det" in model.columns, "a volume apart from its density")
    x, noise = some_images(6, model.shape), noise_of(6)
    columns = model.statistics(x, noise)
    torch.testing.assert_close(columns["log_px"], columns["log_pz"] + columns["log_det"], rtol=1e-13, atol=0)
    torch.testing.assert_close(columns["log_px"], columns["log_px_scales"].sum(1), rtol=1e-12, atol=0)
    assert columns["log_px_scales"].shape == (6, len(model.flow.latent_shapes))
    h = model.dequantise(x, noise)
    latents = flatten(model.flow(h, noise)[0])
    torch.testing.assert_close(columns["latent_norm"], latents.norm(dim=1), rtol=1e-12, atol=0)
    base = torch.distributions.Normal(0, 1).log_prob(latents).sum(1)
    torch.testing.assert_close(columns["log_pz"], base, rtol=1e-12, atol=0)
    density = model.flow.log_density(h, noise) - model.dimensions * math.log(256)
    torch.testing.assert_close(columns["log_px"], density, rtol=1e-12, atol=0)


@every_flow
def test_gradients_are_finite_in_weights_and_images(name):
    model, h, noise = a_flow(name)
    edges = torch.cat([h[:3], torch.full_like(h[:1], -0.5), torch.full_like(h[:1], 0.5)]).requires_grad_()
    model.flow.log_density(edges, noise).sum().backward()
    assert edges.grad is not None
    assert float(edges.grad.flatten(1).abs().amax(1).min()) > 0
    for key, value in (("image", edges), *model.named_parameters()):
        assert value.grad is not None, key
        assert value.grad.isfinite().all(), key


@every_flow
@torch.no_grad()
def test_evaluation_is_deterministic_and_knows_no_batch(name):
    model, h, noise = a_flow(name)
    together = model.flow.log_density(h, noise)
    assert torch.equal(model.flow.log_density(h, noise), together)
    for i in range(5):
        row = slice(i, i + 1)
        alone = model.flow.log_density(h[row], noise.rows(row))
        torch.testing.assert_close(alone, together[row], rtol=1e-11, atol=0)


@every_flow
@torch.no_grad()
def test_weights_hold_all_that_a_flow_has_learnt(name):
    model, h, noise = a_flow(name)
    model.initialise(smooth_images(20, model.shape, seed=1), noise_of(20))
    other = MODELS.get(name)(model.shape, **CONFIGS[name]).double()
    assert not torch.equal(other.flow.log_density(h, noise), model.flow.log_density(h, noise))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.flow.log_density(h, noise), model.flow.log_density(h, noise))


@every_flow
@torch.no_grad()
def test_samples_are_where_the_flow_puts_normal_latents(name):
    model, _, _ = a_flow(name, scale=0.2)
    noise = Noise.of(torch.arange(40), seed=2)
    x = model.sample(40, noise)
    latents = [noise.normal(s, f"latent {i}").double() for i, s in enumerate(model.flow.latent_shapes)]
    y = (model.flow.inverse(latents, noise).permute(0, 3, 1, 2) + 0.5) * 256
    inside = (y >= 0) & (y < 256)
    assert (x.dtype, x.shape) == (torch.uint8, (40, *model.shape))
    assert float(inside.double().mean()) > 0.2
    assert torch.equal(x[inside], y[inside].floor().to(torch.uint8))
    assert (x[y < 0] == 0).all()
    assert (x[y >= 256] == 255).all()


@torch.no_grad()
def test_a_sample_that_explodes_is_an_error_and_no_image():
    flow, noise = Flow((2,), [scaled(1e-30), scaled(1e-30)]), noise_of(30)
    with pytest.raises(OodbenchError, match=r"The inverse of the flow .* by up to inf in 30 of 30 images: draw others"):
        flow.sample(30, noise)
    torch.testing.assert_close(flow.double().sample(30, noise), 1e60 * noise.normal((2,), "latent 0").double())


class Forgetful(Transform):
    """The identity, whose inverse adds to every large first number, by which it is no inverse, and stays finite."""

    def forward(self, h: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        return h, h.new_zeros(())

    def inverse(self, y: Tensor, noise: Noise) -> Tensor:
        return y + 10 * (y[:, :1] > 1)


@torch.no_grad()
def test_a_sample_from_a_finite_inverse_that_is_none_is_an_error_that_counts():
    layers, noise = [Forgetful(), Standardise((2,))], noise_of(30)
    large = int((noise.normal((2,), "latent 0")[:, 0] > 1).sum())
    assert 0 < large < 30
    with pytest.raises(OodbenchError, match=rf"misses its aim by up to 10 in {large} of 30 images: draw others"):
        Flow((2,), layers).sample(30, noise)
    layers[0].inverts = False  # a layer that declares so is not asked
    assert Flow((2,), layers).sample(30, noise).shape == (30, 2)


def test_a_flow_says_no_more_of_an_image_than_each_of_its_layers():
    layers = {Likelihood.LOWER_BOUND: [Standardise((2,))], Likelihood.MANIFOLD: [Projection(2, 1)]}
    for expected, own in layers.items():
        assert ImageFlow((2, 1, 1), own).likelihood is expected
    estimate = Residual((1, 1, 2), 2, 0.9, "series", 1, "block")
    for more in ([estimate], [Inverse(estimate)], [Standardise((2,)), estimate]):
        assert ImageFlow((2, 1, 1), more).likelihood is Likelihood.ESTIMATE
    assert ImageFlow((2, 1, 1), [estimate, Projection(2, 1)]).likelihood is Likelihood.MANIFOLD
    split = FactorOut((1, 1, 2), scaling=True)
    assert ImageFlow((2, 1, 1), [split]).likelihood is Likelihood.LOWER_BOUND
    split.volume = Likelihood.ESTIMATE
    assert ImageFlow((2, 1, 1), [split]).likelihood is Likelihood.ESTIMATE


def on_the_plane(name: str) -> tuple[Flow, tuple[int, ...]]:
    layers, model = FLOWS[name], MODELS.get(name)
    if layers is None:
        assert issubclass(model, VectorFlow)
        return Flow((2,), model.layers_on(2, **CONFIGS[name])), (2,)
    return Flow((1, 1, 2), layers()), (1, 1, 2)


@every_flow
@torch.no_grad()
def test_the_density_integrates_to_one_over_the_plane(name):
    flow, shape = on_the_plane(name)
    skip_unless(flow.volume is Likelihood.EXACT, "an exact volume")
    perturb(flow, 0.5, seed=2)
    flow.double()
    axis = torch.linspace(-14, 14, 701, dtype=torch.float64)
    step = float(axis[1] - axis[0])
    parts = torch.cartesian_prod(axis, axis).reshape(-1, *shape).split(1 << 16)
    log_density = torch.cat([flow.log_density(part, noise_of(len(part))) for part in parts]).reshape(len(axis), -1)
    density = log_density.exp()
    assert float(density[[0, -1]].max()) < 1e-6  # the square holds all of the mass
    assert float(density[:, [0, -1]].max()) < 1e-6
    assert float(density.sum() * step**2) == pytest.approx(1, abs=2e-4)
    # Not merely a Gaussian: its logarithm is no quadratic function of the point.
    third = log_density[240:460, 240:460].diff(n=3, dim=0)
    assert float(third.abs().max()) > 1e-3


@every_flow
@torch.no_grad()
def test_the_sampler_and_the_density_are_of_one_distribution(name):
    """E[q(y) / p(y)] = 1 for y from p and every density q: here a slightly wider p."""
    flow, shape = on_the_plane(name)
    skip_unless(flow.volume is Likelihood.EXACT, "an exact volume")
    perturb(flow, 0.4, seed=3)
    flow.double()
    n = 20_000
    noise = Noise.of(torch.arange(n), 5)
    y = flow.sample(n, noise)
    assert y.shape == (n, *shape)
    log_ratio = flow.log_density(y * 0.95 + 0.03, noise) + 2 * math.log(0.95) - flow.log_density(y, noise)
    error = float(log_ratio.exp().std()) / math.sqrt(n)
    assert 0.0002 < error < 0.02
    assert float(log_ratio.exp().mean()) == pytest.approx(1, abs=4.5 * error)


@pytest.mark.parametrize("name", [name for name, plane in FLOWS.items() if plane is None])
@pytest.mark.parametrize("dimensions", [2, 3, 7])
@torch.no_grad()
def test_a_flow_on_vectors_takes_latents_of_any_length(name, dimensions):
    flow = Flow((dimensions,), MODELS.get(name).layers_on(dimensions, **CONFIGS[name])).double()
    perturb(flow, 0.3)
    noise = noise_of(50)
    h = 2 + 3 * noise.normal((dimensions,), "states").double()
    flow(h, noise, initialise=True)
    torch.testing.assert_close(flow.inverse(flow(h, noise)[0], noise), h, rtol=0, atol=1e-8)
    assert flow.sample(50, noise).shape == (50, dimensions)


@pytest.mark.parametrize(("channels", "by_default"), [(3, True), (1, False)])
@torch.no_grad()
def test_nice_whitens_colour_images_and_others_where_told_so(channels, by_default):
    x, noise = smooth_images(2000, (channels, 8, 8)), noise_of(2000)
    correlation = {}
    for config in ({}, {"whiten": True}, {"whiten": False}):
        model = MODELS.get("nice")((channels, 8, 8), **CONFIGS["nice"], base="normal", **config).double()
        assert any(isinstance(e, Cosine) for e in model.flow.layers) == config.get("whiten", by_default)
        model.initialise(x, noise)  # the couplings start as the identity
        (latents,), _ = model.flow(model.dequantise(x, noise), noise)
        torch.testing.assert_close(latents.std(0), torch.ones(model.dimensions).double(), rtol=0, atol=1e-6)
        apart = torch.corrcoef(latents.T) - torch.eye(model.dimensions)
        correlation[config.get("whiten", by_default)] = float(apart.abs().mean())
    assert correlation[True] < 0.06
    assert correlation[False] > 2 * correlation[True]
