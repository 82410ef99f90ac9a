"""The VAE's estimates against a linear-Gaussian model, where the likelihood and every bound have closed forms."""

import math

import pytest
import torch
from tiny_models import noise_of, some_images, tiny
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from oodbench.models.noise import Noise
from oodbench.models.vae import latent as room
from oodbench.models.vae.vae import VAE

SHAPE = (1, 4, 4)
PIXELS, LATENTS = 16, 3
SIGMA = 0.4


class LinearGaussian(VAE):
    """x | z ~ N(W z + c, sigma^2) on x / 127.5 - 1; q(z | x) a Gaussian wider than the posterior and beside it."""

    def __init__(self, draws: int) -> None:
        super().__init__(SHAPE, latents=LATENTS, hidden=4)
        self.draws = draws  # even one, which has a mean but no error
        generator = torch.Generator().manual_seed(0)
        self.w = 0.4 * torch.randn(PIXELS, LATENTS, generator=generator, dtype=torch.float64)
        self.c = 0.2 * torch.randn(PIXELS, generator=generator, dtype=torch.float64)
        precision = torch.eye(LATENTS, dtype=torch.float64) + self.w.T @ self.w / SIGMA**2
        self.gain = torch.linalg.solve(precision, self.w.T) / SIGMA**2
        self.std = 1.3 / precision.diagonal().sqrt()
        self.double()

    def value(self, x: Tensor) -> Tensor:
        return x.flatten(1).double() / 127.5 - 1

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = (self.value(x) - self.c) @ self.gain.T + 0.05
        return mean[:, :, None, None], self.std.expand_as(mean)[:, :, None, None]

    def log_px_given_z(self, x: Tensor, z: Tensor) -> Tensor:
        mean = (z.flatten(1) @ self.w.T + self.c).unflatten(0, (len(x), -1))
        return Normal(mean, SIGMA).log_prob(self.value(x)[:, None]).sum(2).flatten()

    def exact(self, x: Tensor) -> Tensor:
        covariance = self.w @ self.w.T + SIGMA**2 * torch.eye(PIXELS, dtype=torch.float64)
        return MultivariateNormal(self.c, covariance).log_prob(self.value(x))

    def reconstruction(self, x: Tensor) -> Tensor:
        """E_q log p(x | z)."""
        mean = self.encode(x)[0].flatten(1)
        expected = Normal(mean @ self.w.T + self.c, SIGMA).log_prob(self.value(x)).sum(1)
        return expected - 0.5 * (self.w**2 @ self.std**2).sum() / SIGMA**2

    def kl(self, x: Tensor) -> Tensor:
        mean, std = (t.flatten(1) for t in self.encode(x))
        prior = Normal(torch.zeros_like(mean), 1)
        return kl_divergence(Independent(Normal(mean, std), 1), Independent(prior, 1))

    def elbo(self, x: Tensor) -> Tensor:
        return self.reconstruction(x) - self.kl(x)


def images(model: LinearGaussian, n: int) -> Tensor:
    """uint8 images of about the model's own distribution."""
    generator = torch.Generator().manual_seed(1)
    z, e = (torch.randn(n, k, generator=generator, dtype=torch.float64) for k in (LATENTS, PIXELS))
    value = z @ model.w.T + model.c + SIGMA * e
    return ((value + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).reshape(n, *SHAPE)


def repeated(x: Tensor, times: int) -> tuple[Tensor, Noise]:
    """One image many times, each with noise of its own."""
    return x[:1].expand(times, -1, -1, -1), Noise.of(torch.arange(times), seed=5)


def mean_and_error(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))


def test_the_importance_estimate_converges_to_the_exact_likelihood():
    model = LinearGaussian(draws=20_000)
    x = images(model, 4)
    estimate = model.statistics(x, noise_of(4))["log_px"]
    assert float((model.exact(x) - model.elbo(x)).min()) > 0.1  # while the evidence bound stays below it
    torch.testing.assert_close(estimate, model.exact(x), rtol=0, atol=0.03)


def test_the_estimate_rises_with_the_draws_from_below_at_the_rate_of_its_weights_variance():
    single = LinearGaussian(draws=1)
    x, noise = repeated(images(single, 1), 40_000)
    exact = float(single.exact(x[:1]))
    weights = (single.statistics(x, noise)["log_px"] - exact).exp()
    mean, error = mean_and_error(weights)
    assert mean == pytest.approx(1, abs=4.5 * error)  # the weights themselves are unbiased
    means = []
    for draws in (1, 2, 8, 64):
        rows = 40_000 // draws
        mean, error = mean_and_error(LinearGaussian(draws).statistics(x[:rows], noise.rows(slice(0, rows)))["log_px"])
        assert mean < exact + 4.5 * error
        means.append(mean)
    assert means == sorted(means)
    assert means[0] == pytest.approx(float(single.elbo(x[:1])), abs=0.03)
    assert exact - means[2] == pytest.approx(float(weights.var()) / (2 * 8), rel=0.35)  # delta method


def test_one_draw_has_the_evidence_bound_as_its_mean_and_so_has_the_loss():
    model = LinearGaussian(draws=1)
    x, noise = repeated(images(model, 1), 20_000)
    bound = float(model.elbo(x[:1]))
    columns = model.statistics(x, noise)
    for values in (columns["log_px"], columns["elbo"], -model.loss(x, noise)):
        mean, error = mean_and_error(values)
        assert error < 0.05
        assert mean == pytest.approx(bound, abs=4.5 * error)
    assert torch.equal(-model.loss(x, noise), columns["elbo"])  # the same draw, in training as in evaluation


def test_the_evidence_bound_and_its_two_parts_are_their_closed_forms():
    model = LinearGaussian(draws=4000)
    x = images(model, 5)
    columns = model.statistics(x, noise_of(5))
    torch.testing.assert_close(columns["kl"], model.kl(x), rtol=1e-12, atol=0)
    torch.testing.assert_close(columns["elbo"], columns["reconstruction"] - columns["kl"], rtol=0, atol=1e-12)
    torch.testing.assert_close(columns["reconstruction"], model.reconstruction(x), rtol=0, atol=0.25)
    assert (columns["elbo"] < model.exact(x)).all()


@pytest.mark.parametrize("rows", [1, 7, 30, 10**6])
def test_how_many_rows_the_decoder_takes_at_a_time_changes_no_number(monkeypatch, rows):
    model, x = tiny("vae", double=True, draws=13), some_images(5)
    expected = model.statistics(x, noise_of(5))
    monkeypatch.setattr(room, "DECODER_ROWS", rows)
    largest = []
    decode = model.log_px_given_z
    monkeypatch.setattr(model, "log_px_given_z", lambda x, z: (largest.append(len(z)), decode(x, z))[1])
    for name, column in model.statistics(x, noise_of(5)).items():
        torch.testing.assert_close(column, expected[name], rtol=1e-12, atol=0)
    assert max(largest) <= max(rows, 5)
    assert sum(largest) == 5 * 13


def test_the_divergence_of_the_real_encoder_is_torchs():
    model, x = tiny("vae", double=True), some_images(6)
    mean, std = model.encode(x)
    expected = kl_divergence(Normal(mean, std), Normal(torch.zeros_like(mean), 1)).sum((1, 2, 3))
    torch.testing.assert_close(model.statistics(x, noise_of(6))["kl"], expected, rtol=1e-12, atol=0)


def test_the_estimate_of_the_real_network_is_the_mean_of_its_weights():
    """Written out draw by draw with torch's densities."""
    model, x = tiny("vae", double=True), some_images(4)
    mean, std = model.encode(x)
    weights = []
    for draw in range(model.draws):
        z = mean + std * Noise.of(noise_of(4).index, 3, draw).normal(model.latent_shape, "latent").double()
        prior, posterior = Normal(0.0, 1.0).log_prob(z).sum((1, 2, 3)), Normal(mean, std).log_prob(z).sum((1, 2, 3))
        weights.append(model.log_px_given_z(x, z) + prior - posterior)
    expected = torch.stack(weights).logsumexp(0) - math.log(model.draws)
    torch.testing.assert_close(model.statistics(x, noise_of(4))["log_px"], expected, rtol=1e-12, atol=0)
    assert model.statistic_parameters() == {"draws": 3}


def test_samples_decode_standard_normal_latents():
    model = tiny("vae", (1, 8, 8), latents=1, mixtures=1, double=True)
    n = 3000

    def decode(z: Tensor) -> Tensor:  # the mean is z / 3, the scale next to nothing
        means = (z / 3).repeat_interleave(4, 2).repeat_interleave(4, 3)
        return torch.cat([torch.zeros_like(means), means, torch.full_like(means, -7)], 1)

    model.decoder.forward = decode
    x = model.sample(n, Noise.of(torch.arange(n), seed=2))
    z = 3 * (x[:, 0, ::4, ::4].double() / 127.5 - 1)
    assert float((x[:, 0, 1, 2].int() - x[:, 0, 0, 0]).abs().max()) <= 4  # one latent for each 4x4 pixels
    assert float(z.mean()) == pytest.approx(0, abs=4.5 / math.sqrt(4 * n))
    for level in (-2.0, -1.0, 0.0, 1.0, 2.0):
        share = 0.5 * math.erfc(-level / math.sqrt(2))
        error = math.sqrt(share * (1 - share) / (4 * n))
        assert float((z <= level).double().mean()) == pytest.approx(share, abs=4.5 * error + 0.004)


@pytest.mark.parametrize("channels", [1, 3])
def test_training_starts_at_probabilistic_principal_components(channels: int) -> None:
    """At the maximum-likelihood solution of PPCA, E[mean^2] + variance = 1 for every latent, and W W' + s^2 I = cov."""
    model = VAE((channels, 16, 16), latents=5, hidden=4).double()
    x = some_images(40, (channels, 16, 16))
    model.calibrate(x, x)
    with torch.no_grad():
        mean, std = model.encode(x)
        torch.testing.assert_close((mean**2 + std**2).mean((0, 2, 3)), torch.ones(5).double(), rtol=1e-6, atol=1e-6)
        one = torch.eye(5, dtype=torch.float64)[:, :, None, None] * torch.ones(4, 4)
        at = slice(1, 1 + channels)  # the means, behind one mixture logit
        centre = model.decoder(torch.zeros(1, 5, 4, 4).double())[:, at]
        w = (model.decoder(one)[:, at] - centre)[:, :, 4:8, 4:8].flatten(1)
        value = x.double() / 127.5 - 1 - centre
        patches = value.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(-1, 16 * channels)
    covariance = patches.T @ patches / len(patches)
    rest = torch.linalg.eigvalsh(covariance)[:-5].mean()
    torch.testing.assert_close(w @ covariance @ w.T, (w @ w.T) @ (w @ w.T + rest * torch.eye(5).double()))
