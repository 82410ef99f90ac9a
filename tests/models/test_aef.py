"""An AEF with its core in the image is a bijection: log-determinant, inverse, unit mass; the linear core is none."""

import math

import pytest
import torch
from tiny_models import noise_of, perturb, smooth_images, some_images, tiny
from torch import Tensor

from oodbench.models.base import Likelihood
from oodbench.models.flows.flow import Flow
from oodbench.models.flows.transforms.base import Transform
from oodbench.models.flows.transforms.coupling import Coupling
from oodbench.models.flows.transforms.elementwise import Affine
from oodbench.models.flows.transforms.part import Part
from oodbench.models.flows.transforms.permutation import Permutation, swap
from oodbench.models.manifold.aef import Centred, _core_first
from oodbench.models.manifold.latents import couplings
from oodbench.models.networks import DenseNetwork
from oodbench.models.noise import Noise

bijective_core = pytest.mark.parametrize("core", ["corner", "centre"])


@bijective_core
@pytest.mark.parametrize("shape", [(1, 4, 4), (2, 4, 4)])
def test_the_log_determinant_is_that_of_the_whole_jacobian(core, shape):
    model = tiny("aef", shape, double=True, core=core)
    assert model.likelihood is Likelihood.LOWER_BOUND
    x, noise = some_images(3, shape), noise_of(3)
    y = x.double() + noise.uniform(shape, "dequantisation").double()
    columns = model.statistics(x, noise)
    for i in range(3):

        def latents(t: Tensor) -> Tensor:
            return model.flow((t / 256 - 0.5).permute(1, 2, 0)[None], noise)[0][0][0]

        j = torch.autograd.functional.jacobian(latents, y[i]).reshape(model.dimensions, model.dimensions)
        found = float(columns["log_det"][i].detach())
        assert found == pytest.approx(float(torch.linalg.slogdet(j)[1]), rel=1e-11)
    torch.testing.assert_close(columns["log_px"], columns["log_pz"] + columns["log_det"], rtol=1e-14, atol=0)


@bijective_core
@torch.no_grad()
def test_inverse_and_forward_undo_each_other(core):
    model = tiny("aef", double=True, core=core, scale=0.3)
    h, noise = model.dequantise(some_images(5), noise_of(5)), noise_of(5)
    latents, _ = model.flow(h, noise)
    torch.testing.assert_close(model.flow.inverse(latents, noise), h, rtol=0, atol=1e-9)
    drawn = [noise.normal((192,), "z").double()]
    torch.testing.assert_close(model.flow(model.flow.inverse(drawn, noise), noise)[0], drawn, rtol=0, atol=1e-9)


@torch.no_grad()
def test_the_density_of_these_layers_integrates_to_one_over_the_plane():
    """One core value, one of the rest, and the layers of the model between."""
    layers: list[Transform] = [
        Permutation(torch.tensor([1, 0])),
        swap(1, 1),
        Coupling(1, DenseNetwork(1, 8, 2), Affine(2.0)),
        swap(1, 1),
        Coupling(1, DenseNetwork(1, 8, 2), Centred(-0.5, 1.0)),
        Part(2, couplings(2, count=1, hidden=4)),
    ]
    flow = Flow((2,), layers)
    perturb(flow, 0.7)
    flow.double()
    axis = torch.linspace(-12, 12, 1201, dtype=torch.float64)
    density = flow.log_density(torch.cartesian_prod(axis, axis), noise_of(1201**2)).exp().reshape(1201, 1201)
    assert float(density[[0, -1]].max() + density[:, [0, -1]].max()) < 1e-6
    assert float(density.sum() * (24 / 1200) ** 2) == pytest.approx(1, abs=1e-4)


@torch.no_grad()
def test_the_encoder_sees_the_rest_only():
    model = tiny("aef", (1, 4, 4), double=True)
    x = some_images(1, (1, 4, 4))
    rest = model.encoder[0].rest
    h = model.dequantise(x, noise_of(1)).flatten(1)
    seen = model.encoder[0](h[:, rest])
    core = [i for i in range(16) if i not in rest.tolist()]
    assert len(core) == model.latents
    changed = h.clone()
    changed[:, core] += 1
    assert torch.equal(model.encoder[0](changed[:, rest]), seen)
    here, there = (model.flow(t.reshape(1, 4, 4, 1), noise_of(1))[0][0] for t in (h, changed))
    assert float((here - there).abs().max()) > 1e-3


def test_cores_lie_where_they_say():
    for where, expected in (("corner", [0, 1, 4, 5]), ("centre", [5, 6, 9, 10])):
        order = _core_first((1, 4, 4), 4, where)
        assert order[:4].tolist() == expected
        assert sorted(order.tolist()) == list(range(16))
    order = _core_first((3, 4, 6), 8, "centre")  # colours of one pixel stay together
    assert sorted(order.tolist()) == list(range(72))
    assert len({int(i) // 3 for i in order[:8]}) == 3
    for latents in (2, 15, 71):
        assert sorted(_core_first((3, 4, 6), latents, "corner").tolist()) == list(range(72))


@torch.no_grad()
def test_the_linear_core_is_an_estimate_and_drops_its_core_on_the_way_back():
    model = tiny("aef", (1, 4, 4), double=True, core="linear")
    assert model.likelihood is Likelihood.ESTIMATE
    x, noise = some_images(4, (1, 4, 4)), noise_of(4)
    h = model.dequantise(x, noise)
    latents, _ = model.flow(h, noise)
    assert latents[0].shape == (4, 16 + model.latents)
    torch.testing.assert_close(model.flow.inverse(latents, noise), h, rtol=0, atol=1e-9)
    assert model.log_prob(x, noise).isfinite().all()
    assert model.sample(2, noise_of(2)).shape == (2, 1, 4, 4)


@bijective_core
@torch.no_grad()
def test_training_starts_at_principal_components_of_the_rest(core):
    """The decoder's first mean has the error of PCA, plus what the core's noise adds."""
    shape = (1, 8, 8)
    model = tiny("aef", shape, double=True, scale=0.0, core=core, latents=4)
    x, noise = smooth_images(300, shape), noise_of(300)
    before = float(model.log_prob(x, noise).mean())
    model.initialise(x, noise)
    after = float(model.log_prob(x, noise).mean())
    rest = model.dequantise(x, noise).flatten(1)[:, model.encoder[0].rest]
    covariance = torch.cov(rest.T)
    values = torch.linalg.eigvalsh(covariance)
    left = values[:-4].mean()  # PPCA's log-likelihood (Tipping & Bishop 1999, Eq. 4 and 8)
    count = len(values)
    ppca = -0.5 * (values[-4:].log().sum() + (count - 4) * left.log() + count * (1 + math.log(2 * math.pi)))
    core_values = torch.cov(model.dequantise(x, noise).flatten(1)[:, [i for i in range(64) if i not in
                            model.encoder[0].rest.tolist()]].T)  # fmt: skip
    of_core = -0.5 * (core_values.diagonal().log().sum() + 4 * (1 + math.log(2 * math.pi)))
    expected = float(ppca + of_core) - 64 * math.log(256)
    assert before < after - 20
    assert after == pytest.approx(expected, abs=12)  # of about -250; an axis more or less is more than that


def test_samples_follow_the_density():
    """E[q(y) / p(y)] = 1 under p, for another AEF q."""
    flow, other = (tiny("aef", (1, 4, 4), double=True, scale=0.2) for _ in range(2))
    with torch.no_grad():
        for parameter in other.flow.layers[-1].parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)).double()
        n = 5000
        noise = Noise.of(torch.arange(n), 5)
        y = flow.flow.sample(n, noise)
        ratio = (other.flow.log_density(y, noise) - flow.flow.log_density(y, noise)).exp()
    error = float(ratio.std()) / math.sqrt(n)
    assert 1e-5 < error < 0.05
    assert float(ratio.mean()) == pytest.approx(1, abs=4.5 * error)
