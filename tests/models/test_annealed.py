"""Annealed importance sampling against closed forms, quadrature, and itself run backwards."""

import math
from itertools import pairwise

import pytest
import torch
from test_vae import LATENTS, SIGMA, LinearGaussian, images, mean_and_error, repeated
from tiny_models import noise_of, smooth_images, tiny
from torch import Tensor

from oodbench.errors import OodbenchError
from oodbench.models.noise import Noise
from oodbench.models.vae import latent as room
from oodbench.models.vae.annealed import Annealing, annealed, annealed_backwards

STARTS = ("prior", "posterior")


def posterior_draws(model: LinearGaussian, x: Tensor, each: int) -> Tensor:
    """Exact ones, (B * each, latents, 1, 1)."""
    precision = torch.eye(LATENTS, dtype=torch.float64) + model.w.T @ model.w / SIGMA**2
    mean = (model.value(x) - model.c) @ model.gain.T
    e = torch.randn(len(x), each, LATENTS, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    z = mean[:, None] + torch.linalg.solve_triangular(torch.linalg.cholesky(precision).T, e.mT, upper=True).mT
    return z.reshape(-1, LATENTS, 1, 1)


@pytest.mark.parametrize("start", STARTS)
def test_the_linear_gaussian_models_likelihood(start: str) -> None:
    model = LinearGaussian(draws=64)
    x = images(model, 4)
    estimate, error = annealed(model, x, noise_of(4), Annealing(chains=64, temperatures=60, leapfrogs=3, start=start))
    assert float(error.max()) < 0.15
    assert ((estimate - model.exact(x)).abs() < 4.5 * error + 1e-3).all()


@pytest.mark.parametrize("start", STARTS)
def test_weights_are_unbiased_however_crude_the_chains_are(start: str) -> None:
    """Ten temperatures, one long leapfrog: the mean weight is P(x) all the same, either way round."""
    model = LinearGaussian(draws=2)
    n = 4000
    x, noise = repeated(images(model, 2)[1:], n // 2)
    how = Annealing(chains=2, temperatures=10, leapfrogs=1, step=0.9, start=start)
    exact = model.exact(x[:1])
    forward = (annealed(model, x, noise, how)[0] - exact).exp()  # of two weights the mean
    backward = (exact - annealed_backwards(model, x, posterior_draws(model, x, 2), noise, how)[0]).exp()
    for weights in (forward, backward):
        mean, error = mean_and_error(weights)
        assert error < 0.25
        assert mean == pytest.approx(1, abs=4.5 * error)
    assert float(forward.log().mean()) < -0.01  # and their logarithms bound it, from below
    assert float(backward.log().mean()) < -0.01  # and from above


def test_forwards_and_backwards_close_in_on_the_likelihood() -> None:
    model = LinearGaussian(draws=2)
    x = images(model, 60)
    exact, gaps = model.exact(x), []
    for temperatures in (2, 8, 40):
        how = Annealing(chains=2, temperatures=temperatures, leapfrogs=2)
        below = annealed(model, x, noise_of(60), how)[0].mean()
        above = annealed_backwards(model, x, posterior_draws(model, x, 2), noise_of(60), how)[0].mean()
        assert below < exact.mean() < above
        gaps.append(float(above - below))
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < gaps[0] / 10


@pytest.mark.parametrize("observation", ["bernoulli", "logistic"])
@pytest.mark.parametrize("start", STARTS)
def test_a_real_decoders_likelihood_is_the_integral_over_its_latents(start: str, observation: str) -> None:
    model = tiny("vae-mlp", (1, 4, 4), latents=2, observation=observation, double=True)
    x = smooth_images(3, (1, 4, 4))
    line = torch.linspace(-7, 7, 281, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line)
    with torch.no_grad():
        logs = [model.log_prior(grid) + model.log_px_given_z(one.expand(len(grid), -1, -1, -1), grid) for one in x]
    expected = torch.stack(logs).logsumexp(1) + 2 * math.log(14 / 280)
    how = Annealing(chains=32, temperatures=40, leapfrogs=3, start=start)
    with torch.inference_mode():  # as the engine evaluates
        estimate, error = annealed(model, x, noise_of(3), how)
    assert float(error.max()) < 0.3
    assert ((estimate - expected).abs() < 4.5 * error + 0.01).all()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_image_has_one_estimate_in_any_company_and_any_part(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, noise = tiny("vae", (1, 8, 8), double=True), smooth_images(4, (1, 8, 8)), noise_of(4)
    how = Annealing(chains=5, temperatures=4, leapfrogs=2)
    together = annealed(model, x, noise, how)
    row = slice(2, 3)
    for whole, alone in zip(together, annealed(model, x[row], noise.rows(row), how), strict=True):
        torch.testing.assert_close(alone, whole[row], rtol=1e-9, atol=1e-9)
    monkeypatch.setattr(room, "DECODER_ROWS", 8)
    for whole, part in zip(together, annealed(model, x, noise, how), strict=True):
        torch.testing.assert_close(part, whole, rtol=1e-9, atol=1e-9)
    assert not torch.equal(annealed(model, x, Noise.of(noise.index, seed=9), how)[0], together[0])


def test_the_schedule_is_closest_at_both_ends() -> None:
    values = Annealing(temperatures=10).schedule()
    steps = [b - a for a, b in pairwise(values)]
    assert (values[0], values[-1], len(values)) == (0.0, 1.0, 11)
    assert steps == pytest.approx(steps[::-1])
    assert steps[:5] == sorted(steps[:5])
    assert Annealing(temperatures=1).schedule() == [0.0, 1.0]


@pytest.mark.parametrize("name", ["svae", "vqvae-bridge"])
def test_latents_that_no_trajectory_follows_are_refused(name: str) -> None:
    """Chains would leave the sphere, or stand still, and give a number all the same."""
    with pytest.raises(OodbenchError, match="cannot be annealed"):
        annealed(tiny(name), smooth_images(2), noise_of(2))


@pytest.mark.parametrize(
    "wrong", [{"chains": 1}, {"temperatures": 0}, {"leapfrogs": 0}, {"step": 0.0}, {"start": "end"}]
)
def test_annealing_that_cannot_run_is_refused(wrong: dict) -> None:
    with pytest.raises(OodbenchError, match=r"Annealing takes|Chains start"):
        Annealing(**wrong)
