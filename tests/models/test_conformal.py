"""Conformal embeddings have J'J = lambda^2 I, and their densities integrate to one over the surface."""

import pytest
import torch
from tiny_models import noise_of, perturb, smooth_images, some_images, tiny
from torch import Tensor

from oodbench.models.flows.flow import Flow, standard_normal
from oodbench.models.flows.transforms.base import Transform
from oodbench.models.flows.transforms.conformal import Projection, Similarity, SpecialConformal
from oodbench.models.flows.transforms.householder import ConditionalOrthogonal, Householder, principal_axes
from oodbench.models.manifold.conformal import conformal_factor


def states(n: int, *shape: int) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def layers() -> dict[str, Transform]:
    generator = torch.Generator().manual_seed(1)
    found = {
        "similarity": Similarity((6,)),
        "shift": Similarity((6,), scaling=False),
        "special": SpecialConformal(6),
        "reflection": Householder(6, 1, generator),
        "householder": Householder(6, 4, generator),
        "all": Householder(6, 6, generator),
        "conditional": ConditionalOrthogonal(6, 3, generator),
    }
    for layer in found.values():
        perturb(layer, 0.2)
        layer.double()
    return found


@pytest.mark.parametrize("name", layers())
def test_every_layer_is_conformal_with_the_volume_it_says_and_has_its_inverse(name):
    layer, h, noise = layers()[name], states(6, 6), noise_of(6)
    y, volume = layer(h, noise)
    torch.testing.assert_close(layer.inverse(y, noise), h, rtol=0, atol=1e-12)
    for i, log_det in enumerate(volume.expand(6)):
        j = torch.autograd.functional.jacobian(lambda t: layer(t[None], noise.rows(slice(0, 1)))[0][0], h[i])
        factor = (2 * log_det / 6).exp() * torch.eye(6, dtype=torch.float64)
        torch.testing.assert_close(j.T @ j, factor, rtol=0, atol=1e-12)
        assert float(torch.linalg.slogdet(j)[1]) == pytest.approx(float(log_det.detach()), abs=1e-12)
    assert float((y - h).detach().abs().max()) > 0.1


def test_householder_products_are_the_reflections_one_after_another():
    layer = Householder(5, 3, torch.Generator().manual_seed(2)).double()
    h = states(4, 5)
    expected = h
    for v in layer.vectors.T:  # y = H_3 H_2 H_1 h
        expected = expected - 2 * (expected @ v)[:, None] * v / v.square().sum()
    torch.testing.assert_close(layer(h, noise_of(4))[0], expected, rtol=0, atol=1e-13)


@torch.no_grad()
def test_reflections_can_be_pointed_at_any_frame_and_begin_at_principal_axes():
    rows = states(50, 7) @ torch.diag(torch.arange(7, 0, -1).double())
    layer = Householder(7, 3, torch.Generator().manual_seed(0), principal=True).double()
    layer.initialise(rows)
    y = layer(rows, noise_of(50))[0]
    torch.testing.assert_close(y[:, :3].abs(), (rows @ principal_axes(rows, 3)).abs(), rtol=0, atol=1e-10)
    energy = torch.linalg.svdvals(rows)[:3].square().sum()
    torch.testing.assert_close(y[:, :3].square().sum(), energy, rtol=1e-12, atol=0)


@torch.no_grad()
def test_the_conditional_map_is_two_and_both_are_used():
    layer = layers()["conditional"]
    h = states(200, 3, 6)
    layer.initialise(h)
    inner = layer.is_inner(h)
    assert float(inner.double().mean()) == pytest.approx(0.5, abs=0.01)
    y = layer(h, noise_of(200))[0]
    torch.testing.assert_close(y.norm(dim=-1), h.norm(dim=-1), rtol=1e-12, atol=0)
    assert float((y - layer.inner(h, noise_of(200))[0]).abs().amax(-1)[~inner[..., 0]].min()) > 1e-6


def test_the_models_jacobian_is_a_multiple_of_an_isometry_by_its_log_volume():
    model = tiny("conformal", (2, 4, 8), double=True, scale=0.2)
    noise = noise_of(3)
    z = model.encode(some_images(3, (2, 4, 8)), noise)[1].detach()
    decoded, volume = model.decode_with_volume(z, noise)
    again = model.embedding(decoded.reshape(3, 4, 8, 2), noise)[0][0]
    torch.testing.assert_close(again, z, rtol=0, atol=1e-10)  # g+(g(z)) = z
    for i in range(3):
        j = torch.autograd.functional.jacobian(lambda t: model.decode(t[None], noise.rows(slice(0, 1)))[0], z[i])
        factor = (2 * volume[i] / model.latents).exp() * torch.eye(model.latents, dtype=torch.float64)
        torch.testing.assert_close(j.T @ j, factor, rtol=1e-10, atol=1e-10)
    assert float(volume.std()) > 1e-3


@torch.no_grad()
def test_the_density_on_a_sphere_or_plane_in_space_integrates_to_one():
    """By the area of small triangles' worth of surface: sqrt det of a Gram matrix of finite differences."""
    generator = torch.Generator().manual_seed(5)
    flow = Flow((3,), [SpecialConformal(3), Householder(3, 2, generator), Projection(3, 2), Similarity((2,))])
    perturb(flow, 0.4)
    flow.double()
    axis = torch.linspace(-6, 6, 601, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis)
    x = flow.inverse([z], noise_of(len(z)))
    log_p = standard_normal(z) + 2 * conformal_factor(flow, x, noise_of(len(z)))
    grid = x.reshape(601, 601, 3)
    assert float(grid.std()) > 0.1
    down, right = (grid[2:, 1:-1] - grid[:-2, 1:-1]) / 2, (grid[1:-1, 2:] - grid[1:-1, :-2]) / 2
    area = torch.linalg.cross(down, right).norm(dim=-1)
    mass = (log_p.exp().reshape(601, 601)[1:-1, 1:-1] * area).sum()
    assert float(mass) == pytest.approx(1, abs=2e-3)
    # Curved: these points lie in no plane.
    centred = x - x.mean(0)
    assert float(torch.linalg.svdvals(centred)[2]) > 1e-2 * float(torch.linalg.svdvals(centred)[0])


@torch.no_grad()
def test_training_starts_at_principal_components_of_the_images():
    model = tiny("conformal", (1, 4, 4), double=True, scale=0.0, latents=5, levels=1, channels=4)
    x, noise = smooth_images(200, (1, 4, 4)), noise_of(200)
    model.initialise(x, noise)
    error = -model.statistics(x, noise)["reconstruction"].mean() / model.weight
    pixels = model.dequantise(x, noise).flatten(1)
    left = torch.linalg.svdvals(pixels - pixels.mean(0))[5:].square().sum() / 200
    assert 0.5 * float(left) < float(error) < 1.5 * float(left)  # of two linear maps, by norm
