"""CyGen on pairs of conditionals whose joint distribution, likelihood and mixed derivatives have closed forms."""

import math

import pytest
import torch
from tiny_models import noise_of, smooth_images, some_images, tiny
from torch import Tensor
from torch.autograd.functional import hessian
from torch.distributions import MultivariateNormal, Normal

from oodbench.models.base import Likelihood
from oodbench.models.likelihoods import (
    logistic_mixture_channels,
    logistic_mixture_log_density,
    logistic_mixture_log_prob,
)
from oodbench.models.noise import Noise
from oodbench.models.vae.compatibility import incompatibility
from oodbench.models.vae.cygen import CyGen

SHAPE = (1, 4, 4)
PIXELS, LATENTS = 16, 3
SIGMA = 0.6


class LinearGaussian(CyGen):
    """x | z ~ N(W z + c, sigma^2) on x / 127.5 - 1, W'W diagonal; q(z | x) its exact posterior for z ~ N(0, I)."""

    def __init__(self, draws: int = 2, stretch: float = 1.0) -> None:
        super().__init__(SHAPE, LATENTS, hidden=4)
        self.draws = draws
        generator = torch.Generator().manual_seed(0)
        axes = torch.linalg.qr(torch.randn(PIXELS, LATENTS, generator=generator, dtype=torch.float64)).Q
        # |w|^2 < sigma^2 / 3: the weights 1 / p have no variance from sigma^2 on, and no fourth moment from here
        self.w = axes * torch.tensor([0.32, 0.3, 0.28], dtype=torch.float64)
        self.c = 0.2 * torch.randn(PIXELS, generator=generator, dtype=torch.float64)
        precision = 1 + self.w.square().sum(0) / SIGMA**2
        self.gain, self.std = (self.w / SIGMA**2 / precision).T, stretch / precision.sqrt()
        self.double()

    def encode(self, value: Tensor) -> tuple[Tensor, Tensor]:
        mean = (value.flatten(1) - self.c) @ self.gain.T
        return mean, self.std.expand_as(mean)

    def log_px_given_z(self, x: Tensor, z: Tensor) -> Tensor:
        return self.log_density(self.values(x).repeat_interleave(len(z) // len(x), 0), z)

    def log_density(self, value: Tensor, z: Tensor) -> Tensor:
        return Normal(z @ self.w.T + self.c, SIGMA).log_prob(value.flatten(1)).sum(1)

    def log_ratio(self, value: Tensor, z: Tensor) -> Tensor:
        mean, std = self.encode(value)
        return self.log_density(value, z) - Normal(mean, std).log_prob(z).sum(1)

    def exact(self, x: Tensor) -> Tensor:
        covariance = self.w @ self.w.T + SIGMA**2 * torch.eye(PIXELS, dtype=torch.float64)
        return MultivariateNormal(self.c, covariance).log_prob(self.values(x).flatten(1))


def an_image(model: LinearGaussian, n: int) -> tuple[Tensor, Noise]:
    """One image n times, each with noise of its own."""
    value = model.c + model.w.sum(1)
    x = ((value + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).reshape(1, *SHAPE)
    return x.expand(n, -1, -1, -1), Noise.of(torch.arange(n), seed=5)


def latents_of(model: CyGen, x: Tensor, noise: Noise) -> Tensor:
    with torch.no_grad():
        return model.posterior(x).draw(noise, 1)[0]


def test_a_compatible_pair_has_no_mixed_derivative_and_another_has() -> None:
    x, noise = some_images(4, SHAPE), noise_of(4)
    exact, wide = LinearGaussian(), LinearGaussian(stretch=1.2)
    assert float(exact.incompatibility(x, latents_of(exact, x, noise), noise).detach().max()) < 1e-20
    found = wide.incompatibility(x, latents_of(wide, x, noise), noise)
    mixed = wide.w.T / SIGMA**2 - wide.gain / wide.std[:, None] ** 2  # d_z d_x of the two quadratic forms
    probe = noise.normal((LATENTS,), "probe").double()
    torch.testing.assert_close(found, (probe @ mixed).square().sum(1))
    assert float(found.detach().min()) > 0


def test_the_incompatibility_has_the_mixed_hessians_norm_as_its_mean() -> None:
    """Of the real networks with all their blocks of second derivatives, by autograd."""
    model = tiny("cygen", (1, 4, 4), double=True, latents=3, hidden=8)
    assert isinstance(model, CyGen)
    x, n = smooth_images(1, (1, 4, 4)), 20_000
    value, z = model.values(x), latents_of(model, x, noise_of(1))
    joint = lambda both: model.log_ratio(both[:16].reshape(1, 1, 4, 4), both[16:][None]).sum()  # noqa: E731
    exact = float(hessian(joint, torch.cat([value.flatten(), z[0]]))[:16, 16:].square().sum())
    probes = Noise.of(torch.arange(n)).normal((3,), "probe").double()
    with torch.no_grad():
        found = incompatibility(model.log_ratio, value.expand(n, -1, -1, -1), z.expand(n, -1), probes)
    assert float(found.mean()) == pytest.approx(exact, abs=4.5 * float(found.std()) / math.sqrt(n))
    assert exact > 1
    own = incompatibility(model.log_ratio, value.expand(3, -1, -1, -1), z.expand(3, -1), torch.eye(3).double())
    assert float(own.sum()) == pytest.approx(exact)


def test_the_gradient_is_the_losss_with_the_draws_held_still() -> None:
    model, x, noise = tiny("cygen", double=True, scale=0.3), smooth_images(4), noise_of(4)
    assert isinstance(model, CyGen)
    z, parameters = latents_of(model, x, noise), list(model.parameters())
    still = model.incompatibility(x, z, noise).mean()
    total = torch.autograd.grad(model.loss(x, noise).mean(), parameters)
    of_still = torch.autograd.grad(still, parameters, allow_unused=True)
    generator = torch.Generator().manual_seed(1)
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    along = [sum(float((g * d).sum()) for g, d in zip(gs, direction, strict=True) if g is not None)
             for gs in (total, of_still)]  # fmt: skip
    weight, model.weight = model.weight, 0.0
    losses, norms, step = [], [], 1e-7
    with torch.no_grad():
        for sign in (1, -2):
            for p, d in zip(parameters, direction, strict=True):
                p += sign * step * d
            losses.append(float(model.loss(x, noise).mean()))
            norms.append(float(model.incompatibility(x, z, noise).mean()))
    slope, of_norm = ((pair[0] - pair[1]) / (2 * step) for pair in (losses, norms))
    assert of_norm == pytest.approx(along[1], rel=1e-4)
    assert abs(weight * along[1]) > 1e-3 * abs(slope)
    assert along[0] == pytest.approx(slope + weight * along[1], rel=1e-4, abs=1e-3)


def test_the_estimate_converges_to_the_exact_likelihood_of_a_compatible_pair() -> None:
    model = LinearGaussian(draws=20_000)
    x, noise = some_images(3, SHAPE), noise_of(3)
    columns = model.statistics(x, noise)
    miss = (columns["log_px"] - model.exact(x)).abs()
    assert (miss < 4.5 * columns["log_px_error"]).all()
    assert float(columns["log_px_error"].max()) < 0.05
    assert float((columns["reconstruction"] - model.exact(x)).min()) > 0.1  # what an estimate of one draw would say


def test_the_estimate_lies_above_and_falls_with_the_draws_at_the_rate_of_its_weights_variance() -> None:
    n = 40_000
    x, noise = an_image(LinearGaussian(), n)
    exact = float(LinearGaussian().exact(x[:1]))
    model = LinearGaussian()
    z, _ = model.posterior(x).draw(noise, 1)
    weights = (exact - model.log_px_given_z(x, z)).exp()
    error = float(weights.std()) / math.sqrt(n)
    assert float(weights.mean()) == pytest.approx(1, abs=4.5 * error)  # 1 / p itself is unbiased
    means = [float(-weights.log().mean())]
    for draws in (2, 8, 32):
        rows = n // draws
        log_px = LinearGaussian(draws).statistics(x[:rows], noise.rows(slice(0, rows)))["log_px"] - exact
        means.append(float(log_px.mean()))
        assert means[-1] > -4.5 * float(log_px.std()) / math.sqrt(rows)
        assert means[-1] == pytest.approx(float(weights.var()) / (2 * draws), rel=0.5 if draws == 2 else 0.25, abs=5e-3)
    assert means == sorted(means, reverse=True)
    assert means[0] > 0.05


def test_its_error_is_its_spread_and_falls_with_the_root_of_the_draws() -> None:
    errors = []
    for draws in (64, 1024):
        x, noise = an_image(LinearGaussian(), 300)
        columns = LinearGaussian(draws).statistics(x, noise)
        errors.append(float(columns["log_px_error"].mean()))
        assert errors[-1] == pytest.approx(float(columns["log_px"].std()), rel=0.15)
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)


def test_what_the_number_is_stands_beside_it() -> None:
    model = tiny("cygen")
    assert model.likelihood is Likelihood.ESTIMATE
    assert "biased upward" in model.remark
    assert model.statistic_parameters() == {"draws": 3}
    columns = model.statistics(some_images(5), noise_of(5))
    assert (columns["log_px"] <= columns["reconstruction"]).all()  # a harmonic mean is below the geometric one


def test_training_starts_as_a_vae_and_the_weight_grows() -> None:
    model, x, noise = tiny("cygen", double=True), smooth_images(5), noise_of(5)
    assert isinstance(model, CyGen)
    with torch.no_grad():
        posterior = model.posterior(x)
        z = latents_of(model, x, noise)
        mean, std = posterior.mean, posterior.std
        kl = torch.distributions.kl_divergence(Normal(mean, std), Normal(torch.zeros_like(mean), 1)).sum(1)
        bound, norm = model.log_px_given_z(x, z) - kl, model.incompatibility(x, z, noise)
        for progress, share in ((0.0, 0.0), (0.2, 0.4), (0.45, 0.9)):
            model.progress = progress
            torch.testing.assert_close(model.loss(x, noise), share * model.weight * norm - bound)
        model.progress, model.draws = 0.5, model.training_draws
        estimate = model.statistics(x, noise)["log_px"]
        torch.testing.assert_close(model.loss(x, noise), model.weight * norm - estimate)


def test_at_principal_components_the_pair_is_compatible() -> None:
    model = CyGen((1, 8, 8), latents=4, hidden=8).double()
    x, noise = smooth_images(200, (1, 8, 8)), noise_of(200)
    model.calibrate(x, x)
    z = latents_of(model, x, noise)
    start = float(model.incompatibility(x, z, noise).mean())
    with torch.no_grad():
        model.encoder.linear.bias[4:] += 0.2  # log-variances
    assert start < 1e-4 * float(model.incompatibility(x, z, noise).mean())


@pytest.mark.parametrize(("channels", "mixtures"), [(1, 1), (3, 1), (3, 2)])
def test_the_gaussian_density_agrees_with_the_bytes_where_logistics_are_wide(channels: int, mixtures: int) -> None:
    """A mean and a variance over the 256 levels of one channel, the others fixed, and a total of 1."""
    generator = torch.Generator().manual_seed(0)
    numbers = logistic_mixture_channels(channels, mixtures)
    parameters = 0.2 * torch.randn(1, numbers, 1, 1, generator=generator, dtype=torch.float64)
    parameters[:, mixtures * (1 + channels) : mixtures * (1 + 2 * channels)] -= 3.5
    levels = torch.full((256, channels, 1, 1), 120, dtype=torch.uint8)
    levels[:, -1, 0, 0] = torch.arange(256)
    value = levels.double() / 127.5 - 1
    many = parameters.expand(256, -1, -1, -1)
    discrete = logistic_mixture_log_prob(levels, many, mixtures).exp()
    density = logistic_mixture_log_density(value, many, mixtures).exp() * (2 / 255)
    one = torch.full_like(value, 120 / 127.5 - 1)
    assert float(discrete.sum()) > 0
    if channels == 1:
        assert float(density.sum()) == pytest.approx(1, abs=1e-6)
        moments = [[float((p / p.sum() * value[:, -1, 0, 0] ** k).sum()) for k in (1, 2)] for p in (discrete, density)]
        assert moments[0][0] == pytest.approx(moments[1][0], abs=1e-4)
        spreads = [second - first**2 for first, second in moments]
        assert spreads[0] == pytest.approx(spreads[1], rel=0.02)
    else:  # written out with torch's Gaussians, channel after channel
        p = parameters[0, :, 0, 0]
        logits, rest = p[:mixtures], p[mixtures:].reshape(-1, mixtures)
        means, scales, pulls = rest[:channels], rest[channels : 2 * channels], torch.tanh(rest[2 * channels :])
        x = one[0, :, 0, 0]
        shifted = [means[0], means[1] + pulls[0] * x[0], means[2] + pulls[1] * x[0] + pulls[2] * x[1]]
        std = (((math.pi * scales.exp()) ** 2 + 1 / 255**2) / 3).sqrt()
        each = sum(Normal(shifted[c], std[c]).log_prob(x[c]) for c in range(3))
        expected = torch.logsumexp(torch.log_softmax(logits, 0) + each, 0)
        found = logistic_mixture_log_density(one[:1], parameters, mixtures)[0]
        torch.testing.assert_close(found, expected)


class TwoPixels(CyGen):
    """x ~ N(0.3 z, 0.1^2) about, z ~ N(1, 0.5^2), and each from the other; a second pixel has nothing to do with z."""

    def __init__(self, chain: int) -> None:
        super().__init__((1, 1, 2), 1, hidden=2, chain=chain)
        self.double()
        self.decoder.forward = self.parameters_of_pixels  # type: ignore[method-assign]

    def parameters_of_pixels(self, z: Tensor) -> Tensor:
        """Means and log-scales (B, 2, 1, 2)."""
        mean = torch.cat([0.3 * z, 0 * z], 1)
        return torch.stack([mean, torch.full_like(mean, math.log(0.1 * math.sqrt(3) / math.pi))], 1)[:, :, None]

    def encode(self, value: Tensor) -> tuple[Tensor, Tensor]:
        variance = 1 / (0.3**2 / 0.1**2 + 1 / 0.5**2)
        mean = variance * (0.3 * value[..., 0].flatten(1) / 0.1**2 + 1 / 0.5**2)
        return mean, torch.full_like(mean, math.sqrt(variance))


def test_the_chain_forgets_its_start_and_reaches_the_joint_distribution() -> None:
    n = 5000
    noise = Noise.of(torch.arange(n), seed=2)
    found = [TwoPixels(chain).sample(n, noise)[..., 0].double() / 127.5 - 1 for chain in (1, 20)]
    error = 4.5 * math.sqrt((0.3 * 0.5) ** 2 + 0.1**2) / math.sqrt(n)
    assert abs(float(found[0].mean()) - 0.3) > 0.2  # after the first step still about the start's 0
    assert float(found[1].mean()) == pytest.approx(0.3, abs=error + 0.004)
    assert float(found[1].var()) == pytest.approx((0.3 * 0.5) ** 2 + 0.1**2, rel=0.1)
