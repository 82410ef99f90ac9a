"""Residual blocks: contractions that are ones, volumes that are exact or without bias, inverses that are reached."""

import math

import pytest
import torch
from tiny_models import noise_of, perturb, some_images, tiny
from torch import Tensor

from oodbench.errors import OodbenchError
from oodbench.models.base import Likelihood
from oodbench.models.flows.iresnet import IResNet
from oodbench.models.flows.lipschitz import LipschitzConvolution, spectral_bound
from oodbench.models.flows.transforms.residual import Residual
from oodbench.models.nn import networks
from oodbench.models.noise import Noise

SHAPE = (2, 2, 3)


def block(trace: str = "exact", coefficient: float = 0.9, terms: int = 2, scale: float = 3.0) -> Residual:
    """A block whose every convolution is at its bound."""
    torch.manual_seed(0)
    layer = Residual(SHAPE, 6, coefficient, trace, terms, "block")
    perturb(layer, scale)
    return layer.double()


def states(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def jacobian(layer: Residual, h: Tensor) -> Tensor:
    """Of one state (H, W, C): that of g."""
    found = torch.autograd.functional.jacobian(lambda t: layer.network(t[None])[0], h)
    return found.reshape(h.numel(), h.numel())


@pytest.mark.parametrize(
    ("kernel", "places"),
    [
        ((5, 2, 3, 3), (4, 6)),
        ((2, 5, 3, 3), (5, 3)),
        ((4, 4, 1, 1), (3, 3)),
        ((1, 1, 3, 3), (1, 1)),
        ((3, 2, 5, 5), (6, 4)),
    ],
)
def test_the_bound_is_above_the_norm_of_the_convolutions_matrix_and_close_to_it(kernel, places):
    for seed in range(5):
        weight = torch.randn(kernel, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        basis = torch.eye(kernel[1] * math.prod(places), dtype=torch.float64).reshape(-1, kernel[1], *places)
        matrix = torch.conv2d(basis, weight, padding=kernel[-1] // 2).flatten(1)
        norm, bound = float(torch.linalg.matrix_norm(matrix, 2)), float(spectral_bound(weight, places))
        assert norm <= bound * (1 + 1e-12)
        if min(places) > 2 * kernel[-1] // 2:
            assert bound < 1.35 * norm  # the torus has no border


def test_the_bound_is_nearly_tight_on_larger_maps_and_its_gradient_is_right():
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    basis = torch.eye(3 * 144, dtype=torch.float64).reshape(-1, 3, 12, 12)
    norm = float(torch.linalg.matrix_norm(torch.conv2d(basis, weight.detach(), padding=1).flatten(1), 2))
    assert norm < float(spectral_bound(weight, (12, 12)).detach()) < 1.04 * norm
    assert torch.autograd.gradcheck(lambda w: spectral_bound(w, (12, 12)), (weight,))
    assert float(spectral_bound(torch.zeros(4, 3, 3, 3), (4, 4))) < 1e-6


@pytest.mark.parametrize("scale", [1.0, 1e9, 1e30])
def test_the_bound_grows_with_the_weights_as_far_as_float32_goes(scale):
    weight = torch.randn(4, 3, 3, 3)
    torch.testing.assert_close(spectral_bound(weight * scale, (4, 4)), spectral_bound(weight, (4, 4)) * scale)
    layer = LipschitzConvolution(3, 4, 3, (4, 4), 0.9)
    torch.nn.init.normal_(layer.weight, std=scale)
    assert float(spectral_bound(layer.effective_weight(), (4, 4)).detach()) == pytest.approx(0.9, rel=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf, 3e38])
def test_a_spectral_norm_that_is_no_number_is_an_error_in_evaluation(value):
    model, x = tiny("iresnet"), some_images(2)
    with torch.no_grad():
        next(part for part in model.modules() if isinstance(part, LipschitzConvolution)).weight.fill_(value)
    for fold in (False, True):
        with networks(fold=fold), torch.inference_mode(), pytest.raises(OodbenchError, match="is no finite number"):
            model.statistics(x, noise_of(2))


@pytest.mark.parametrize("coefficient", [0.5, 0.9])
def test_the_network_is_a_contraction_and_its_derivative_is_autograds(coefficient):
    layer = block(coefficient=coefficient)
    h = states(4)
    for i in range(4):
        expected = jacobian(layer, h[i])
        assert float(torch.linalg.matrix_norm(expected, 2)) < coefficient
        derivative = layer.network.linearise(h)[1]
        columns = derivative(torch.eye(12, dtype=h.dtype).reshape(-1, *SHAPE), torch.full((12,), i)).detach()
        torch.testing.assert_close(columns.reshape(12, 12).T, expected, rtol=0, atol=1e-12)
    assert float(torch.linalg.matrix_norm(expected, 2)) > 0.02


def test_the_exact_volume_is_the_determinants():
    layer, h = block("exact"), states(3)
    volume = layer(h, noise_of(3))[1]
    for i in range(3):
        expected = torch.linalg.slogdet(jacobian(layer, h[i]) + torch.eye(12))[1]
        assert float(volume[i].detach()) == pytest.approx(float(expected), abs=1e-12)


@torch.no_grad()
def test_the_series_is_that_of_the_jacobians_powers():
    """Over all 2^12 vectors of signs: there is nothing random left, so the mean is the partial sum itself."""
    layer, h = block("series", terms=3), states(1)
    signs = torch.cartesian_prod(*12 * [torch.tensor([-1.0, 1.0], dtype=torch.float64)])

    class AllSigns(Noise):
        def uniform(self, shape: tuple[int, ...], stream: str) -> Tensor:
            return ((signs + 1.5) / 3).reshape(-1, *shape)

    everything = AllSigns(0, torch.arange(len(signs)), torch.zeros(len(signs), dtype=torch.int64))
    found = layer(h.expand(len(signs), -1, -1, -1), everything)[1].mean()
    with torch.enable_grad():
        j = jacobian(layer, h[0])
    partial = sum((-1) ** (k + 1) / k * float(torch.linalg.matrix_power(j, k).trace()) for k in (1, 2, 3))
    assert float(found) == pytest.approx(partial, abs=1e-12)


@torch.no_grad()
def test_the_roulette_has_no_bias_where_the_series_has():
    """A linear block with J = 0.8 I: the estimates' mean is D log 1.8, while two terms are D (0.8 - 0.32)."""

    class Linear(torch.nn.Module):
        def linearise(self, x):
            return 0.8 * x, lambda v, rows: 0.8 * v

    n = 40_000
    layers = {trace: Residual(SHAPE, 4, 0.9, trace, 2, "block") for trace in ("series", "roulette")}
    found = {}
    for trace, layer in layers.items():
        layer.network = Linear()
        found[trace] = layer(torch.zeros(n, *SHAPE, dtype=torch.float64), Noise.of(torch.arange(n), 1))[1]
    error = float(found["roulette"].std()) / math.sqrt(n)
    assert 0 < error < 0.05
    assert float(found["roulette"].mean()) == pytest.approx(12 * math.log(1.8), abs=4 * error)
    assert float(found["series"].mean()) == pytest.approx(12 * 0.48, abs=1e-9)
    assert abs(12 * math.log(1.8) - 12 * 0.48) > 20 * error


@torch.no_grad()
def test_the_roulette_of_a_network_agrees_with_its_exact_volume():
    n = 20_000
    layer, h = block("roulette", terms=1), states(1)
    exact = block("exact")(h, noise_of(1))[1]
    draws = layer(h.expand(n, -1, -1, -1), Noise.of(torch.arange(n), 4))[1]
    error = float(draws.std()) / math.sqrt(n)
    assert 1e-5 < error < 0.05
    assert float(draws.mean()) == pytest.approx(float(exact), abs=4 * error)


@torch.no_grad()
@pytest.mark.parametrize("trace", ["series", "roulette"])
def test_an_estimate_belongs_to_its_image_and_layer(trace):
    model = tiny("iresnet", double=True, trace=trace)
    x, noise = some_images(20), noise_of(20)
    together = model.statistics(x, noise)["log_det"]
    for i in (0, 7, 19):
        row = slice(i, i + 1)
        alone = model.statistics(x[row], noise.rows(row))["log_det"]
        torch.testing.assert_close(alone, together[row], rtol=1e-12, atol=0)
    names = [part.name for part in model.modules() if isinstance(part, Residual)]
    assert len(set(names)) == len(names) == 4
    assert model.likelihood is Likelihood.ESTIMATE
    assert tiny("iresnet", (1, 4, 4), trace="exact").likelihood is Likelihood.LOWER_BOUND


def test_the_gradient_of_every_trace_is_that_of_its_number():
    for trace in ("series", "roulette", "exact"):
        layer = block(trace, scale=0.5)
        h = states(2).requires_grad_()
        noise = noise_of(2)
        assert torch.autograd.gradcheck(lambda t, layer=layer, noise=noise: layer(t, noise)[1], (h,)), trace


@torch.no_grad()
def test_the_inverse_is_reached_or_an_error():
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-4)):
        layer, h = block(coefficient=0.95).to(dtype), states(5).to(dtype)
        torch.testing.assert_close(layer.inverse(h + layer.network(h), noise_of(5)), h, rtol=0, atol=tolerance)
        torch.testing.assert_close(layer(layer.inverse(h, noise_of(5)), noise_of(5))[0], h, rtol=0, atol=tolerance)
    layer.network = torch.nn.Identity()  # y = 2x has an inverse, but no contraction leads to it
    with pytest.raises(OodbenchError, match="inverse of a residual block still moves"):
        layer.inverse(h, noise_of(5))


@torch.no_grad()
def test_the_exact_flow_is_a_flow():
    shape = (1, 4, 4)
    flow = tiny("iresnet", shape, double=True, trace="exact")
    x, noise = some_images(1, shape), noise_of(1)
    h = flow.dequantise(x, noise)

    def latents(flat: Tensor) -> Tensor:
        return torch.cat([e.flatten() for e in flow.flow(flat.reshape(1, 4, 4, 1), noise)[0]])

    with torch.enable_grad():
        expected = torch.linalg.slogdet(torch.autograd.functional.jacobian(latents, h.flatten()))[1]
    assert float(flow.flow(h, noise)[1].sum()) == pytest.approx(float(expected), rel=1e-11)
    torch.testing.assert_close(flow.flow.inverse(flow.flow(h, noise)[0], noise), h, rtol=0, atol=1e-10)
    with networks(torch.bfloat16):
        flow.float()
        assert flow.statistics(x, noise)["log_px"].isfinite().all()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"coefficient": 1.0}, "Lipschitz constant of 1.0"),
        ({"coefficient": 0.0}, "Lipschitz constant of 0.0"),
        ({"trace": "hutchinson"}, "Unknown trace 'hutchinson': use series, roulette, exact"),
        ({"terms": 0}, "not 0"),
        ({"trace": "exact"}, "at most 512"),
    ],
)
def test_a_configuration_that_cannot_be_is_told_in_one_sentence(config, words):
    with pytest.raises(OodbenchError, match=words):
        IResNet((3, 16, 16), **config)


@pytest.mark.parametrize(
    ("trace", "likelihood", "remark"),
    [
        ("series", Likelihood.ESTIMATE, "biased: 3 terms"),
        ("roulette", Likelihood.ESTIMATE, "unbiased"),
        ("exact", Likelihood.LOWER_BOUND, ""),
    ],
)
def test_tables_say_whether_an_estimate_is_biased(trace, likelihood, remark):
    model = tiny("iresnet", (1, 4, 4), trace=trace)
    assert (model.likelihood, model.remark) == (likelihood, remark)
