"""P(x | z): distributions on bytes or bits with the means and samples they say, and networks' start."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from tiny_models import smooth_images, some_images, tiny
from torch import Tensor

from oodbench.models.base import Likelihood, has_bits
from oodbench.models.noise import Noise
from oodbench.models.vae.observations import observation
from oodbench.models.vae.vae import VAE

NAMES = ("logistic", "categorical", "bernoulli")
BYTES = torch.arange(256, dtype=torch.uint8)


def parameters(name: str, channels: int, places: tuple[int, int] = (1, 1), seed: int = 0, scale: float = 1.5) -> Tensor:
    """(1, outputs, H, W) that hide nothing."""
    generator = torch.Generator().manual_seed(seed)
    shown = observation(name, channels, 2)
    p = scale * torch.randn(1, shown.outputs, *places, generator=generator, dtype=torch.float64)
    if shown.location is not None:  # logistics whose tails do not reach the ends of the range
        first, last = shown.location
        p[:, first:last] *= 0.2
        p[:, last : 2 * last - first] -= 5
    return p


def log_probs(name: str, x: Tensor, p: Tensor) -> Tensor:
    return observation(name, x.shape[1], 2).log_prob(x, p.expand(len(x), -1, -1, -1))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_many_parameters_of_one_image_are_those_of_its_copies(name: str, channels: int) -> None:
    shown, draws = observation(name, channels, 2), 5
    p = torch.cat([parameters(name, channels, (2, 3), seed) for seed in range(4 * draws)]).requires_grad_()
    x = some_images(4, (channels, 2, 3))
    x[0], x[1] = 0, 255
    together, apart = shown.log_prob(x, p), shown.log_prob(x.repeat_interleave(draws, 0), p)
    torch.testing.assert_close(together, apart, rtol=1e-12, atol=0)
    assert len(set(together.tolist())) == 4 * draws
    ours, theirs = (torch.autograd.grad(values.sum(), p)[0] for values in (together, apart))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_idle_may_be_left_out(channels: int) -> None:
    shown = observation("logistic", channels, 1)
    p = torch.cat([parameters("logistic", channels, (2, 2), seed)[:, ::2] for seed in range(3)])
    x, noise = some_images(3, (channels, 2, 2)), Noise.of(torch.arange(3))
    assert (shown.idle, p.shape[1]) == (1, shown.outputs)
    assert observation("logistic", channels, 2).idle == 0
    for function in (lambda p: shown.log_prob(x, p), shown.mean, lambda p: shown.sample(p, noise)):
        assert torch.equal(function(p[:, 1:]), function(p))


@pytest.mark.parametrize("scale", [0.0, 1.5, 40.0])
def test_the_256_probabilities_of_a_category_sum_to_one(scale: float) -> None:
    p = parameters("categorical", 1, scale=scale)
    assert float(log_probs("categorical", BYTES[:, None, None, None], p).exp().sum()) == pytest.approx(1, abs=1e-10)
    both = torch.cartesian_prod(BYTES, BYTES)[:, :, None, None]
    p = parameters("categorical", 2, scale=scale)
    assert float(log_probs("categorical", both, p).exp().sum()) == pytest.approx(1, abs=1e-10)


def test_a_category_is_the_byte_that_its_logit_stands_for() -> None:
    p = torch.zeros(1, 256, 3, 2, 2, dtype=torch.float64)
    x = some_images(1, (3, 2, 2))
    p.scatter_(1, x[:, None].long(), math.log(1000.0))
    expected = 12 * math.log(1000 / 1255)
    assert float(log_probs("categorical", x, p.reshape(1, 768, 2, 2))) == pytest.approx(expected, rel=1e-12)
    neighbour = x.clone()
    neighbour[0, 1, 0, 1] += 1
    assert float(log_probs("categorical", neighbour, p.reshape(1, 768, 2, 2))) == pytest.approx(
        expected - math.log(1000), rel=1e-12
    )


def test_all_binary_images_have_probability_one_and_only_the_highest_bit_counts() -> None:
    p = parameters("bernoulli", 2, (2, 2))
    images = torch.tensor(list(itertools.product((0, 255), repeat=8)), dtype=torch.uint8).reshape(-1, 2, 2, 2)
    assert float(log_probs("bernoulli", images, p).exp().sum()) == pytest.approx(1, abs=1e-12)
    p = parameters("bernoulli", 1)
    by_byte = log_probs("bernoulli", BYTES[:, None, None, None], p)
    assert by_byte[:128].unique().numel() == by_byte[128:].unique().numel() == 1
    assert float(by_byte[128].exp()) == pytest.approx(float(p.sigmoid()), rel=1e-12)


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 17, 5), (1, 28, 28), (3, 32, 32)])
@pytest.mark.parametrize("scale", [0.01, 3.0, 100.0, 1e4])
def test_bits_are_torchs_cross_entropy_and_so_is_the_gradient(shape: tuple[int, int, int], scale: float) -> None:
    x = some_images(5, shape)
    logits = scale * torch.randn(5, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits[:, :, 0, :2] = 0  # where networks start: neither bit is likelier, and both pull
    logits.requires_grad_()
    expected = -F.binary_cross_entropy_with_logits(logits, (x >= 128).double(), reduction="none").flatten(1).sum(1)
    found = observation("bernoulli", shape[0], 1).log_prob(x, logits)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    slopes = (torch.autograd.grad(value.sum(), logits)[0] for value in (found, expected))
    torch.testing.assert_close(*slopes, rtol=1e-9, atol=1e-12)
    single = observation("bernoulli", shape[0], 1).log_prob(x, logits.float())
    torch.testing.assert_close(single.double(), expected, rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_samples_follow_the_probabilities_and_the_mean_is_theirs(name: str, channels: int) -> None:
    n = 20_000
    p, shown = parameters(name, channels, (1, 2)), observation(name, channels, 2)
    noise = Noise.of(torch.arange(n), seed=1)
    samples = shown.sample(p.expand(n, -1, -1, -1), noise)
    assert (samples.dtype, samples.shape) == (torch.uint8, (n, channels, 1, 2))
    if name != "logistic" or channels == 1:  # whose mean of a later channel is given the mean, not the sample, before
        values = samples.double() / 127.5 - 1
        error = values.std(0) / math.sqrt(n)
        assert ((values.mean(0) - shown.mean(p)[0]).abs() < 4.5 * error + 0.02 * (name == "logistic")).all()
    if name != "logistic":  # which has tests of its own
        first = samples[:, 0, 0, 0]
        others = samples[:1].expand(256, -1, -1, -1).clone()
        others[:, 0, 0, 0] = BYTES
        logs = shown.log_prob(others, p.expand(256, -1, -1, -1))
        probabilities = (logs - logs.logsumexp(0)).exp() if name == "categorical" else logs.softmax(0)
        if name == "bernoulli":  # its samples are 0 and 255, each standing for 128 bytes
            probabilities = torch.stack([probabilities[:128].sum(), probabilities[128:].sum()])
            first = first // 255
        counts = torch.bincount(first.long(), minlength=len(probabilities)).double()
        spread = (n * probabilities * (1 - probabilities)).sqrt()
        assert ((counts - n * probabilities).abs() <= 5 * spread + 2).all()
    parts = [shown.sample(p.expand(rows, -1, -1, -1), noise.rows(slice(rows))) for rows in (1, 3)]
    assert torch.equal(parts[1], samples[:3])
    assert torch.equal(parts[0], samples[:1])


def test_a_model_of_bits_says_so_and_sees_nothing_else_of_an_image() -> None:
    """Tables do not rank it beside models of bytes, nor give it bits/dim: see tests/report."""
    model = tiny("vae", (1, 8, 8), observation="bernoulli")
    assert model.likelihood is Likelihood.BINARISED
    assert not has_bits(model.likelihood)
    assert tiny("vae", (1, 8, 8)).likelihood is Likelihood.LOWER_BOUND  # the class is as it was
    x, noise = smooth_images(4, (1, 8, 8)), Noise.of(torch.arange(4))
    with torch.no_grad():
        bits = (x >= 128).to(torch.uint8)
        torch.testing.assert_close(model.log_prob(x, noise), model.log_prob(bits * 200, noise), rtol=0, atol=0)
        assert not torch.equal(model.log_prob(x, noise), model.log_prob((1 - bits) * 200, noise))
        assert set(model.sample(4, noise).unique().tolist()) <= {0, 255}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("network", ["dense", "convolutional"])
def test_networks_on_vectors_start_at_the_principal_components_of_whole_images(network: str, channels: int) -> None:
    """At the solution of probabilistic PCA, E[mean^2] + variance = 1 for every latent, and W' C = W' (W W' + s^2 I)."""
    latents, shape = 6, (channels, 8, 8)
    model = VAE(shape, latents=latents, hidden=5, network=network).double()
    x = smooth_images(300, shape)
    model.calibrate(x, x)
    with torch.no_grad():
        mean, std = model.encode(x)
        torch.testing.assert_close((mean**2 + std**2).mean(0), torch.ones(latents).double(), rtol=1e-5, atol=1e-5)
        first = 0 if network == "dense" else 1  # the means, behind one mixture logit where it is not left out
        at = slice(first, first + channels)
        centre = model.decoder(torch.zeros(1, latents).double())[:, at]
        w = (model.decoder(torch.eye(latents).double())[:, at] - centre).flatten(1)
    centred = (x.double() / 127.5 - 1 - centre).flatten(1)
    assert float(centred.mean(0).abs().max()) < 1e-6
    covariance = centred.T @ centred / len(x)
    rest = torch.linalg.eigvalsh(covariance)[:-latents].mean()
    found = w @ covariance
    torch.testing.assert_close(found, w @ w.T @ w + rest * w, rtol=1e-5, atol=1e-6)
    assert float(w.norm(dim=1).min()) > 0.1
    torch.testing.assert_close(mean, (centred @ w.T) / (w.square().sum(1) + rest), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_every_logistic_of_a_mixture_starts_with_the_same_map() -> None:
    x = smooth_images(60, (3, 8, 8))
    model = VAE((3, 8, 8), latents=4, hidden=5, mixtures=2, network="dense").double()
    model.calibrate(x, x)
    centre, moved = (model.decoder(z.double()) for z in (torch.zeros(1, 4), torch.eye(4)))
    first, second = ((moved - centre)[:, 2 + k : 8 : 2] for k in range(2))
    torch.testing.assert_close(first, second)
    assert float(first.abs().max()) > 0.1


@pytest.mark.parametrize("name", ["categorical", "bernoulli"])
def test_other_observations_start_with_the_same_encoder(name: str) -> None:
    x = smooth_images(60, (1, 8, 8))
    model = VAE((1, 8, 8), latents=4, hidden=5, network="dense", observation=name).double()
    model.calibrate(x, x)
    with torch.no_grad():
        mean, std = model.encode(x)
        image = model.mean_image(mean)
    torch.testing.assert_close((mean**2 + std**2).mean(0), torch.ones(4).double(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(image, torch.zeros_like(image), rtol=0, atol=1e-9)  # their logits have no means to set


def parts(model: VAE, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
    """(B, G) of the divergence, (B,) of log P(x | z), for the one draw that training takes."""
    mean, std = (t.flatten(1) for t in model.encode(x))
    z = mean + std * noise.normal(model.latent_shape, "latent").double().flatten(1)
    return 0.5 * (mean**2 + std**2 - 1 - 2 * std.log()), model.log_px_given_z(x, z.reshape(-1, *model.latent_shape))


@pytest.mark.parametrize("network", ["maps", "dense"])
def test_the_kl_is_warmed_up_over_its_share_of_training(network: str) -> None:
    model = tiny("vae", (1, 8, 8), double=True, network=network, warm_up=0.5)
    x, noise = smooth_images(4, (1, 8, 8)), Noise.of(torch.arange(4))
    kl, likelihood = parts(model, x, noise)
    for progress, weight in ((0.0, 0.0), (0.125, 0.25), (0.25, 0.5), (0.5, 1.0), (0.9, 1.0), (1.0, 1.0)):
        model.progress = progress
        torch.testing.assert_close(model.loss(x, noise), weight * kl.sum(1) - likelihood, rtol=1e-10, atol=1e-10)
    cold = tiny("vae", (1, 8, 8), double=True, network=network)
    cold.progress = 0.0
    torch.testing.assert_close(cold.loss(x, noise), kl.sum(1) - likelihood, rtol=1e-10, atol=1e-10)


def test_free_bits_hold_the_batchs_mean_of_every_latent_and_pull_at_none_below() -> None:
    model = tiny("vae-mlp", (1, 8, 8), double=True)
    x, noise = smooth_images(6, (1, 8, 8)), Noise.of(torch.arange(6))
    kl, likelihood = parts(model, x, noise)
    means = kl.mean(0)
    model.free_bits = float(means.sort().values[:3].mean())  # above some latents and below others
    below = means < model.free_bits
    assert 0 < int(below.sum()) < len(means)
    expected = means.clamp_min(model.free_bits).sum() - likelihood
    torch.testing.assert_close(model.loss(x, noise), expected, rtol=1e-10, atol=1e-10)
    # What the loss adds to the gradient of log P(x | z): the KL's of the latents above, nothing of those below.
    bias = model.encoder.linear.bias
    added = sum(
        torch.autograd.grad(value.mean(), bias)[0] for value in (model.loss(x, noise), parts(model, x, noise)[1])
    )
    slope = torch.autograd.grad(parts(model, x, noise)[0].mean(0).sum(), bias)[0]
    for ours, full in zip(added.chunk(2), slope.chunk(2), strict=True):
        torch.testing.assert_close(ours, torch.where(below, 0.0, full), rtol=1e-8, atol=1e-10)
        assert (full[below].abs() > 1e-6).all()
