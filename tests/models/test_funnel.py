"""Funnels drop dimensions, and what is left is a density all the same."""

import math

import pytest
import torch
from tiny_models import noise_of, perturb, some_images, tiny
from torch import nn

from oodbench.errors import OodbenchError
from oodbench.models.flows.flow import Flow, standard_normal
from oodbench.models.flows.funnel import FunnelFlow
from oodbench.models.flows.transforms.elementwise import Affine
from oodbench.models.flows.transforms.funnel import Decoder, Funnel
from oodbench.models.flows.transforms.prior import Standardise
from oodbench.models.noise import Noise


def network(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, outputs))


def funnel(kept: int = 1, dropped: int = 1, components: int = 3) -> Funnel:
    torch.manual_seed(0)
    decoder = Decoder(network(kept, 3 * components * dropped), components)
    layer = Funnel(kept, network(dropped, 2 * kept), Affine(), decoder, "funnel")
    perturb(layer, 0.5)
    return layer.double()


def flow(**config: int) -> Flow:
    layer = funnel(**config)
    return Flow((layer.kept + config.get("dropped", 1),), [layer, Standardise((layer.kept,))]).double()


@torch.no_grad()
def test_a_plane_that_is_funnelled_into_a_line_has_unit_mass():
    axis = torch.linspace(-12, 12, 1201, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    density = flow().log_density(points, noise_of(len(points))).exp().reshape(len(axis), -1)
    assert float(density[[0, -1]].max()) < 1e-7
    assert float(density[:, [0, -1]].max()) < 1e-7
    assert float(density.sum()) * float(axis[1] - axis[0]) ** 2 == pytest.approx(1, abs=1e-5)


def test_its_logarithm_is_the_decoders_and_the_jacobians():
    layer = funnel(kept=2, dropped=3)
    h = torch.randn(4, 5, dtype=torch.float64)
    z, found = layer(h, noise_of(4))
    assert z.shape == (4, 2)
    for i in range(4):
        kept, dropped = h[i, :2], h[i, 2:]
        jacobian = torch.autograd.functional.jacobian(
            lambda k, dropped=dropped: layer(torch.cat([k, dropped])[None], noise_of(1))[0][0], kept
        )
        logits, means, log_scales = layer.decoder.network(z[i]).reshape(3, 3, 3)
        mixture = torch.distributions.MixtureSameFamily(
            torch.distributions.Categorical(logits=logits),
            torch.distributions.Normal(means + layer.decoder.start, log_scales.exp()),
        )
        expected = torch.linalg.slogdet(jacobian)[1] + mixture.log_prob(dropped).sum()
        assert float(found[i].detach()) == pytest.approx(float(expected.detach()), abs=1e-12)


@torch.no_grad()
def test_the_inverse_is_a_right_inverse_and_random_on_the_left():
    layer, n = funnel(kept=2, dropped=3), 50
    z = torch.randn(n, 2, dtype=torch.float64)
    h = layer.inverse(z, noise_of(n))
    torch.testing.assert_close(layer(h, noise_of(n))[0], z, rtol=0, atol=1e-12)
    again = layer.inverse(z, noise_of(n, seed=4))
    assert float((again - h).abs().min()) > 0
    torch.testing.assert_close(layer(again, noise_of(n))[0], z, rtol=0, atol=1e-12)
    assert not layer.bijective


@torch.no_grad()
def test_samples_are_of_the_density():
    """E[q(y) / p(y)] = 1 for y from p and every density q: here a wide normal."""
    model, n = flow(kept=1, dropped=2), 40_000
    noise = Noise.of(torch.arange(n), 5)
    y = model.sample(n, noise)
    ratio = (standard_normal((y - 0.2) / 0.8) - 3 * math.log(0.8) - model.log_density(y, noise)).exp()
    error = float(ratio.std()) / math.sqrt(n)
    assert 0 < error < 0.1
    assert float(ratio.mean()) == pytest.approx(1, abs=4 * error)


def test_the_decoder_draws_its_components_in_their_proportions():
    decoder = funnel().decoder
    n = 50_000
    z = torch.full((n, 1), 0.3, dtype=torch.float64)
    with torch.no_grad():
        draws = decoder.sample(z, Noise.of(torch.arange(n), 1), "funnel")[:, 0]
        axis = torch.linspace(-15, 15, 3001, dtype=torch.float64)[:, None]
        density = decoder.log_prob(axis, z[: len(axis)]).exp()
        cumulative = density.cumsum(0) * 0.01
        empirical = torch.searchsorted(draws.sort().values, axis[:, 0], right=True) / n
    assert float(cumulative[-1]) == pytest.approx(1, abs=1e-6)
    assert float((empirical - cumulative).abs().max()) < 0.015  # Kolmogorov: 1.95 / sqrt(n) = 0.009, and the grid


@torch.no_grad()
def test_an_images_few_latents_and_columns():
    model = tiny("funnel", double=True)
    x, noise = some_images(4), noise_of(4)
    latents, volumes = model.flow(model.dequantise(x, noise), noise)
    assert [tuple(e.shape) for e in latents] == [(4, 2, 2, 3)]
    columns = model.statistics(x, noise)
    torch.testing.assert_close(columns["log_pz"], standard_normal(latents[0]), rtol=1e-12, atol=0)
    torch.testing.assert_close(columns["latent_norm"], latents[0].flatten(1).norm(dim=1), rtol=1e-12, atol=0)
    assert model.latent_dimensions == latents[0][0].numel() == 12
    expected = columns["log_pz"] + volumes.sum(1) - 192 * math.log(256)
    torch.testing.assert_close(columns["log_px"], expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kept", [0, 12, 20])
def test_a_funnel_that_drops_nothing_or_all_is_told_in_one_sentence(kept):
    with pytest.raises(OodbenchError, match=f"from 12 channels cannot keep {kept}"):
        FunnelFlow((3, 8, 8), levels=2, kept=kept)
    with pytest.raises(OodbenchError, match="cannot keep 5"):
        Flow((5,), [funnel(kept=5, dropped=1)])
