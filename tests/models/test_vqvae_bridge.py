"""The diffusion bridge against Gaussian conditioning, and its codes where every path and code can be summed over."""

import math

import pytest
import torch
from tiny_models import noise_of, perturb, smooth_images, some_images, tiny
from torch import Tensor
from torch.autograd.functional import jacobian
from torch.distributions import Categorical, MultivariateNormal, Normal

from oodbench.models.noise import Noise
from oodbench.models.vae import bridge_prior
from oodbench.models.vae.bridge_prior import LOG_SNR, BridgePrior
from oodbench.models.vae.ornstein_uhlenbeck import bridge, times, transition
from oodbench.models.vae.quantisation import code_log_probs, code_probs, draw_codes, means_of_clusters, straight_through
from oodbench.models.vae.vqvae_bridge import VQVAEBridge

GRID = torch.linspace(-7, 7, 701, dtype=torch.float64)
CELL = float(GRID[1] - GRID[0])


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def a_prior(shape: tuple[int, ...] = (2, 1), steps: int = 3, scale: float = 0.5) -> BridgePrior:
    prior = BridgePrior(shape, steps, 5)
    perturb(prior, scale)
    return prior.double()


def one_place(draws: int = 2, steps: int = 2) -> VQVAEBridge:
    """One place with three codes of one number, on images of 2x2, and wide first states: every code comes up."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bridge_prior, "LOG_SNR", (-1.0, -6.0))
        model = VQVAEBridge((1, 2, 2), 1, 1, 3, hidden=4, draws=draws, steps=steps, reverse_hidden=5)
    perturb(model, 0.4)
    with torch.no_grad():
        model.codebook.copy_(doubles(-0.8, 0.1, 0.9)[:, None])
        model.log_temperatures.copy_(doubles(1.2, 0.6).log())
    return model.double()


@torch.no_grad()
def transitions(prior: BridgePrior) -> list[Tensor]:
    """p(z_t | z_{t+1}) of a one-dimensional prior as matrices [z_t, z_{t+1}] on the grid, for t = 0 ... T - 1."""
    found = []
    for t in range(prior.steps):
        mean, variance = prior(GRID[:, None, None, None], slice(t, t + 1))
        found.append(Normal(mean.flatten(), variance.flatten().sqrt()).log_prob(GRID[:, None]).exp())
    return found


@torch.no_grad()
def exact_codes(model: VQVAEBridge) -> Tensor:
    """p(c) of a model of one place, summed over all paths."""
    density = Normal(0.0, 1.0).log_prob(GRID).exp()
    for matrix in reversed(transitions(model.prior)):
        density = matrix @ density * CELL
    return (model._log_probs(GRID[:, None, None], 1)[:, 0].exp() * density[:, None]).sum(0) * CELL


@torch.no_grad()
def log_px_of_codes(model: VQVAEBridge, x: Tensor) -> Tensor:
    """log P(x | c) (B, codes) of a model of one place."""
    return torch.stack([model.pixel.log_prob(x, model._decode(e.expand(len(x), 1, 1))) for e in model.codebook], 1)


def test_transitions_compose_and_keep_the_stationary_law() -> None:
    s, t = doubles(0.03, 0.4, 1.7), doubles(0.2, 0.01, 2.1)
    (m, v), (n, w), (both, total) = transition(s), transition(t), transition(s + t)
    torch.testing.assert_close(m * n, both)
    torch.testing.assert_close(n**2 * v + w, total)
    torch.testing.assert_close(m**2 + v, torch.ones_like(m))


def test_a_bridge_is_gaussian_conditioning() -> None:
    """z_s given z_t, in the joint law of both given z_0, by the textbook's formula for a partitioned covariance."""
    for s, t in ((0.02, 0.3), (0.5, 0.6), (1.0, 4.0)):
        (m_s, v_s), (m_t, v_t), (step, _) = (transition(doubles(u)) for u in (s, t, t - s))
        covariance = step * v_s
        a, b, v = bridge(doubles(s), doubles(t))
        torch.testing.assert_close(a, covariance / v_t)
        torch.testing.assert_close(b, m_s - covariance / v_t * m_t)
        torch.testing.assert_close(v, v_s - covariance**2 / v_t)


def test_times_are_even_in_the_log_signal_to_noise_ratio() -> None:
    m, v = transition(times(3.0, -6.0, 9))
    torch.testing.assert_close((m**2 / v).log(), torch.linspace(3, -6, 10, dtype=torch.float64))


def covariance_of_times(given: bool) -> Tensor:
    """Of z_0 ... z_3: of the stationary process, or of the process that was at a known encoding."""
    at = times(*LOG_SNR, 3)
    stationary = (-(at[:, None] - at).abs()).exp()
    return stationary - (-(at[:, None] + at)).exp() if given else stationary


def test_paths_to_an_encoding_are_the_processs_with_their_density() -> None:
    prior, f = a_prior((1,)), doubles(0.7)
    path = lambda e: prior.path(f[None], e)[0]  # noqa: E731
    e = torch.randn(1, 4, 1, dtype=torch.float64)
    linear = jacobian(path, e).reshape(4, 4)
    torch.testing.assert_close(linear @ linear.T, covariance_of_times(given=True), rtol=1e-5, atol=1e-6)
    mean = path(torch.zeros_like(e)).flatten()
    torch.testing.assert_close(mean, transition(times(*LOG_SNR, 3))[0] * f, rtol=1e-5, atol=1e-6)
    z, log_q = prior.path(f[None], e)
    expected = MultivariateNormal(mean, linear @ linear.T).log_prob(z.flatten())
    torch.testing.assert_close(log_q[0], expected, rtol=0, atol=1e-9)


def test_before_training_the_prior_is_the_stationary_process() -> None:
    prior = BridgePrior((1,), 3, 5).double()
    z = torch.randn(6, 4, 1, dtype=torch.float64)
    expected = MultivariateNormal(torch.zeros(4, dtype=torch.float64), covariance_of_times(given=False))
    torch.testing.assert_close(prior.log_prob(z), expected.log_prob(z[..., 0]), rtol=0, atol=1e-4)


def test_the_priors_density_is_that_of_its_samples() -> None:
    """By the change of variables from the noise that they are made of."""
    prior = a_prior()
    e = torch.randn(1, 4, 2, 1, dtype=torch.float64)
    volume = torch.linalg.slogdet(jacobian(prior.sample, e).reshape(8, 8)).logabsdet
    expected = Normal(0.0, 1.0).log_prob(e).sum() - volume
    torch.testing.assert_close(prior.log_prob(prior.sample(e))[0], expected, rtol=0, atol=1e-9)


def test_steps_back_are_the_bridge_to_an_uncertain_encoding() -> None:
    """p(z_{t-1} | z_t) = int q(z_{t-1} | z_t, f) N(f; m, s^2) df by the rectangle rule, m and s as the step shows."""
    prior = a_prior((1,), steps=2)
    a, b, v = bridge(*times(*LOG_SNR, 2)[1:])
    mean, variance = (float(n.detach()) for n in prior(doubles(0.4)[None, None], slice(1, 2)))
    m, s = (mean - float(a) * 0.4) / float(b), math.sqrt((variance - float(v)) / float(b) ** 2)
    assert s > 0.1
    over = Normal(a * 0.4 + b * GRID, v.sqrt()).log_prob(doubles(-0.3)).exp() * Normal(m, s).log_prob(GRID).exp()
    expected = Normal(mean, math.sqrt(variance)).log_prob(doubles(-0.3)).exp()
    torch.testing.assert_close(over.sum()[None] * CELL, expected, rtol=1e-5, atol=0)


def test_the_divergence_is_that_of_the_paths() -> None:
    """Against the mean log-ratio of densities, which is far noisier, and quadrature for one step."""
    prior, f = a_prior((1,), steps=1), doubles(0.9)
    m, v = transition(times(*LOG_SNR, 1))
    a, b, u = bridge(*times(*LOG_SNR, 1))
    q = Normal(m[1] * f, v[1].sqrt()).log_prob(GRID) + Normal(a * GRID + b * f, u.sqrt()).log_prob(GRID[:, None])
    p = Normal(0.0, 1.0).log_prob(GRID) + transitions(prior)[0].log()
    exact = float((q.exp() * (q - p)).sum()) * CELL**2
    e = Noise.of(torch.arange(20_000)).normal((2, 1), "path").double()
    z, log_q = prior.path(f.expand(len(e), 1), e)
    with torch.no_grad():
        closed, ratio = prior.divergence(z, f.expand(len(e), 1)), log_q - prior.log_prob(z)
    for values in (closed, ratio):
        assert float(values.mean()) == pytest.approx(exact, abs=4.5 * float(values.std()) / math.sqrt(len(e)))
    assert float(closed.min()) >= 0
    assert float(closed.std()) < 0.7 * float(ratio.std())


def test_codes_are_drawn_with_probabilities_of_their_distances() -> None:
    generator = torch.Generator().manual_seed(0)
    z, codebook = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (4, 6))
    log_probs = code_log_probs(z, codebook, doubles(0.7)[0])
    expected = torch.softmax(-torch.cdist(z, codebook).square() / 0.7, -1)
    torch.testing.assert_close(code_probs(log_probs), expected)
    torch.testing.assert_close(code_probs(log_probs).sum(-1), torch.ones(4, dtype=torch.float64))
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    codes = draw_codes(log_probs, u.expand(4, -1))
    shares = torch.stack([(codes == k).double().mean(-1) for k in range(6)], -1)
    torch.testing.assert_close(shares, expected, rtol=0, atol=2e-5)
    assert int(draw_codes(log_probs, doubles(1.0).expand(4, 1)).max()) == 5  # not one beyond


def test_a_code_that_is_as_good_as_impossible_is_never_drawn() -> None:
    """Also where float32's sum of all probabilities stays below the largest uniform."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2000, 256, generator=generator)
    logits[:, -40:] = -100.0
    log_probs = torch.log_softmax(logits, -1)
    largest = torch.full((2000, 1), 1 - 2.0**-24)  # of `Noise.uniform`
    short = code_probs(log_probs).cumsum(-1)[:, -1:] < largest
    assert 100 < int(short.sum()) < 1900
    codes = draw_codes(log_probs, largest)
    assert float(log_probs.gather(1, codes).min()) > -20
    assert int(codes.max()) < 216


def test_the_surrogate_gradient_is_exact_for_what_is_linear_in_the_code_vectors() -> None:
    generator = torch.Generator().manual_seed(0)
    z, codebook, weight = (torch.randn(n, 2, generator=generator, dtype=torch.float64) for n in (3, 5, 3))
    z.requires_grad_()
    codebook.requires_grad_()
    log_probs = code_log_probs(z, codebook, doubles(0.9)[0])
    exact = torch.autograd.grad((code_probs(log_probs) @ codebook * weight).sum(), (z, codebook), retain_graph=True)
    mean = [torch.zeros_like(z), torch.zeros_like(codebook)]
    for k in range(5):  # each code with its probability, at all places
        codes = torch.full((3,), k)
        vectors = straight_through(codes, log_probs, codebook)
        torch.testing.assert_close(vectors, codebook[codes])
        weighted = (vectors * weight * code_probs(log_probs)[:, k : k + 1].detach()).sum()
        gradients = torch.autograd.grad(weighted, (z, codebook), retain_graph=True)
        mean = [m + g for m, g in zip(mean, gradients, strict=True)]
    torch.testing.assert_close(mean, list(exact))


def test_the_bound_is_below_the_exact_likelihood_and_reaches_it_with_the_draws() -> None:
    x = smooth_images(5, (1, 2, 2))
    model = one_place()
    exact = torch.logsumexp(log_px_of_codes(model, x) + exact_codes(model).log(), 1)
    assert float(exact_codes(model).sum()) == pytest.approx(1, abs=1e-9)
    model.draws = 30_000
    with torch.no_grad():
        columns = model.statistics(x, noise_of(5))
    assert float((exact - columns["elbo"]).min()) > 0.05
    torch.testing.assert_close(columns["log_px"], exact, rtol=0, atol=0.05)
    for error, miss in zip(columns["log_px_error"], (columns["log_px"] - exact).abs(), strict=True):
        assert float(miss) < 4.5 * float(error) < 0.2
    model.draws = 2
    many = Noise.of(torch.arange(4000), seed=5)
    with torch.no_grad():
        two = model.statistics(x[:1].expand(4000, -1, -1, -1), many)
    mean, error = float(two["log_px"].mean()), float(two["log_px"].std()) / math.sqrt(4000)
    assert float(columns["elbo"][0]) + 4.5 * error < mean < float(exact[0])


def test_the_loss_has_the_bound_as_its_mean() -> None:
    model, n = one_place(draws=8), 5000
    x, noise = smooth_images(1, (1, 2, 2)).expand(n, -1, -1, -1), Noise.of(torch.arange(n), seed=4)
    with torch.no_grad():
        loss, elbo = model.loss(x, noise), model.statistics(x, noise)["elbo"]
    error = math.hypot(float(loss.std()), float(elbo.std())) / math.sqrt(n)
    assert float(loss.mean()) == pytest.approx(-float(elbo.mean()), abs=4.5 * error)
    model.warm_up, model.progress = 0.5, 0.0
    codes = model._unpack(model.posterior(x, noise).draw(noise, 1)[0])[1][:, 0]
    with torch.no_grad():
        expected = -log_px_of_codes(model, x[:1])[0, codes]
        torch.testing.assert_close(model.loss(x, noise), expected)


def test_the_loss_gradient_is_exact_but_for_the_surrogate() -> None:
    """Finite differences of all parameters that do not move q(c | x): of decoder, prior and the temperature h'."""
    model, x, noise = tiny("vqvae-bridge", double=True, scale=0.3), smooth_images(4), noise_of(4)
    assert isinstance(model, VQVAEBridge)
    with torch.no_grad():
        model.codebook.mul_(0.5)  # codes near each other, which both temperatures blur
    moved = [*model.decoder.parameters(), *model.prior.parameters(), model.log_temperatures]
    gradients = torch.autograd.grad(model.loss(x, noise).mean(), moved)
    generator = torch.Generator().manual_seed(1)
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in moved]
    direction[-1][0] = 0  # h, which belongs to q(c | x)
    direction[-1][1] = 30.0
    slope = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True))
    losses, step = [], 1e-7
    with torch.no_grad():
        for sign in (1, -2):
            for p, d in zip(moved, direction, strict=True):
                p += sign * step * d
            losses.append(float(model.loss(x, noise).mean()))
    assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(slope, rel=1e-4, abs=1e-3)


def test_the_surrogate_gradient_points_where_the_exact_bound_rises() -> None:
    """In the encodings: its mean over the codes against the gradient of the bound summed over codes."""
    model, x = one_place(), smooth_images(40, (1, 2, 2))
    f = model.encode(x)[0].detach().requires_grad_()
    log_q, log_px = model._log_probs(f, 0)[:, 0], log_px_of_codes(model, x)
    exact = torch.autograd.grad((log_q.exp() * log_px).sum(), f, retain_graph=True)[0]
    surrogate = torch.zeros_like(f)
    for k in range(3):
        vectors = straight_through(torch.full((40, 1), k), log_q[:, None], model.codebook)
        weighted = log_q.exp()[:, k].detach() * model.pixel.log_prob(x, model._decode(vectors))
        surrogate += torch.autograd.grad(weighted.sum(), f, retain_graph=True)[0]
    assert float(torch.cosine_similarity(exact.flatten(), surrogate.flatten(), 0)) > 0.8


def test_samples_have_the_priors_codes() -> None:
    model, n = one_place(steps=3), 20_000
    with torch.no_grad():
        codes = model._unpack(model.sample_prior(Noise.of(torch.arange(n), seed=2)))[1][:, 0]
    expected = exact_codes(model)
    for k in range(3):
        error = math.sqrt(float(expected[k] * (1 - expected[k])) / n)
        assert float((codes == k).double().mean()) == pytest.approx(float(expected[k]), abs=4.5 * error)


def test_posterior_draws_have_the_encoders_codes_and_their_probability() -> None:
    model = tiny("vqvae-bridge", double=True)
    assert isinstance(model, VQVAEBridge)
    x, n = some_images(2), 4000
    with torch.no_grad():
        posterior = model.posterior(x, noise_of(2))
        z, log_q = posterior.draw(noise_of(2).expand(0, n), n)
        path, codes = model._unpack(z)
        f = posterior.f.repeat_interleave(n, 0)
        shares = torch.nn.functional.one_hot(codes, 8).double().unflatten(0, (2, n)).mean(1)
        torch.testing.assert_close(shares, posterior.log_probs.exp(), rtol=0, atol=4.5 * 0.5 / math.sqrt(n))
        first = transition(times(*LOG_SNR, 3))
        path_mean = path[:, 0].unflatten(0, (2, n)).mean(1)
        torch.testing.assert_close(path_mean, first[0][0] * posterior.f, rtol=0, atol=4.5 * 0.22 / math.sqrt(n))
        of_codes = Categorical(logits=posterior.log_probs.repeat_interleave(n, 0)).log_prob(codes).sum(1)
        at = times(*LOG_SNR, 3)
        forward = Normal(first[0][0] * f, first[1][0].sqrt()).log_prob(path[:, 0]).flatten(1).sum(1)
        for t in range(3):  # the same density, from the encoding outwards
            m, v = transition(at[t + 1] - at[t])
            forward += Normal(m * path[:, t], v.sqrt()).log_prob(path[:, t + 1]).flatten(1).sum(1)
    torch.testing.assert_close(log_q, forward + of_codes, rtol=0, atol=1e-3)


def test_clusters_find_their_means_also_from_equal_points() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = doubles(0, 0, 5, 0, 0, 5).reshape(3, 2)
    points = torch.cat([centres[:1].expand(300, 2), centres.repeat_interleave(50, 0)])
    points[300:] += 0.1 * torch.randn(150, 2, generator=generator, dtype=torch.float64)
    found = means_of_clusters(points, 3)
    assert torch.cdist(found, centres).argmin(0).unique().numel() == 3
    assert float(torch.cdist(found, centres).min(0).values.max()) < 0.1


@pytest.mark.parametrize(("network", "shape"), [("dense", (1, 6, 6)), ("maps", (3, 8, 8))])
def test_training_starts_at_codes_of_principal_components(network: str, shape: tuple[int, int, int]) -> None:
    x = smooth_images(60, shape)
    model = VQVAEBridge(shape, 4, 2, 40, hidden=8, network=network).double()
    before = model.loss(x, noise_of(60)).mean()
    model.calibrate(x, x)
    with torch.no_grad():
        f, log_q = model.encode(x)
    assert f.shape == (60, model.places, 2)
    assert float(f.square().mean()) == pytest.approx(1, abs=0.1)
    nearest = torch.cdist(f.flatten(0, 1), model.codebook.detach()).min(1).values
    assert float(nearest.square().mean()) < 0.1
    assert float(model.loss(x, noise_of(60)).mean().detach()) < float(before.detach())
    vectors = code_probs(log_q) @ model.codebook
    mean = model.pixel.mean(model._decode(vectors))
    error = (mean - (x.double() / 127.5 - 1)).square().mean()
    assert float(error) < 0.35 * float((x.double() / 127.5).var())
