"""Posteriors over the weights of a linear-Gaussian VAE, which are Gaussians in closed form."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from posterior_training import recipe, register, run
from torch import Tensor
from torch.distributions import Normal

from oodbench.models.nn import Linear
from oodbench.models.noise import Noise
from oodbench.models.posteriors.bbb import BBB
from oodbench.models.posteriors.sghmc import SGHMC, SGLD
from oodbench.models.posteriors.swag import SWAG
from oodbench.models.vae.latent import LatentModel
from oodbench.models.vae.posteriors import Gaussian

SHAPE, PIXELS, LATENTS, SIGMA, IMAGES, BATCH = (1, 4, 4), 16, 2, 0.2, 40, 20
PRIOR = 0.04  # of weights: says as much as the images do


class LinearVAE(LatentModel):
    """x | z ~ N(W z + c, sigma^2) on x / 127.5 - 1, with encoders that are exact for some decoder.

    With that of the true decoder, whatever the weights are, ELBOs are quadratic in all of them: the posterior of W and
    c under exp(sum ELBO) is a Gaussian, and the same for every pixel. If the encoder `follows` c, ELBOs are
    log N(x; c, W W' + sigma^2) themselves, and c's posterior is that of a Gaussian's mean.
    """

    def __init__(self, shape: tuple[int, int, int] = SHAPE, follows: bool = False) -> None:
        super().__init__(shape, draws=4)
        self.latent_shape, self.follows, self.encoder_alone = (LATENTS,), follows, not follows
        generator = torch.Generator().manual_seed(0)
        w = torch.randn(PIXELS, LATENTS, generator=generator, dtype=torch.float64)
        self.w = torch.linalg.qr(w)[0] * SIGMA * torch.tensor([1.0, 1.5]).double()
        self.c = 0.1 * torch.randn(PIXELS, generator=generator, dtype=torch.float64)
        self.decoder = Linear(LATENTS, PIXELS).double()
        with torch.no_grad():
            self.decoder.weight.copy_(self.w)
            self.decoder.bias.copy_(self.c)
        z, e = (torch.randn(IMAGES, n, generator=generator, dtype=torch.float64) for n in (LATENTS, PIXELS))
        value = z @ self.w.T + self.c + SIGMA * e
        self.images = ((value + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).reshape(-1, *SHAPE)

    def value(self, x: Tensor) -> Tensor:
        return x.flatten(1).double() / 127.5 - 1

    @property
    def covariance(self) -> Tensor:
        """Of z given x."""
        return torch.linalg.inv(torch.eye(LATENTS).double() + self.w.T @ self.w / SIGMA**2)

    def posterior(self, x: Tensor, noise: Noise) -> Gaussian:
        centre = self.decoder.bias if self.follows else self.c
        mean = (self.value(x) - centre) @ self.w @ self.covariance / SIGMA**2
        return Gaussian(mean, self.covariance.diagonal().sqrt().expand_as(mean))  # W' W is diagonal, and so is this

    def log_px_given_z(self, x: Tensor, z: Tensor) -> Tensor:
        return Normal(self.decoder(z), SIGMA).log_prob(self.value(x)).sum(1)


@dataclass
class Rows:
    """The Gaussian posterior of a pixel's weights (W_j, c_j) with the true encoder and the prior N(0, s^2)."""

    model: LinearVAE
    prior_std: float

    @property
    def precision(self) -> Tensor:
        """(3, 3), of every pixel: I / s^2 + sum_n E[u u'] / sigma^2 with u = (z_n, 1)."""
        mean, spread = self._latents()
        moments = mean.T @ mean
        moments[:LATENTS, :LATENTS] += IMAGES * spread
        return torch.eye(LATENTS + 1).double() / self.prior_std**2 + moments / SIGMA**2

    @property
    def mean(self) -> Tensor:
        """(16, 3)."""
        return (
            torch.linalg.solve(self.precision, self._latents()[0].T @ self.model.value(self.model.images)).T / SIGMA**2
        )

    def _latents(self) -> tuple[Tensor, Tensor]:
        mean = self.model.posterior(self.model.images, Noise.of(torch.arange(IMAGES))).mean
        return torch.cat([mean, torch.ones(IMAGES, 1).double()], 1), self.model.covariance


def members(posterior: Any) -> Tensor:
    """(M, 16, 3): the rows of the members' decoders."""
    return torch.cat([posterior.stack("decoder.weight"), posterior.stack("decoder.bias")[..., None]], 2)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> LinearVAE:
    register(monkeypatch, "linear-vae", LinearVAE)
    return LinearVAE()


@pytest.mark.parametrize("sampler", [SGHMC, SGLD])
def test_the_moments_of_chains_converge_to_the_posterior_as_the_step_shrinks(model: LinearVAE, sampler: Any) -> None:
    """From gradients of random batches, with a random latent each."""
    exact, errors = Rows(model, PRIOR), []
    covariance = torch.linalg.inv(exact.precision)
    # The velocity of 1 / 0.3 steps makes them so much longer.
    options, shorter = ({"friction": 0.3}, 0.3) if sampler is SGHMC else ({}, 1.0)
    for rate, steps in ((0.3, 400), (0.04, 1500)):
        posterior = sampler(SHAPE, "linear-vae", members=300, part="decoder", burn_in=0.2, prior_std=PRIOR, **options)
        run(posterior, recipe(steps, shorter * rate), IMAGES, x=model.images, batch=BATCH)
        away = members(posterior) - exact.mean
        found = torch.einsum("mpi,mpj->ij", away, away) / (300 * PIXELS)
        errors.append(float((found - covariance).norm() / covariance.norm()))
        scaled = away.mean((0, 1)) / covariance.diagonal().sqrt()
        assert float(scaled.abs().max()) < 0.15
    assert errors[1] < 0.12
    assert errors[1] < errors[0] / 2


def test_a_chain_under_exact_bounds_samples_the_true_posterior_of_the_mean(model: LinearVAE) -> None:
    """p(c | x_1 ... x_N): wider along W than across, as latents that are not known take some of the evidence."""
    posterior = SGHMC(
        SHAPE, "linear-vae", {"follows": True}, members=600, part="decoder.bias", friction=0.3, burn_in=0.1
    )
    run(posterior, recipe(3000, 0.04), IMAGES, x=model.images, batch=BATCH)
    marginal = model.w @ model.w.T + SIGMA**2 * torch.eye(PIXELS).double()
    precision = IMAGES * torch.linalg.inv(marginal) + torch.eye(PIXELS).double()
    mean = torch.linalg.solve(precision, IMAGES * torch.linalg.solve(marginal, model.value(model.images).mean(0)))
    drawn, covariance = posterior.stack("decoder.bias"), torch.linalg.inv(precision)
    along = torch.linalg.qr(model.w)[0]
    across = torch.linalg.svd(model.w)[0][:, LATENTS:]
    for axes in (along, across):
        expected = (axes.T @ covariance @ axes).diagonal()
        found = ((drawn - mean) @ axes).square().mean(0)
        assert float((found / expected).mean()) == pytest.approx(1, abs=0.3)
    assert float((along.T @ covariance @ along).trace() / LATENTS) > 1.8 * float(covariance.trace() / PIXELS)


def test_bayes_by_backprop_reaches_the_best_mean_field_solution(model: LinearVAE) -> None:
    """Of the Gaussians with independent weights that with the posterior's mean and 1 / its precision's diagonal."""
    exact = Rows(model, PRIOR)
    posterior = BBB(SHAPE, "linear-vae", members=400, part="decoder", prior_std=PRIOR, start_std=0.005)
    run(posterior, recipe(1000, 5e-4), IMAGES, x=model.images, batch=BATCH)
    expected = exact.precision.diagonal().rsqrt()
    scales = posterior.scales()
    found = torch.cat([scales["decoder.weight"], scales["decoder.bias"][:, None]], 1).detach()
    torch.testing.assert_close(found, expected.expand_as(found), rtol=0.15, atol=0)
    torch.testing.assert_close(found.mean(0), expected, rtol=0.04, atol=0)
    means = torch.cat([posterior.random["decoder.weight"], posterior.random["decoder.bias"][:, None]], 1).detach()
    assert float(((means - exact.mean) / expected).abs().max()) < 0.5
    torch.testing.assert_close(members(posterior).std(0).mean(0), expected, rtol=0.05, atol=0)


def test_swags_members_have_the_moments_of_the_trajectory(model: LinearVAE) -> None:
    """Half its variances, and half the covariance of its last deviations from the running mean."""
    rank, every, steps, count = 8, 5, 200, 6000
    posterior = SWAG(
        SHAPE, "linear-vae", members=count, part="decoder", rank=rank, every=every, burn_in=0.25, momentum=0.5
    )
    trajectory: list[Tensor] = []
    collect = posterior.collect_after

    def watch(step: int, plan: Any, optimizer: torch.optim.Optimizer) -> None:
        if step > 50 and step % every == 0:
            weights = posterior.random
            trajectory.append(torch.cat([weights["decoder.weight"], weights["decoder.bias"][:, None]], 1).detach())
        collect(step, plan, optimizer)

    posterior.collect_after = watch  # type: ignore[method-assign]
    run(posterior, recipe(steps, 0.2), IMAGES, x=model.images, batch=BATCH)
    points = torch.stack(trajectory).flatten(1)
    assert len(points) == 30
    running = points.cumsum(0) / torch.arange(1, 31)[:, None]
    d = (points - running)[-rank:]
    expected = 0.5 * torch.diag(points.var(0, correction=0)) + d.T @ d / (2 * (rank - 1))
    drawn, unit = members(posterior).flatten(1), expected.diagonal().sqrt()
    assert float(((drawn.mean(0) - points.mean(0)) / unit).abs().max()) < 0.06
    assert float(((torch.cov(drawn.T) - expected) / unit.outer(unit)).abs().max()) < 0.08
