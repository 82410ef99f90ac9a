"""The von Mises-Fisher distribution and the VAE on a sphere, against SciPy's Bessel functions and quadrature."""

import math

import numpy as np
import pytest
import torch
from scipy.special import gammaln, ive
from tiny_models import noise_of, perturb, some_images, tiny
from torch import Tensor

from oodbench.errors import OodbenchError
from oodbench.models.noise import Noise
from oodbench.models.vae import von_mises_fisher as room
from oodbench.models.vae.bessel import log_bessel
from oodbench.models.vae.spherical import SphericalVAE
from oodbench.models.vae.von_mises_fisher import VonMisesFisher, angle_slope, log_density, log_uniform, sample_angles

DIMENSIONS = (2, 3, 5, 10, 20)
CONCENTRATIONS = (0.1, 1.0, 10.0, 100.0, 1000.0, 1e5)
SHAPE = (1, 4, 4)
RULE = tuple(torch.from_numpy(t) / 2 for t in np.polynomial.legendre.leggauss(400) + np.array([[1.0], [0.0]]))
every_case = pytest.mark.parametrize(("d", "k"), [(d, k) for d in DIMENSIONS for k in CONCENTRATIONS])


def column(k: float, n: int = 1) -> Tensor:
    return torch.full((n, 1), k, dtype=torch.float64)


def angles_and_weights(d: int, k: float, end: float = math.pi) -> tuple[Tensor, Tensor]:
    """A rule for integrals of q over the sphere from angle 0 to `end`, where q is not next to nothing."""
    end = min(end, 12 * math.sqrt(d / k) if k > 20 * d else math.pi)
    nodes, weights = RULE
    angle = nodes * end
    surface = math.log(2) + (d - 1) / 2 * math.log(math.pi) - math.lgamma((d - 1) / 2)  # of S^(d-2)
    return angle, weights * end * torch.exp(surface + (d - 2) * angle.sin().log())


def mean_of(d: int, k: float, power: int = 0) -> float:
    """E cos(angle)^power by quadrature."""
    angle, weight = angles_and_weights(d, k)
    return float((log_density(d, column(k), angle).squeeze(0).exp() * weight * angle.cos() ** power).sum())


def distribution(d: int, k: float) -> tuple[np.ndarray, np.ndarray]:
    """(angles, the distribution function there), on a fine grid, without anything of the room's."""
    grid = np.linspace(0, min(math.pi, 12 * math.sqrt(d / k)), 40_001)
    middle = (grid[1:] + grid[:-1]) / 2
    log = (d - 2) * np.log(np.sin(middle)) + k * (np.cos(middle) - 1)
    mass = np.exp(log - log.max())
    return grid, np.concatenate([[0], np.cumsum(mass)]) / mass.sum()


@pytest.mark.parametrize("order", np.arange(0, 10.5, 0.5))
def test_log_bessel_is_scipys_with_its_derivative(order: float) -> None:
    x = torch.logspace(-3, 6, 500, dtype=torch.float64, requires_grad=True)
    value = log_bessel(order, x)
    at = x.detach().numpy()
    np.testing.assert_allclose(value.detach().numpy(), np.log(ive(order, at)), rtol=1e-13, atol=1e-12)
    (slope,) = torch.autograd.grad(value.sum(), x)
    expected = ive(order + 1, at) / ive(order, at) + order / at - 1
    np.testing.assert_allclose(slope.numpy(), expected, rtol=1e-9, atol=1e-13)
    single = log_bessel(order, x.detach().float())
    assert single.dtype == torch.float64
    np.testing.assert_allclose(single.numpy(), np.log(ive(order, x.detach().float().double().numpy())), atol=1e-12)


def test_log_bessel_has_second_derivatives_on_both_sides_of_its_border() -> None:
    x = torch.tensor([0.3, 12.0, 29.9, 30.1, 200.0], dtype=torch.float64, requires_grad=True)
    for order in (0.0, 0.5, 4.0, 9.5):
        assert torch.autograd.gradgradcheck(lambda x, order=order: log_bessel(order, x), x)


def test_orders_beyond_the_sums_are_refused() -> None:
    for order in (-0.5, 10.5):
        with pytest.raises(OodbenchError, match=f"not {order}"):
            log_bessel(order, torch.ones(1))


@every_case
def test_the_density_integrates_to_one_and_has_its_mean_where_bessel_functions_say(d: int, k: float) -> None:
    assert mean_of(d, k) == pytest.approx(1, abs=1e-10)
    assert mean_of(d, k, power=1) == pytest.approx(ive(d / 2, k) / ive(d / 2 - 1, k), abs=1e-10)
    constant = (d / 2 - 1) * math.log(k) - d / 2 * math.log(2 * math.pi) - math.log(ive(d / 2 - 1, k))
    assert float(log_density(d, column(k), column(0.0))) == pytest.approx(constant, abs=1e-9)
    assert float(log_density(d, column(k), column(0.7)) - constant) == pytest.approx(k * (math.cos(0.7) - 1))


@pytest.mark.parametrize("d", DIMENSIONS)
def test_the_uniform_density_is_one_over_the_surface(d: int) -> None:
    assert log_uniform(d) == pytest.approx(float(gammaln(d / 2)) - math.log(2 * math.pi ** (d / 2)), abs=1e-12)
    assert float(log_density(d, column(1e-9), column(1.0))) == pytest.approx(log_uniform(d), abs=1e-8)


@every_case
def test_the_divergence_is_its_quadrature_and_so_is_its_slope(d: int, k: float) -> None:
    concentration = column(k).requires_grad_()
    kl = VonMisesFisher(torch.eye(1, d, dtype=torch.float64), concentration).kl()
    assert kl.shape == (1, 1)
    angle, weight = angles_and_weights(d, k)
    log_q = log_density(d, column(k), angle)[0]
    assert kl.item() == pytest.approx(float((log_q.exp() * weight * (log_q - log_uniform(d))).sum()), abs=1e-9)
    (slope,) = torch.autograd.grad(kl, concentration)
    variance = float((log_q.exp() * weight * (angle.cos() - mean_of(d, k, power=1)).square()).sum())
    assert float(slope) == pytest.approx(k * variance, rel=1e-6)
    single = VonMisesFisher(torch.eye(1, d), torch.full((1, 1), k)).kl()
    assert single.item() == pytest.approx(kl.item(), rel=1e-6, abs=1e-6)


@every_case
def test_angles_have_their_distribution(d: int, k: float) -> None:
    """Mean and variance of the cosine, and the distance of Kolmogorov and Smirnov."""
    n = 20_000
    angle = sample_angles(d, column(k, n), Noise.of(torch.arange(n), seed=d))[:, 0]
    cosine, mean = angle.cos(), ive(d / 2, k) / ive(d / 2 - 1, k)
    variance = 1 - mean**2 - (d - 1) * mean / k
    assert float(cosine.mean()) == pytest.approx(mean, abs=4.5 * math.sqrt(variance / n))
    assert float(cosine.var()) == pytest.approx(variance, rel=0.1)
    grid, share = distribution(d, k)
    at = np.interp(np.sort(angle.numpy()), grid, share)
    assert np.abs(at - (np.arange(n) + 0.5) / n).max() < 1.95 / math.sqrt(n)  # once in a thousand


@pytest.mark.parametrize("d", DIMENSIONS)
def test_how_many_proposals_come_at_a_time_changes_no_distribution(d: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "PROPOSALS", 1)
    monkeypatch.setattr(room, "ROUNDS", 64)
    n, k = 20_000, 50.0
    angle = sample_angles(d, column(k, n), Noise.of(torch.arange(n), seed=1))[:, 0]
    grid, share = distribution(d, k)
    at = np.interp(np.sort(angle.numpy()), grid, share)
    assert np.abs(at - (np.arange(n) + 0.5) / n).max() < 1.95 / math.sqrt(n)


@pytest.mark.parametrize("d", DIMENSIONS)
def test_two_thirds_of_proposals_are_accepted(d: int) -> None:
    u = torch.rand((3, 20_000, 1), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for k in (0.01, *CONCENTRATIONS):
        _, accepted = room._propose(d, column(k, 20_000), *u)
        assert float(accepted.double().mean()) > 0.64


def test_a_draw_without_an_accepted_proposal_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OodbenchError, match="No angle of 64"):
        sample_angles(3, torch.tensor([[1.0], [math.nan]]), noise_of(2))
    propose = room._propose

    def rejected(*args):
        angle, accepted = propose(*args)
        return angle, accepted & (args[1] != 7)

    monkeypatch.setattr(room, "_propose", rejected)
    with pytest.raises(OodbenchError, match="concentration 7"):
        sample_angles(3, torch.tensor([[1.0], [7.0], [2.0]]), noise_of(3))


@pytest.mark.parametrize("d", DIMENSIONS)
@pytest.mark.parametrize("k", [0.5, 30.0])
def test_draws_have_the_moments_of_the_distribution(d: int, k: float) -> None:
    """E z = A m and E z z' = (1 - A (d - 1) / k) m m' + A / k (I - m m')."""
    n = 20_000
    m = torch.nn.functional.normalize(torch.randn(1, d, generator=torch.Generator().manual_seed(d)).double(), dim=1)
    q = VonMisesFisher(m, column(k))
    noise = Noise.of(torch.arange(1), seed=2).expand(0, n)
    z, log_q = q.draw(noise, n)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(n).double(), rtol=1e-12, atol=0)
    mean = ive(d / 2, k) / ive(d / 2 - 1, k)
    torch.testing.assert_close(q.mean, mean * m)
    assert float(q.std) == pytest.approx(math.sqrt(1 - mean**2))
    torch.testing.assert_close(z.mean(0), mean * m[0], rtol=0, atol=5 / math.sqrt(n))
    projection = m.T @ m
    expected = (1 - mean * (d - 1) / k) * projection + mean / k * (torch.eye(d) - projection)
    torch.testing.assert_close(z.T @ z / n, expected, rtol=0, atol=5 / math.sqrt(n))
    constant = (d / 2 - 1) * math.log(k) - d / 2 * math.log(2 * math.pi) - math.log(ive(d / 2 - 1, k)) - k
    torch.testing.assert_close(log_q, constant + k * (z @ m[0]), rtol=0, atol=1e-8)


@pytest.mark.parametrize("d", DIMENSIONS)
def test_the_uniform_distribution_is_estimated_without_bias(d: int) -> None:
    n = 20_000
    q = VonMisesFisher(torch.eye(1, d).double(), column(1.0))
    _, log_q = q.draw(Noise.of(torch.arange(1), seed=2).expand(0, n), n)
    weights = (log_uniform(d) - log_q).exp()
    assert float(weights.mean()) == pytest.approx(1, abs=4.5 * float(weights.std()) / math.sqrt(n))


@pytest.mark.parametrize("d", DIMENSIONS)
@pytest.mark.parametrize("k", [0.1, 10.0, 1000.0, 1e5])
def test_angles_move_with_the_concentration_as_quantiles_do(d: int, k: float) -> None:
    """Against finite differences of the distribution function, by quadrature of its own."""
    angle = sample_angles(d, column(k, 12), Noise.of(torch.arange(12), seed=5))
    slope = angle_slope(d, column(k, 12), angle)

    def share(end: float, k: float) -> float:
        at, weight = angles_and_weights(d, k, end)
        return float((log_density(d, column(k), at)[0].exp() * weight).sum())

    step = 1e-4 * k
    for one, of_one in zip(angle[:, 0].tolist(), slope[:, 0].tolist(), strict=True):
        change = (share(one, k + step) - share(one, k - step)) / (2 * step)
        surface = math.log(2) + (d - 1) / 2 * math.log(math.pi) - math.lgamma((d - 1) / 2)
        density = math.exp(surface + (d - 2) * math.log(math.sin(one)) + float(log_density(d, column(k), column(one))))
        assert of_one == pytest.approx(-change / density, rel=2e-4, abs=1e-7 / k)


def test_the_gradient_of_the_loss_is_that_at_fixed_quantiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rejected or not does not depend on the weights smoothly; each draw's value of the distribution function does."""
    model, x, noise = tiny("svae", double=True, scale=0.3), some_images(4), noise_of(4)
    k = model.on_sphere(x).concentration.detach()
    drawn = sample_angles(4, k, noise)
    gradients = torch.autograd.grad(model.loss(x, noise).mean(), list(model.parameters()))

    def share(k: Tensor, angle: Tensor) -> Tensor:
        nodes, weights = RULE

        def upto(end: Tensor) -> Tensor:
            at = end * nodes
            return (end * weights * at.sin().square() * (k * (at.cos() - 1)).exp()).sum(1, keepdim=True)

        return upto(angle) / upto(torch.full_like(angle, math.pi))

    quantile = share(k, drawn)

    def by_quantile(d: int, k: Tensor, noise: Noise) -> Tensor:
        low, high = torch.zeros_like(k), torch.full_like(k, math.pi)
        for _ in range(60):
            middle = (low + high) / 2
            below = share(k, middle) < quantile
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    monkeypatch.setattr(room, "sample_angles", by_quantile)
    torch.testing.assert_close(by_quantile(4, k, noise), drawn, rtol=0, atol=1e-9)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in model.parameters()]
        slope = sum(float((g * v).sum()) for g, v in zip(gradients, directions, strict=True))
        losses, step = [], 1e-6
        with torch.no_grad():
            for sign in (1, -2, 1):
                for p, v in zip(model.parameters(), directions, strict=True):
                    p += sign * step * v
                losses.append(float(model.loss(x, noise).mean()))
        assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(slope, rel=1e-5, abs=1e-4)


def test_training_starts_at_the_directions_of_principal_components() -> None:
    model, plain = (tiny(name, SHAPE, scale=0.0, latents=3) for name in ("svae", "vae-mlp"))
    assert isinstance(model, SphericalVAE)
    x = some_images(40, SHAPE)
    with torch.no_grad():
        for each in (model, plain):
            each.calibrate(x, x)
        q, (mean, std) = model.on_sphere(x), plain.encode(x)
        torch.testing.assert_close(q.direction, mean / mean.norm(dim=1, keepdim=True), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(q.concentration, (3 / std[:, :].square().mean(1, keepdim=True)), rtol=1e-4, atol=0)
        z = mean[:5] / math.sqrt(3)
        torch.testing.assert_close(model.mean_image(z), plain.mean_image(mean[:5]), rtol=1e-4, atol=1e-4)


def test_the_prior_is_uniform_on_the_sphere() -> None:
    model, n = tiny("svae", SHAPE, double=True), 5000
    z = model.sample_prior(Noise.of(torch.arange(n), seed=1))
    torch.testing.assert_close(z.norm(dim=1), torch.ones(n).double())
    torch.testing.assert_close(z.mean(0), torch.zeros(4).double(), rtol=0, atol=4.5 / math.sqrt(4 * n))
    torch.testing.assert_close(z.T @ z / n, torch.eye(4).double() / 4, rtol=0, atol=5 / math.sqrt(n))
    torch.testing.assert_close(model.log_prior(z), torch.full((n,), -math.log(2 * math.pi**2)).double())


@pytest.mark.parametrize("latents", [2, 3, 20])
def test_concentrations_are_held_where_everything_is_finite(latents: int) -> None:
    model = SphericalVAE(SHAPE, latents, hidden=6, draws=3)
    perturb(model, 0.5)
    x = some_images(4, SHAPE)
    for bias in (-1e4, 1e4):
        with torch.no_grad():
            model.encoder.linear.bias[latents] = bias
        k = model.on_sphere(x).concentration
        torch.testing.assert_close(k, torch.full_like(k, 0.01 if bias < 0 else 1e5), rtol=1e-5, atol=0)
        loss = model.loss(x, noise_of(4))
        assert loss.isfinite().all()
        loss.mean().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        columns = model.statistics(x, noise_of(4))
        assert all(values.isfinite().all() for values in columns.values())
