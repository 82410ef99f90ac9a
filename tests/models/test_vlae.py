"""The Laplace posterior: exact where the decoder is linear and Gaussian, torch's derivatives where it is not."""

import math

import pytest
import torch
from tiny_models import noise_of, perturb, smooth_images, some_images, tiny
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from oodbench.errors import OodbenchError
from oodbench.models.likelihoods import logistic_expansion, logistic_mixture_channels, logistic_mixture_log_prob
from oodbench.models.vae import vlae as room
from oodbench.models.vae.laplace import FullGaussian, cholesky, linearised
from oodbench.models.vae.vlae import VLAE

SHAPE = (1, 4, 4)
PIXELS, LATENTS = 16, 3
SIGMA = 0.4


class LinearGaussian(VLAE):
    """x | z ~ N(W z + c, sigma^2) on x / 127.5 - 1, whose posterior is a Gaussian with covariances."""

    def __init__(self, updates: int, step: float) -> None:
        super().__init__(SHAPE, latents=LATENTS, hidden=4, draws=7, updates=updates, step=step)
        generator = torch.Generator().manual_seed(0)
        self.w = 0.4 * torch.randn(PIXELS, LATENTS, generator=generator, dtype=torch.float64)
        self.c = 0.2 * torch.randn(PIXELS, generator=generator, dtype=torch.float64)
        self.radius = math.inf
        self.double()

    def residual(self, x: Tensor, z: Tensor) -> Tensor:
        return self.values(x).flatten(1) - z @ self.w.T - self.c

    def log_px_given_z(self, x: Tensor, z: Tensor) -> Tensor:
        each = x.repeat_interleave(len(z) // len(x), 0)
        return Normal(torch.zeros(()).double(), SIGMA).log_prob(self.residual(each, z)).sum(1)

    def expand(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        precision = self.w.T @ self.w / SIGMA**2 + torch.eye(LATENTS).double()
        return self.residual(x, z) @ self.w / SIGMA**2 - z, precision.expand(len(x), -1, -1)

    def exact(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log p(x), and the posterior's mean and covariance, by conditioning the joint Gaussian."""
        value = self.values(x).flatten(1) - self.c
        evidence = self.w @ self.w.T + SIGMA**2 * torch.eye(PIXELS).double()
        gain = self.w.T @ evidence.inverse()
        log_px = MultivariateNormal(torch.zeros(PIXELS).double(), evidence).log_prob(value)
        return log_px, value @ gain.T, torch.eye(LATENTS).double() - gain @ self.w


@torch.no_grad()
def test_one_full_step_from_anywhere_is_the_exact_posterior_of_a_linear_gaussian_decoder():
    model, x = LinearGaussian(updates=1, step=1.0), some_images(5, SHAPE)
    log_px, mean, covariance = model.exact(x)
    posterior = model.posterior(x, noise_of(5))
    torch.testing.assert_close(posterior.mean, mean, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(posterior.upper @ posterior.upper.mT, covariance.expand(5, -1, -1))
    torch.testing.assert_close(posterior.std, covariance.diagonal().sqrt().expand(5, -1))
    columns = model.statistics(x, noise_of(5))
    torch.testing.assert_close(columns["log_px"], log_px, rtol=1e-10, atol=0)
    assert float(columns["log_px_error"].max()) < 1e-6  # every weight is p(x)
    assert float((columns["elbo"] - log_px).abs().max()) < 10  # of seven draws; its mean is p(x) too
    for value, same in zip(model.encode(x), (posterior.mean, posterior.std), strict=True):
        assert torch.equal(value, same)


@torch.no_grad()
@pytest.mark.parametrize("updates", [1, 4])
def test_half_steps_halve_the_way_to_the_mode(updates):
    model, x = LinearGaussian(updates, step=0.5), some_images(5, SHAPE)
    start, mode = model.encoder(model.values(x)), model.exact(x)[1]
    reached = model.posterior(x, noise_of(5)).mean
    torch.testing.assert_close(reached - mode, 0.5**updates * (start - mode), rtol=1e-9, atol=1e-12)


@torch.no_grad()
def test_no_step_is_longer_than_the_priors_radius_and_each_keeps_its_direction():
    model, x = LinearGaussian(updates=1, step=1.0), some_images(5, SHAPE)
    start = model.encoder(model.values(x))
    free = model.posterior(x, noise_of(5)).mean - start
    model.radius = float(free.norm(dim=1).median())
    held, lengths = model.posterior(x, noise_of(5)).mean - start, free.norm(dim=1)
    torch.testing.assert_close(held.norm(dim=1), lengths.clamp_max(model.radius))
    torch.testing.assert_close(held / held.norm(dim=1, keepdim=True), free / lengths[:, None])
    assert VLAE((1, 4, 4), latents=9).radius == 3


@torch.no_grad()
def test_the_full_gaussian_is_torchs():
    generator = torch.Generator().manual_seed(1)
    root, mean = torch.randn(6, 5, 5, generator=generator).double(), torch.randn(6, 5, generator=generator).double()
    precision = root @ root.mT + 0.3 * torch.eye(5)
    posterior = FullGaussian(mean, cholesky(precision))
    torchs = MultivariateNormal(mean, precision_matrix=precision)
    z, log_q = posterior.draw(noise_of(6).expand(0, 4000), 4000)
    z, log_q = z.reshape(6, 4000, 5), log_q.reshape(6, 4000)
    torch.testing.assert_close(log_q.T, torchs.log_prob(z.transpose(0, 1)), rtol=1e-9, atol=1e-9)
    white = (z - mean[:, None]) @ cholesky(precision)
    torch.testing.assert_close(white.mean(1), torch.zeros(6, 5).double(), rtol=0, atol=0.08)
    torch.testing.assert_close(white.mT @ white / 4000, torch.eye(5).double().expand(6, -1, -1), rtol=0, atol=0.12)
    prior = MultivariateNormal(torch.zeros(5).double(), torch.eye(5).double())
    torch.testing.assert_close(posterior.kl().sum(1), kl_divergence(torchs, prior), rtol=1e-10, atol=1e-10)
    # The last latent's summand is its own divergence; the first one's is that given all others.
    last = kl_divergence(Normal(mean[:, -1], posterior.std[:, -1]), Normal(0.0, 1.0))
    torch.testing.assert_close(posterior.kl()[:, -1], last)
    assert float(posterior.kl().min()) >= 0


@pytest.mark.parametrize("channels", [1, 3])
def test_slopes_and_curvatures_are_torchs_derivatives(channels):
    x = some_images(3, (channels, 4, 4))
    x[:, :, 1] = torch.tensor([0, 255, 0, 254], dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    parameters = torch.randn(3, logistic_mixture_channels(channels, 1), 4, 4, generator=generator).double()
    scales = slice(1 + channels, 1 + 2 * channels)
    parameters[:, scales] -= 2
    parameters[0, scales] = -8  # held at its least
    parameters[2, scales, 3, 3] = 60  # so wide that one level is nothing
    parameters[1:, 1, 1, :2] = torch.tensor([-1.05, 1.05]).double()  # past the ends
    slope, curvature = logistic_expansion(x, parameters)

    def log_prob(p: Tensor) -> Tensor:
        return logistic_mixture_log_prob(x, p, 1).sum()

    at = slice(1, 1 + 2 * channels)
    parameters.requires_grad_(True)
    torch.testing.assert_close(slope, torch.autograd.grad(log_prob(parameters), parameters)[0][:, at].detach())
    size = parameters[0].numel()
    hessian = torch.autograd.functional.hessian(log_prob, parameters).reshape(3, size, 3, size)
    own = torch.stack([hessian[i, :, i].diagonal() for i in range(3)]).reshape(parameters.shape)[:, at]
    torch.testing.assert_close(curvature, -own.clamp_max(0))
    assert (own[:, :channels] <= 0).all()
    assert (own[:, channels:] > 0).any()  # so that the clamp is tried


def test_the_linear_decoder_is_the_decoder_and_its_jacobian_torchs():
    model = tiny("vlae", double=True)
    z = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).double()
    searched = slice(0, 2 * 3)
    parameters, jacobian = linearised(model.decoder, z, searched)
    torch.testing.assert_close(parameters, model.decoder(z))
    expected = torch.func.vmap(torch.func.jacrev(lambda z: model.decoder(z[None])[0, searched]))(z)
    assert expected.abs().min() > 0
    torch.testing.assert_close(jacobian.mT, expected.flatten(1, 3))


def test_the_search_climbs_to_the_mode_and_the_precision_is_the_curvature_there():
    """With scales that are constant near z, nothing is left out."""
    x = smooth_images(6)
    model = tiny("vlae", double=True, scale=0.0, updates=60)
    model.calibrate(x, x)
    with torch.no_grad():
        perturb(model.encoder, 0.3)
        for layer in (model.decoder.linear, model.decoder.layers[4]):
            layer.weight.view(10, 64, -1)[1:4] += 0.05 * torch.randn(3, 64, layer.weight.shape[1])
        z, factor = model.search(x)
        assert float((z - model.encoder(model.values(x))).norm()) > 0.1

    def log_joint(z: Tensor) -> Tensor:
        return (model.log_px_given_z(x, z) + model.log_prior(z)).sum()

    z.requires_grad_(True)
    assert float(torch.autograd.grad(log_joint(z), z)[0].abs().max()) < 1e-6
    hessian = torch.autograd.functional.hessian(log_joint, z)
    torch.testing.assert_close(factor @ factor.mT, -torch.stack([hessian[i, :, i] for i in range(6)]).detach())


@torch.no_grad()
def test_an_image_to_which_nothing_fits_has_one_score_in_any_company():
    """In float32, as evaluations run: there the search wanders, and what rounding changes grows with every update."""
    model = VLAE((1, 8, 8), latents=6, hidden=64, draws=4, updates=12)
    known = smooth_images(60, (1, 8, 8))
    model.calibrate(known, known)
    perturb(model.decoder, 2.0)
    x = torch.cat([some_images(4, (1, 8, 8)), torch.full((2, 1, 8, 8), 255, dtype=torch.uint8)])
    noise = noise_of(6)
    together = model.log_prob(x, noise)
    alone = [model.log_prob(x[i : i + 1], noise.rows(slice(i, i + 1))) for i in range(6)]
    torch.testing.assert_close(torch.cat(alone), together, rtol=2e-6, atol=1e-4)


@torch.no_grad()
def test_how_many_images_are_searched_at_a_time_changes_no_number(monkeypatch):
    model, x = tiny("vlae", double=True), some_images(5)
    expected = model.statistics(x, noise_of(5))
    monkeypatch.setattr(room, "_IMAGES", 2)
    for column, values in model.statistics(x, noise_of(5)).items():
        torch.testing.assert_close(values, expected[column], rtol=1e-12, atol=1e-12)


def test_training_differentiates_through_the_search():
    """The encoder has no other way to learn: its gradient shrinks as the search forgets where it began."""
    x, sizes = smooth_images(8), []
    for updates in (1, 3, 9):
        model = tiny("vlae", double=True, scale=0.2, updates=updates)
        model.loss(x, noise_of(8)).mean().backward()
        sizes.append(float(model.encoder.linear.weight.grad.norm()))
    assert sizes[0] > 2 * sizes[1] > 4 * sizes[2] > 0


@pytest.mark.parametrize("number", [-3.0, float("nan")])
def test_a_precision_that_is_none_is_told_in_one_sentence(number):
    with pytest.raises(OodbenchError, match=r"^A Laplace posterior's precision is not positive definite.*clip\.$"):
        cholesky(torch.diag(torch.tensor([1.0, number]))[None])


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"network": "convolutional"}, "not 'convolutional', 'logistic' and 1"),
        ({"observation": "bernoulli"}, "not 'dense', 'bernoulli' and 1"),
        ({"mixtures": 2}, "not 'dense', 'logistic' and 2"),
        ({"updates": 0}, "not 0 of 0.5"),
        ({"step": 1.5}, "not 4 of 1.5"),
    ],
)
def test_what_it_cannot_be_is_told_in_one_sentence(config, said):
    with pytest.raises(OodbenchError, match=rf"^[^.].* {said}\.$"):
        VLAE((1, 8, 8), **config)
