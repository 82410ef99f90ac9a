"""The Langevin autoencoder: its chain on weights, what training does with it, and the Gaussian that evaluation fits."""

import pytest
import torch
from linear_latents import LATENTS, SHAPE, SIGMA, LinearLatents
from tiny_models import noise_of, perturb, smooth_images, some_images, tiny
from torch import Tensor

from oodbench.models.noise import Noise
from oodbench.models.vae import lae as room
from oodbench.models.vae.lae import LAE, PRIOR, SIZE

FEATURES = 8


class LinearLAE(LinearLatents, LAE):
    """With a decoder whose posterior is known, and features that are more than the images of a batch."""

    def __init__(self, **config: object) -> None:
        super().__init__(SHAPE, latents=LATENTS, hidden=4, features=FEATURES, **config)
        self.linear()

    def expand(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        slope = (self.value(x) - z @ self.w.T - self.c) @ self.w / SIGMA**2 - z
        return slope, self.true_precision().expand(len(x), -1, -1)


def features(n: int) -> Tensor:
    return Noise.of(torch.arange(n), seed=2).normal((FEATURES,), "features").double()


def whitening(f: Tensor) -> Tensor:
    """P = (F' F + c I)^-1; c: the mean variance of the features, summed over the batch, and 1/1000 of their squares."""
    c = (f.var(0, correction=0).mean() + 1e-3 * f.square().mean()) * len(f)
    return torch.linalg.inv(f.T @ f + c * torch.eye(FEATURES).double())


def test_a_step_on_weights_is_preconditioned_langevin_dynamics():
    """W + eta d/dW sum_i log p(x_i, W f_i) P + a normal matrix whose rows have the covariance 2 eta P."""
    model, f, eta = LinearLAE(eta=0.01, langevin_steps=1), features(5), 0.01
    x = model.images(5)
    weights = (0.3 * torch.eye(LATENTS, FEATURES).double()).requires_grad_()
    model.last.data.copy_(weights)
    (gradient,) = torch.autograd.grad(model.log_joint(x, f @ weights.T).sum(), weights)
    p = whitening(f)
    jumps = []
    for index in range(1500):
        noise = Noise.of(torch.arange(index, index + 5), seed=1)
        jumps.append(model.amortised(x, f, noise)[0][0] - weights.detach() - eta * gradient @ p)
    rows = torch.stack(jumps).reshape(-1, FEATURES)
    covariance, n = 2 * eta * p, len(rows)
    assert (rows.mean(0).abs() < 4.5 * (covariance.diagonal() / n).sqrt()).all()
    spread = ((covariance.square() + torch.outer(covariance.diagonal(), covariance.diagonal())) / n).sqrt()
    assert ((rows.T.cov() - covariance).abs() < 4.5 * spread).all()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_no_direction_of_the_latents_moves_faster_than_eta_whatever_features_have_in_common(scale):
    f = scale * (features(40) + 30)
    a = f @ whitening(f) @ f.T
    eigenvalues = torch.linalg.eigvalsh(a)
    assert float(eigenvalues.max()) <= 1
    assert float(eigenvalues.max()) > 0.9
    assert float(a.trace()) > 0.3 * FEATURES  # and the others move too
    model, noise = LinearLAE(eta=1e-12, langevin_steps=1), noise_of(40)
    x = model.images(40)
    model.last.data.zero_()
    z = torch.zeros(40, LATENTS).double().requires_grad_()
    (gradient,) = torch.autograd.grad(model.log_joint(x, z).sum(), z)
    at_rest = LinearLAE(eta=1e-12, langevin_steps=1)
    at_rest.last.data.zero_()
    at_rest.log_px_given_z = lambda x, z: 0 * z.sum(1)  # its prior's gradient is 0 there too: noise alone
    drift = (model.amortised(x, f, noise)[0][0] - at_rest.amortised(x, f, noise)[0][0]) @ f.T
    torch.testing.assert_close(drift.T / 1e-12, a @ gradient, rtol=1e-4, atol=1e-4 * float(gradient.abs().max()))


def test_the_chain_on_weights_samples_the_posteriors_of_a_whole_batch():
    """Taniguchi et al. 2022: with independent features, z_i = W f_i has p(z_i | x_i), image by image."""
    model, f = LinearLAE(eta=0.12, langevin_steps=3000, corrected=True), features(3)
    x = model.images(3)
    model.last.data.zero_()
    states, rate = model.amortised(x, f, noise_of(3))
    assert 0.5 < float(rate) < 0.99
    z = f @ states[200:].transpose(1, 2)  # (steps, images, latents)
    covariance = torch.linalg.inv(model.true_precision())
    std = covariance.diagonal().sqrt()
    assert float((model.true_mean(x) / std).abs().max()) > 2  # so that the prior's would not do
    assert float(((z.mean(0) - model.true_mean(x)) / std).abs().max()) < 0.3
    for i in range(3):
        correlation = z[:, i].T.cov() / torch.outer(std, std)
        expected = covariance / torch.outer(std, std)
        torch.testing.assert_close(correlation, expected, rtol=0, atol=0.3)
        assert float((expected - torch.eye(LATENTS).double()).abs().max()) > 0.5
    between = ((z[:, 0] - z[:, 0].mean(0)) * (z[:, 1] - z[:, 1].mean(0))).mean(0) / std.square()
    assert float(between.abs().max()) < 0.3


def test_the_losss_gradient_is_that_of_log_p_at_the_latents_that_the_chain_reaches():
    """Decoder and features by d/d theta -log p(x, W_T f(x)), and W by d/d W_T of the same; W_T is a constant of it."""
    model, x, noise = tiny("lae", double=True), smooth_images(6), noise_of(6)
    with torch.no_grad():
        reached = model.amortised(x, model.encoder(model.values(x)), noise)[0][-1]
    loss = model.loss(x, noise)
    gradients = dict(zip(model.state_dict(), torch.autograd.grad(loss.sum(), list(model.parameters())), strict=True))
    end = reached.clone().requires_grad_()
    expected = -model.log_joint(x, model.encoder(model.values(x)) @ end.T)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    own = [(name, p) for name, p in model.named_parameters() if name != "last"]
    direct = torch.autograd.grad(expected.sum(), [end, *(p for _, p in own)])
    for name, gradient in zip(["last", *(name for name, _ in own)], direct, strict=True):
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-9, atol=1e-9)
    assert float((reached - model.last).detach().abs().max()) > 1e-3


def test_the_last_layer_goes_where_the_chain_went_and_not_where_an_optimiser_would():
    model, x, noise = tiny("lae", double=True), smooth_images(6), noise_of(6)
    before = model.last.detach().clone()
    with torch.no_grad():
        reached = model.amortised(x, model.encoder(model.values(x)), noise)[0][-1]
    model.loss(x, noise).mean().backward()
    assert torch.equal(model.last, before)  # the loss itself moves nothing
    torch.optim.SGD(model.parameters(), 1.0).step()
    model.after_step()
    assert torch.equal(model.last, reached)
    with torch.no_grad():
        model.last.copy_(before)
    model.after_step()  # no loss, no step
    assert torch.equal(model.last, before)


@torch.no_grad()
def test_the_chain_reaches_the_posteriors_moments():
    """Its covariance is wider by 1 / (1 - s / 2), as unadjusted steps of size s are (Roberts & Tweedie 1996)."""
    model, n = LinearLAE(chain_steps=4000), 4000
    x = model.images(5)
    u, origin, factor = model.explore(x, noise_of(5))
    z = origin + torch.linalg.solve_triangular(factor.mT, u[..., None], upper=True)[..., 0]
    covariance = torch.linalg.inv(model.true_precision()) / (1 - SIZE / 2)
    independent = n * SIZE / (2 - SIZE)  # states of the chain, whose neighbours correlate by 1 - s
    error = (covariance.diagonal() / independent).sqrt()
    assert ((z.mean(0) - model.true_mean(x)).abs() < 4.5 * error).all()
    assert float(((model.encode(x)[0] - model.true_mean(x)) / error).abs().max()) > 20  # where it starts
    spread = (covariance.square() + torch.outer(covariance.diagonal(), covariance.diagonal())) / independent
    for i in range(5):
        assert ((z[:, i].T.cov() - covariance).abs() < 4.5 * spread.sqrt()).all()
    correlation = covariance / torch.outer(covariance.diagonal(), covariance.diagonal()).sqrt()
    assert float((correlation - torch.eye(LATENTS).double()).abs().max()) > 0.5


@torch.no_grad()
def test_the_fitted_gaussian_has_the_chains_mean_and_all_its_covariances():
    model = LinearLAE(chain_steps=50)
    x = model.images(7)
    u, origin, factor = model.explore(x, noise_of(7))
    posterior = model.posterior(x, noise_of(7))
    z = origin + torch.linalg.solve_triangular(factor.mT, u[..., None], upper=True)[..., 0]
    torch.testing.assert_close(posterior.mean, z.mean(0), rtol=1e-9, atol=1e-9)
    curvature = torch.linalg.inv(model.true_precision())
    for i in range(7):  # LATENTS more states, of the curvature's covariance
        expected = (50 * z[:, i].T.cov(correction=0) + PRIOR * LATENTS * curvature) / (50 + PRIOR * LATENTS)
        torch.testing.assert_close(posterior.upper[i] @ posterior.upper[i].T, expected, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_a_chain_too_short_to_span_the_latents_still_gives_a_proper_gaussian():
    model = LinearLAE(chain_steps=2)
    posterior = model.posterior(model.images(20), noise_of(20))
    assert posterior.upper.isfinite().all()
    least = PRIOR * LATENTS / (2 + PRIOR * LATENTS)  # of the curvature's variances, along every direction
    within = model.true_precision() @ posterior.upper @ posterior.upper.mT
    assert float(torch.linalg.eigvals(within).real.min()) >= least * (1 - 1e-9)


@torch.no_grad()
def test_the_estimate_is_a_lower_bound_that_converges_to_the_exact_likelihood():
    """Over a thousand images, so that the mean gap of 2 and of 16 draws is many standard errors from 0."""
    x = LinearLAE().images(1000)
    exact, gaps = LinearLAE().exact(x), []
    for draws in (2, 16):
        columns = LinearLAE(draws=draws).statistics(x, noise_of(1000))
        for column in ("elbo", "log_px"):
            gap = exact - columns[column]
            gaps.append(float(gap.mean()))
            assert gaps[-1] > -4.5 * float(gap.std()) / 1000**0.5
        assert 0.03 < gaps[-2] < 0.2  # the divergence KL(q || p): in closed form but for the draws' reconstruction
        assert gaps[-1] < gaps[-2]
    assert gaps[1] > 0.01
    assert gaps[3] < 0.3 * gaps[1]
    many = LinearLAE(draws=20_000).statistics(x[:10], noise_of(10))
    torch.testing.assert_close(many["log_px"], exact[:10], rtol=0, atol=0.02)
    assert float(many["log_px_error"].max()) < 0.01  # no heavy tails: q is nowhere much narrower than the posterior


@torch.no_grad()
def test_an_image_to_which_nothing_fits_has_one_score_in_any_company():
    """In float32, as evaluations run: there chains wander, and what rounding changes grows with every step."""
    model = LAE((1, 8, 8), latents=6, hidden=16, features=8, draws=4)
    known = smooth_images(60, (1, 8, 8))
    model.calibrate(known, known)
    perturb(model.decoder, 0.3)
    x = torch.cat([some_images(4, (1, 8, 8)), torch.full((2, 1, 8, 8), 255, dtype=torch.uint8)])
    noise = noise_of(6)
    together = model.log_prob(x, noise)
    alone = [model.log_prob(x[i : i + 1], noise.rows(slice(i, i + 1))) for i in range(6)]
    torch.testing.assert_close(torch.cat(alone), together, rtol=2e-6, atol=1e-4)


def test_how_many_images_are_fitted_at_a_time_changes_no_number(monkeypatch):
    model, x = tiny("lae", double=True), smooth_images(5)
    with torch.no_grad():
        expected = model.statistics(x, noise_of(5))
        monkeypatch.setattr(room, "_IMAGES", 2)
        for column, values in model.statistics(x, noise_of(5)).items():
            torch.testing.assert_close(values, expected[column], rtol=1e-9, atol=1e-9)


def test_what_the_proposal_is_made_of_is_no_draws_noise(monkeypatch):
    model, x, streams = tiny("lae"), smooth_images(3), set()
    for kind in ("normal", "uniform"):
        drawn = getattr(Noise, kind)
        monkeypatch.setattr(
            Noise, kind, lambda noise, shape, stream, drawn=drawn: (streams.add(stream), drawn(noise, shape, stream))[1]
        )
    posterior = model.posterior(x, noise_of(3))
    used = set(streams)
    streams.clear()
    posterior.draw(noise_of(3), 1)
    assert used
    assert streams
    assert not used & streams


def test_training_starts_at_the_principal_components_that_the_decoder_starts_at():
    model = LAE((1, 8, 8), latents=5, hidden=4, features=12).double()
    x = smooth_images(60, (1, 8, 8))
    model.calibrate(x, x)
    value = (x.double() / 127.5 - 1).flatten(1)
    with torch.no_grad():
        z, spread = model.encode(x)
        assert torch.equal(spread, torch.zeros_like(z))
        # A latent's mean square and posterior variance make 1 (Tipping & Bishop 1999).
        variances = torch.linalg.eigvalsh((value - value.mean(0)).T @ (value - value.mean(0)) / 60).flip(0)
        torch.testing.assert_close(z.square().mean(0), 1 - variances[5:].mean() / variances[:5])
        mean = model.mean_image(z).flatten(1)
    left = float((value - mean).square().sum()) / 60
    assert float(variances[5:].sum()) <= left < float(variances[5:].sum()) + 5 * float(variances[5:].mean())
    assert bool(model.loss(x, noise_of(60)).isfinite().all())
