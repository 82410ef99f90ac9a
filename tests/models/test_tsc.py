"""Transport score climbing: its flow, its density, and that training fits q to the posterior from outside."""

import math

import pytest
import torch
from linear_latents import LATENTS, SHAPE, LinearLatents
from tiny_models import noise_of, perturb, smooth_images, tiny
from torch import Tensor, nn

from oodbench.models.noise import Noise
from oodbench.models.vae.tsc import TSCVAE, Transport, Transported


def transport(numbers: int, couplings: int) -> Transport:
    torch.manual_seed(0)
    flow = Transport(numbers, couplings, 6).double()
    perturb(flow, 0.8)
    return flow


def some(n: int, numbers: int, stream: str = "z") -> Tensor:
    return noise_of(n).normal((numbers,), stream).double()


@pytest.mark.parametrize(("numbers", "couplings"), [(2, 1), (2, 2), (5, 2), (4, 3), (1, 0)])
def test_the_flows_inverse_and_volume_are_its_own(numbers, couplings):
    flow, z = transport(numbers, couplings), some(6, numbers)
    y, volume = flow(z)
    torch.testing.assert_close(flow.inverse(y), z, rtol=0, atol=1e-12)
    for i in range(6):
        jacobian = torch.autograd.functional.jacobian(lambda t: flow(t[None])[0][0], z[i])
        assert float(volume[i].detach()) == pytest.approx(float(torch.linalg.slogdet(jacobian)[1]), abs=1e-10)
    if couplings > 1:
        assert (flow(z)[0] != z).all()
    assert torch.equal(Transport(numbers, couplings, 6).double()(z)[0], z)  # untrained, it is the identity


def test_the_posteriors_density_is_that_of_its_draws_and_integrates_to_one():
    flow = transport(2, 2)
    posterior = Transported(some(1, 2, "mean"), some(1, 2, "std").exp(), flow)
    noise = noise_of(1).expand(0, 500)
    z, log_q = posterior.draw(noise, 500)
    repeated = Transported(posterior.centre.expand(500, 2), posterior.std.expand(500, 2), flow)
    torch.testing.assert_close(repeated.log_prob(z), log_q, rtol=0, atol=1e-10)
    low, high = z.min(0).values, z.max(0).values
    margin = 1.5 * (high - low)
    axes = [torch.linspace(float(a), float(b), 500).double() for a, b in zip(low - margin, high + margin, strict=True)]
    grid = torch.cartesian_prod(*axes)
    density = Transported(posterior.centre.expand(len(grid), 2), posterior.std.expand(len(grid), 2), flow)
    cell = float((axes[0][1] - axes[0][0]) * (axes[1][1] - axes[1][0]))
    with torch.no_grad():
        assert float(density.log_prob(grid).exp().sum()) * cell == pytest.approx(1, abs=5e-3)


class LinearTSC(LinearLatents, TSCVAE):
    """With a decoder whose posterior is known, and one q for all images."""

    def __init__(self, **config: object) -> None:
        super().__init__(SHAPE, latents=LATENTS, hidden=4, **config)
        self.linear()
        self.q_mean = nn.Parameter(torch.full((LATENTS,), 0.3).double())
        self.q_log_std = nn.Parameter(torch.full((LATENTS,), -1.0).double())

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.q_mean.expand(len(x), -1), self.q_log_std.exp().expand(len(x), -1)


def test_chains_in_the_warped_space_reach_the_posterior_whatever_q_is():
    n = 2000
    model = LinearTSC(chain_steps=40, leapfrogs=2, step_size=0.4)
    perturb(model.transport, 0.5)
    x = model.images(1)
    z = model.climb(x.expand(n, -1, -1, -1), model.posterior(x.expand(n, -1, -1, -1), noise_of(n)), noise_of(n))
    covariance = torch.linalg.inv(model.true_precision())
    spread = (covariance.square() + torch.outer(covariance.diagonal(), covariance.diagonal())) / n
    assert ((z.mean(0) - model.true_mean(x)[0]).abs() < 4.5 * (covariance.diagonal() / n).sqrt()).all()
    assert ((z.T.cov() - covariance).abs() < 4.5 * spread.sqrt()).all()
    start = model.posterior(x, noise_of(1))
    assert float(((start.mean - model.true_mean(x)) / covariance.diagonal().sqrt()).abs().max()) > 1


def test_training_minimises_the_forward_divergence():
    """A factorised Gaussian q takes the posterior's marginal variances; the reverse divergence gives 1 / precision."""
    model = LinearTSC(couplings=0, chain_steps=6, leapfrogs=2, step_size=0.4, variational=0.0)
    x = model.images(1).expand(200, -1, -1, -1)
    optimiser = torch.optim.Adam([model.q_mean, model.q_log_std], 0.05)
    late = []
    for step in range(260):
        for group in optimiser.param_groups:
            group["lr"] = 0.05 if step < 130 else 0.01
        optimiser.zero_grad()
        model.loss(x, Noise.of(torch.arange(200), seed=step)).mean().backward()
        optimiser.step()
        model.after_step()
        if step >= 180:
            late.append((model.q_mean.detach().clone(), model.q_log_std.detach().exp()))
    mean, std = (torch.stack(values).mean(0) for values in zip(*late, strict=True))
    marginal = torch.linalg.inv(model.true_precision()).diagonal().sqrt()
    conditional = model.true_precision().diagonal().rsqrt()
    assert float((marginal / conditional).max()) > 1.18
    torch.testing.assert_close(std, marginal, rtol=0.05, atol=0)
    assert float(((mean - model.true_mean(x[:1])[0]) / marginal).abs().max()) < 0.1


def test_the_losss_gradient_is_the_score_of_q_and_of_the_decoder_where_the_chain_ends():
    """Zhang et al. 2023: the means of both scores over p(z | x), by one z that is a constant of them."""
    model, x, noise = tiny("tsc-vae", double=True), smooth_images(6), noise_of(6)
    loss = model.loss(x, noise)
    gradients = torch.autograd.grad(loss.sum(), list(model.parameters()))
    posterior = model.posterior(x, noise)
    z = model.climb(x, posterior, noise)
    start = noise.normal(model.latent_shape, "latent").double()
    assert float((z - posterior.warp(start)[0]).abs().max()) > 1e-3
    log_p, log_q = model.log_px_given_z(x, z), posterior.log_prob(z)
    torch.testing.assert_close(loss, -log_p - model.log_prior(z) - log_q, rtol=1e-12, atol=0)
    for (name, parameter), gradient in zip(model.named_parameters(), gradients, strict=True):
        score = log_p if name.startswith("decoder") else log_q
        (expected,) = torch.autograd.grad(-score.sum(), parameter, retain_graph=True)
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-9)


def test_the_step_grows_while_enough_is_accepted_and_shrinks_while_not():
    model = LinearTSC(step_size=0.02, leapfrogs=2)
    x = model.images(20)
    model.after_step()
    assert float(model.step_size) == pytest.approx(0.02)  # no chain has run
    model.loss(x, noise_of(20))
    assert float(model.step_size) == pytest.approx(0.02)  # the loss itself moves nothing
    model.after_step()
    assert float(model.step_size) == pytest.approx(0.02 * 1.03)
    model.w *= 100  # with a posterior much narrower, nothing is accepted
    model.loss(x, noise_of(20))
    model.after_step()
    assert float(model.step_size) == pytest.approx(0.02 * 1.03 * 0.97)
    easy = LinearTSC(step_size=1.0, leapfrogs=1)
    easy.log_px_given_z = lambda x, z: 0 * z.sum(1)
    easy.q_mean.data.zero_()
    easy.q_log_std.data.zero_()
    easy.loss(x, noise_of(20))
    easy.after_step()
    assert float(easy.step_size) == 1  # and no larger


def test_the_estimate_is_a_bound_that_converges():
    model = LinearTSC()
    x = model.images(8)
    with torch.no_grad():
        model.q_mean.copy_(model.true_mean(x).mean(0))
        model.q_log_std.copy_(0.5 * torch.log(model.true_mean(x).var(0) + 0.2))
        few = model.statistics(x, noise_of(8))["log_px"]
        model.draws = 20_000
        many = model.statistics(x, noise_of(8))["log_px"]
    assert float((model.exact(x) - few).mean()) > 0.1
    torch.testing.assert_close(many, model.exact(x), rtol=0, atol=0.1)
    assert math.isfinite(float(few.sum()))
