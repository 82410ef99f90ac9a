"""Chains against what is known of them: stationary variances at finite steps, volume, balance, posteriors."""

import math

import pytest
import torch
from linear_latents import LATENTS, LinearLatents
from torch import Tensor

from oodbench.models.noise import Noise
from oodbench.models.vae.chains import differentiate as gradient_of
from oodbench.models.vae.chains import hamiltonian, langevin, leapfrog
from oodbench.models.vae.vae import DenseVAE

PRECISION = torch.tensor([[2.0, 1.2, 0.0], [1.2, 3.0, -0.8], [0.0, -0.8, 1.5]], dtype=torch.float64)
MEAN = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


def gaussian(z: Tensor) -> Tensor:
    """Correlated: N(MEAN, PRECISION^-1) but for its constant."""
    return -0.5 * torch.einsum("bi,ij,bj->b", z - MEAN, PRECISION, z - MEAN)


def quartic(z: Tensor) -> Tensor:
    """No Gaussian at all, and its axes depend on each other."""
    return -0.25 * z.pow(4).sum(1) - 0.5 * (z[:, 0] * z[:, 1]).square() + 0.3 * z[:, 0]


def rows(n: int, seed: int = 4) -> Noise:
    return Noise.of(torch.arange(n), seed)


def test_unadjusted_langevin_has_its_own_stationary_variance():
    precisions, size, n = torch.tensor([0.5, 1.0, 2.5], dtype=torch.float64), 0.6, 20_000
    chain = langevin(lambda z: -0.5 * (precisions * z.square()).sum(1), torch.zeros(n, 3).double(), rows(n), 30, size)
    variance = chain.states[-1].var(0)
    expected = 1 / (precisions * (1 - size * precisions / 2))  # 4 times the target's along the last axis
    torch.testing.assert_close(variance, expected, rtol=4.5 * math.sqrt(2 / n), atol=0)
    assert torch.equal(chain.acceptance, torch.ones(n).double())


def test_no_step_drifts_farther_than_its_reach():
    start, noise, size = torch.full((50, 1), 9.0).double(), rows(50), 1.0

    def steep(z: Tensor) -> Tensor:
        return -1.5 * z.square().sum(1)  # at this size a chain's distance doubles with every step

    free = langevin(steep, start, noise, 12, size).states
    assert float(free[-1].abs().min()) > 1e4
    held = langevin(steep, start, noise, 12, size, reach=0.5).states
    moves = torch.diff(torch.cat([start[None], held]), dim=0)
    jumps = [math.sqrt(2 * size) * noise.normal((1,), f"langevin {step}").double() for step in range(12)]
    drifts = moves - torch.stack(jumps)
    assert float(drifts.abs().max()) == pytest.approx(0.5)
    assert float(drifts[0].max()) == pytest.approx(-0.5)


def test_a_langevin_step_is_one_leapfrog_with_a_fresh_momentum():
    start, noise = rows(6).normal((2,), "start").double(), rows(6)
    p, size = noise.normal((2,), "langevin 0").double(), 0.07
    leapt = leapfrog(quartic, start, p, gradient_of(quartic, start)[1], math.sqrt(2 * size), 1)[0]
    torch.testing.assert_close(langevin(quartic, start, noise, 1, size).states[0], leapt, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("leapfrogs", "size"), [(1, 0.8), (3, 0.6)])
def test_corrected_chains_reach_a_correlated_gaussian(leapfrogs, size):
    n = 8000
    chain = hamiltonian(gaussian, torch.zeros(n, 3).double(), rows(n), 40, size, leapfrogs)
    assert 0.3 < float(chain.acceptance.mean()) < 0.97  # so that what is rejected counts
    z = torch.cat([chain.states[-1], chain.states[-11]])  # of which the second half is nearly independent
    covariance = torch.linalg.inv(PRECISION)
    error = (covariance.diagonal() / n).sqrt()
    assert ((z.mean(0) - MEAN).abs() < 4.5 * error).all()
    spread = (covariance.square() + torch.outer(covariance.diagonal(), covariance.diagonal())) / n
    assert ((z.T.cov() - covariance).abs() < 4.5 * spread.sqrt()).all()


def test_without_its_correction_such_a_chain_is_wrong():
    """Else the test above could not fail."""
    n = 8000
    chain = langevin(gaussian, torch.zeros(n, 3).double(), rows(n), 40, 0.8**2 / 2)
    covariance = torch.linalg.inv(PRECISION)
    spread = (2 * covariance.diagonal().square() / n).sqrt()
    assert float(((chain.states[-1].var(0) - covariance.diagonal()) / spread).abs().max()) > 9


def test_leapfrogs_come_back_when_the_momentum_turns():
    start, p = rows(20).normal((2,), "start").double(), rows(20).normal((2,), "momentum").double()
    there, momentum, value, gradient = leapfrog(quartic, start, p, gradient_of(quartic, start)[1], 0.2, 7)
    torch.testing.assert_close(value, quartic(there), rtol=0, atol=0)
    assert float((there - start).norm(dim=1).min()) > 0.05
    back, turned, _, _ = leapfrog(quartic, there, -momentum, gradient, 0.2, 7)
    torch.testing.assert_close(back, start, rtol=0, atol=1e-12)
    torch.testing.assert_close(turned, -p, rtol=0, atol=1e-12)


def test_leapfrogs_keep_volume():
    """By central differences in all four numbers; a map that is only near gives a determinant of 0.9 or so."""
    state = rows(1).normal((4,), "state").double()[0]
    step = 1e-5
    moved = torch.cat([state + step * torch.eye(4).double(), state - step * torch.eye(4).double()])
    z, p = moved[:, :2], moved[:, 2:]
    there, momentum, _, _ = leapfrog(quartic, z, p, gradient_of(quartic, z)[1], 0.3, 5)
    ends = torch.cat([there, momentum], 1)
    jacobian = (ends[:4] - ends[4:]) / (2 * step)
    assert float((jacobian - torch.eye(4).double()).abs().max()) > 0.3
    assert float(torch.linalg.det(jacobian)) == pytest.approx(1, abs=1e-7)


def test_the_energys_error_falls_with_the_square_of_the_step():
    start, p = rows(200).normal((2,), "start").double(), rows(200).normal((2,), "momentum").double()
    errors = []
    for steps in (10, 20):
        _, momentum, value, _ = leapfrog(quartic, start, p, gradient_of(quartic, start)[1], 1 / steps, steps)
        change = value - quartic(start) - 0.5 * (momentum.square() - p.square()).sum(1)
        errors.append(float(change.square().mean().sqrt()))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)


def test_a_step_is_in_detailed_balance_with_its_density():
    """From exact draws of log z - z (z > 0, a Gamma(2)), E f(z) g(z') = E g(z) f(z'); NaN elsewhere is refused."""
    n = 200_000
    u, v = (rows(n, seed).uniform((1,), "start").double() for seed in (1, 2))
    z = -torch.log(u) - torch.log(v)
    chain = hamiltonian(lambda z: (torch.log(z) - z).sum(1), z, rows(n), 1, 1.3, 2)
    after = chain.states[0]
    rate = float(chain.acceptance.mean())
    moved = (after != z).double()
    assert 0.4 < rate < 0.95
    assert float(moved.mean()) == pytest.approx(rate, abs=4.5 * math.sqrt(0.25 / n))
    assert float(after.min()) > 0
    difference = z * after.square() - z.square() * after
    assert abs(float(difference.mean())) < 4.5 * float(difference.std()) / math.sqrt(n)
    assert float(difference.std()) > 1
    for power, moment in ((1, 2.0), (2, 6.0)):  # and it stays where it was
        values = after.pow(power)
        assert float(values.mean()) == pytest.approx(moment, abs=4.5 * float(values.std()) / math.sqrt(n))


def test_chains_stay_where_the_density_is_not_zero():
    n = 20_000
    z = 2 * rows(n).uniform((1,), "start").double() - 1
    uniform = hamiltonian(lambda z: torch.where(z.abs() < 1, 0 * z, -math.inf).sum(1), z, rows(n), 5, 0.8, 1)
    assert float(uniform.states.abs().max()) < 1
    assert float(uniform.states[-1].var()) == pytest.approx(1 / 3, abs=4.5 * math.sqrt(4 / 45 / n))
    assert 0.3 < float(uniform.acceptance.mean()) < 0.9


@pytest.mark.parametrize("kind", ["langevin", "hamiltonian"])
def test_a_chain_belongs_to_its_image(kind):
    start, noise = rows(5).normal((2,), "start").double(), rows(5)

    def run(start: Tensor, noise: Noise) -> Tensor:
        if kind == "langevin":
            return langevin(quartic, start, noise, 6, 0.1).states
        return hamiltonian(quartic, start, noise, 6, 0.5, 2).states

    together = run(start, noise)
    order = torch.tensor([3, 0, 4, 1, 2])
    turned = run(start[order], Noise(noise.seed, noise.index[order], noise.draw[order]))
    torch.testing.assert_close(turned, together[:, order], rtol=0, atol=1e-12)
    torch.testing.assert_close(run(start[2:3], noise.rows(slice(2, 3))), together[:, 2:3], rtol=0, atol=1e-12)
    other = run(start, Noise.of(noise.index, seed=8))
    assert (other != together).all()
    with torch.inference_mode():
        assert torch.equal(run(start.clone(), noise), together)


class Linear(LinearLatents, DenseVAE):
    def __init__(self) -> None:
        super().__init__((1, 4, 4), latents=LATENTS, hidden=4)
        self.linear()


@pytest.mark.parametrize(("leapfrogs", "size"), [(1, 0.4), (3, 0.25)])
def test_chains_reach_the_posterior_of_a_linear_gaussian_model(leapfrogs, size):
    model, n = Linear(), 4000
    two = model.images(2)
    x = two.repeat_interleave(n, 0)
    chain = hamiltonian(
        lambda z: model.log_px_given_z(x, z) + model.log_prior(z), torch.zeros(2 * n, LATENTS).double(), rows(2 * n),
        40, size, leapfrogs,
    )  # fmt: skip
    covariance = torch.linalg.inv(model.true_precision())
    spread = (covariance.square() + torch.outer(covariance.diagonal(), covariance.diagonal())) / n
    for z, mean in zip(chain.states[-1].reshape(2, n, -1), model.true_mean(two), strict=True):
        assert ((z.mean(0) - mean).abs() < 4.5 * (covariance.diagonal() / n).sqrt()).all()
        assert ((z.T.cov() - covariance).abs() < 4.5 * spread.sqrt()).all()
