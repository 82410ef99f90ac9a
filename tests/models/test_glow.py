"""Glow's own layers: their volumes, their data-dependent start, and what constant volume means."""

import math

import pytest
import torch
from tiny_models import noise_of, perturb, smooth_images, some_images, tiny
from torch import Tensor

from oodbench.models.flows.glow import Glow
from oodbench.models.flows.networks import ConvolutionNetwork
from oodbench.models.flows.transforms.coupling import Coupling
from oodbench.models.flows.transforms.elementwise import Additive, Sigmoid
from oodbench.models.flows.transforms.mixing import Mixing
from oodbench.models.flows.transforms.prior import Standardise
from oodbench.models.flows.transforms.squeeze import Squeeze
from oodbench.models.noise import Noise

NAMES = ("glow", "glow-cv")


def states(n: int, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Float64 states (n, *shape) of unit size."""
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@torch.no_grad()
def test_the_constant_volume_flow_has_one_log_determinant_and_glow_has_not():
    x = torch.cat([some_images(5), smooth_images(5), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)])
    for double in (False, True):
        constant = tiny("glow-cv", double=double).statistics(x, noise_of(len(x)))["log_det"]
        assert (constant == constant[0]).all()  # to the last bit: no image enters it
    assert float(tiny("glow").statistics(x, noise_of(len(x)))["log_det"].std()) > 0.1


def test_dequantised_images_keep_their_bytes_and_fill_their_bins():
    flow = tiny("glow", double=True)
    x = some_images(50)
    y = (flow.dequantise(x, noise_of(50)).permute(0, 3, 1, 2) + 0.5) * 256
    assert torch.equal(y.floor().to(torch.uint8), x)
    offset = (y - x).flatten()
    assert float(offset.mean()) == pytest.approx(0.5, abs=4 / math.sqrt(12 * len(offset)))
    assert float(offset.var()) == pytest.approx(1 / 12, rel=0.05)


@pytest.mark.parametrize("element", [Sigmoid(), Additive()])
def test_every_layer_has_its_inverse_and_its_own_log_determinant(element):
    generator, noise = torch.Generator().manual_seed(0), noise_of(2)
    network = ConvolutionNetwork(2, 8, 2 * element.parameters)
    layers = {"mixing": Mixing(4, generator), "coupling": Coupling(2, network, element), "last": Standardise((2, 2, 4))}
    for name, layer in layers.items():
        perturb(layer, 0.5, seed=len(name))
        layer.double()
        h = states(2, (2, 2, 4))
        z, log_det = layer(h, noise)
        torch.testing.assert_close(layer.inverse(z, noise), h, rtol=0, atol=1e-11)
        jacobian = torch.autograd.functional.jacobian(
            lambda t, layer=layer: layer(t[None], noise.rows(slice(0, 1)))[0][0], h[0]
        ).reshape(16, 16)
        expected = float(torch.linalg.slogdet(jacobian)[1])
        assert float(log_det.detach().expand(2)[0]) == pytest.approx(expected, abs=1e-11), name


def test_squeezing_moves_every_value_and_loses_none():
    h = torch.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    z, _ = Squeeze()(h, noise_of(2))
    assert z.shape == (2, 2, 3, 12)
    assert torch.equal(Squeeze().inverse(z, noise_of(2)), h)
    assert set(z[1, 0, 2].tolist()) == set(h[1, 0:2, 4:6].flatten().tolist())


@torch.no_grad()
def test_a_fresh_mixing_is_a_rotation():
    matrix, bias, volume = Mixing(12, torch.Generator().manual_seed(3)).double().affine()
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(12, dtype=torch.float64), rtol=0, atol=1e-6)
    assert float(bias.abs().max()) == 0
    assert float(volume) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_initialising_gives_every_step_a_centred_input_of_unit_variance(name):
    flow = tiny(name, scale=0.0, double=True)
    for part in flow.modules():
        if isinstance(part, Coupling):
            perturb(part)
    x, noise = smooth_images(200), noise_of(200)
    flow.initialise(x // 3, noise)  # of which the second start must keep nothing
    flow.initialise(x, noise)
    seen: list[Tensor] = []
    for part in flow.modules():
        if isinstance(part, Mixing):
            part.register_forward_hook(lambda module, inputs, output: seen.append(output[0].clone().flatten(0, -2)))
    flow.statistics(x, noise)
    assert len(seen) == 4
    for after in seen:  # actnorm, then a rotation of the channels
        assert float(after.mean(0).abs().max()) < 1e-5
        assert float(after.var(0).mean()) == pytest.approx(1, abs=1e-4)


def test_initialising_touches_nothing_but_the_activation_norms():
    flow = tiny("glow", scale=0.0)
    before = {key: value.clone() for key, value in flow.state_dict().items()}
    flow.initialise(smooth_images(20), noise_of(20))
    changed = {
        key.rpartition(".")[2] for key, value in flow.state_dict().items() if not torch.equal(value, before[key])
    }
    assert changed == {"shift", "log_scale"}


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_float32_agrees_with_float64(name):
    shape = (3, 16, 16)
    flow = tiny(name, shape, scale=0.0, levels=3, steps=8, hidden=32)
    x, noise = smooth_images(32, shape), noise_of(32)
    flow.initialise(x, noise)
    perturb(flow, 0.1)
    single = flow.statistics(x, noise)
    double = flow.double().statistics(x, noise)
    for column, tolerance in (("log_px", 0.01), ("log_pz", 0.01), ("log_det", 0.005), ("latent_norm", 0.001)):
        assert single[column].dtype == torch.float32
        assert float((single[column] - double[column]).abs().max()) < tolerance, column


def test_a_flow_samples_the_images_it_finds_likely():
    """E[q(y) / p(y)] = 1 for y from p and every density q: the sampler and the density are of one distribution."""
    flow, other = (tiny("glow", (1, 4, 4), double=True, scale=0.3) for _ in range(2))
    assert isinstance(flow, Glow)
    with torch.no_grad():
        for number, part in enumerate(other.modules()):
            if isinstance(part, Mixing):
                part.shift += 0.05 * (-1) ** number
    n = 20_000
    noise = Noise.of(torch.arange(n), 5)
    y = flow.flow.sample(n, noise)
    with torch.no_grad():
        ratio = (other.flow.log_density(y, noise) - flow.flow.log_density(y, noise)).exp()
    error = float(ratio.std()) / math.sqrt(n)
    assert 0.0005 < error < 0.02
    assert float(ratio.mean()) == pytest.approx(1, abs=4.5 * error)
