"""The injective decoder: its maps are gradients of convex potentials, and no two latents have the same means."""

import pytest
import torch
from tiny_models import perturb, smooth_images, tiny
from torch import Tensor

from oodbench.errors import OodbenchError
from oodbench.models.vae.brenier import BrenierMap, InjectiveDecoder
from oodbench.models.vae.lidvae import LIDVAE

SHAPE = (3, 4, 4)
LATENTS, MEANS = 4, 48


def decoder() -> InjectiveDecoder:
    """With weights far from where they start, and potentials that bend as much as they are straight."""
    model = tiny("lidvae", SHAPE, double=True)
    with torch.no_grad():
        model.decoder.inner.log_rate.fill_(-1.0)
        model.decoder.outer.log_rate.fill_(-1.5)
        model.decoder.log_widths.copy_(torch.tensor([1.0, 0.3, -0.5, -2.0]))
    return model.decoder


def means(decoder: InjectiveDecoder, z: Tensor) -> Tensor:
    return decoder(z)[:, decoder.means].flatten(1)


def points(n: int, size: int = LATENTS, seed: int = 0) -> Tensor:
    return torch.randn(n, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def maps() -> list[BrenierMap]:
    return [decoder().inner, decoder().outer]


@pytest.mark.parametrize("k", [0, 1])
def test_a_brenier_map_is_the_gradient_of_its_potential_and_bends_it_upwards_everywhere(k):
    g, u = maps()[k], points(20).requires_grad_(True)

    def potential(u: Tensor) -> Tensor:
        bent = (u @ g.layer.weight.T + g.layer.bias).relu().square().sum()
        return (u.square().sum() + g.log_rate.exp() * bent) / 2

    torch.testing.assert_close(g(u)[0], torch.autograd.grad(potential(u), u)[0])
    jacobian = torch.func.vmap(torch.func.jacrev(lambda u: g(u[None])[0][0]))(u).detach()
    torch.testing.assert_close(jacobian, jacobian.mT)
    curvature = torch.linalg.eigvalsh(jacobian)
    assert float(curvature.min()) >= 1 - 1e-12
    assert float(curvature.max()) > 1.5  # it is no identity


@torch.no_grad()
@pytest.mark.parametrize("k", [0, 1])
@pytest.mark.parametrize("distance", [1e-3, 1.0, 1e3])
def test_a_brenier_map_is_monotone_and_never_brings_points_nearer(k, distance):
    g, a = maps()[k], 3 * points(500)
    b = a + distance * points(500, seed=1)
    step, moved = b - a, g(b)[0] - g(a)[0]
    assert ((moved * step).sum(1) >= step.square().sum(1) * (1 - 1e-9)).all()
    assert (moved.norm(dim=1) >= step.norm(dim=1) * (1 - 1e-9)).all()


def test_the_means_are_the_gradient_of_a_convex_potential_on_the_images_side():
    """The potential of `InjectiveDecoder`'s docstring, on all means, at C g1'(z)."""
    d = decoder()
    with torch.no_grad():
        z, basis, widths = points(10), d.basis(), d.log_widths.exp()
        rate, bias = d.outer.log_rate.exp(), d.outer.layer.bias
        beyond = torch.eye(MEANS).double() - basis @ basis.T
        quadratic = (basis * widths**2) @ basis.T + beyond
        rows = (d.outer.layer.weight * widths) @ basis.T + d.beyond.T @ beyond / rate
        y = d.inner(z)[0] / widths @ basis.T

    def potential(y: Tensor) -> Tensor:
        bent = (y @ rows.T + bias).relu().square().sum(-1)
        return ((y @ quadratic * y).sum(-1) + rate * bent) / 2 + y @ d.bias

    y.requires_grad_(True)
    torch.testing.assert_close(means(d, z), torch.autograd.grad(potential(y).sum(), y)[0])
    for at in [*y[:3].detach(), *points(3, MEANS)]:  # beyond the columns of C too
        hessian = torch.autograd.functional.hessian(potential, at)
        assert float(torch.linalg.eigvalsh(hessian).min()) >= min(1.0, float(widths.min()) ** 2) * (1 - 1e-9)


def test_the_decoders_jacobian_has_full_column_rank():
    d = decoder()
    jacobian = torch.func.vmap(torch.func.jacrev(lambda z: means(d, z[None])[0]))(2 * points(30)).detach()
    smallest = torch.linalg.svdvals(jacobian)[:, -1]
    assert (smallest >= d.log_widths.exp().min() * (1 - 1e-9)).all()


@torch.no_grad()
@pytest.mark.parametrize("distance", [1e-4, 1.0, 1e4])
def test_different_latents_have_different_means_near_and_far(distance):
    d, a = decoder(), 2 * points(500)
    b = a + distance * points(500, seed=1)
    apart = (means(d, a) - means(d, b)).norm(dim=1)
    assert (apart >= d.log_widths.exp().min() * (a - b).norm(dim=1) * (1 - 1e-6)).all()


@torch.no_grad()
def test_the_basis_is_orthonormal_and_turns_steadily_with_its_axes():
    d = decoder()
    basis = d.basis()
    torch.testing.assert_close(basis.T @ basis, torch.eye(LATENTS).double())
    for step in (1e-3, -1e-3):  # where the sign of a Householder reflection jumps
        d.axes[0, 0] = step
        torch.testing.assert_close(d.basis(), basis_at_zero(d), rtol=0, atol=2e-2)


def basis_at_zero(d: InjectiveDecoder) -> Tensor:
    axes = d.axes.detach().clone()
    axes[0, 0] = 1e-9
    q, r = torch.linalg.qr(axes)
    return q * r.diagonal().sign()


@torch.no_grad()
def test_what_lies_beyond_the_basis_is_free():
    """The other weights change all directions but the latents' own."""
    d, z = decoder(), points(5)
    before, basis = means(d, z), d.basis()
    d.beyond += 1.0
    changed = means(d, z) - before
    assert float(changed.abs().min()) > 0
    assert float((changed @ basis).abs().max()) < 1e-10


@torch.no_grad()
@pytest.mark.parametrize("latents", [4, 60])  # more than the images have components: 40 of them
def test_training_starts_near_probabilistic_principal_components(latents):
    x = smooth_images(41, (3, 8, 8))
    dense, injective = (tiny(name, scale=0.0, double=True, latents=latents) for name in ("vae-mlp", "lidvae"))
    for model in (dense, injective):
        model.calibrate(x, x)
    z = dense.encode(x)[0]
    torch.testing.assert_close(injective.encode(x)[0], z)
    expected, start = dense.mean_image(z), injective.mean_image(z)
    assert float((start - expected).norm()) < 0.1 * float((expected - expected.mean(0)).norm())
    torch.testing.assert_close(injective.decoder(z)[:, 3:], dense.decoder(z)[:, 3:])  # scales and coefficients
    perturb(injective, 0.1)
    assert injective.decoder(z).isfinite().all()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"network": "convolutional"}, "not 'convolutional', 'logistic' and 1"),
        ({"observation": "categorical"}, "not 'dense', 'categorical' and 1"),
        ({"mixtures": 2}, "not 'dense', 'logistic' and 2"),
        ({"latents": 65}, "64 numbers has no room for 65 injective latents"),
    ],
)
def test_what_it_cannot_be_is_told_in_one_sentence(config, said):
    with pytest.raises(OodbenchError, match=rf"^[^.].* {said}\.$"):
        LIDVAE((1, 8, 8), **config)
