"""Two-step models against a linear decoder, where the surface is a plane and everything has a closed form."""

import math

import pytest
import torch
from tiny_models import noise_of, perturb, smooth_images, some_images, tiny
from torch.distributions import MultivariateNormal

from oodbench.errors import OodbenchError
from oodbench.models.flows.flow import VectorFlow
from oodbench.models.flows.transforms.base import Transform
from oodbench.models.flows.transforms.mixing import Mixing
from oodbench.models.likelihoods import logistic_mixture_channels, logistic_mixture_mean, sample_logistic_mixture
from oodbench.models.manifold.two_step import EncoderDecoder, TwoStep
from oodbench.models.noise import Noise
from oodbench.models.vae.vae import VAE
from oodbench.registry import MODELS

SHAPE = (1, 4, 4)


def linear_two_step() -> TwoStep:
    """g(z) = W z + c and a Gaussian on z: of an autoencoder with its networks off and a flow of matrices."""
    model = tiny("two-step", SHAPE, double=True, scale=0.0, first_config={"latents": 3, "hidden": 4})
    for part in (model.first.encoder.linear, model.first.decoder.linear):
        perturb(part, 0.8)
    for layer in model.prior.layers[::2]:
        perturb(layer, 0.4)
    return model


@torch.no_grad()
def test_a_linear_decoder_gives_the_density_of_a_gaussian_on_a_plane():
    model, x = linear_two_step(), smooth_images(6, SHAPE)
    encoder, decoder = model.first.encoder.linear, model.first.decoder.linear
    value = x.double().flatten(1) / 127.5 - 1
    z = value @ encoder.weight.T + encoder.bias
    # The prior: base = A z + a, so z ~ N(-A^-1 a, (A'A)^-1).
    at = model.prior.log_density(z, noise_of(6))
    zero, unit = torch.zeros(1, 3).double(), torch.eye(3).double()
    a = model.prior(zero, noise_of(1))[0][0][0]
    matrix = (model.prior(unit, noise_of(3))[0][0] - a).T
    gaussian = MultivariateNormal(-torch.linalg.solve(matrix, a), precision_matrix=matrix.T @ matrix)
    torch.testing.assert_close(at, gaussian.log_prob(z), rtol=1e-9, atol=0)

    columns = model.statistics(x, noise_of(6))
    w, c = decoder.weight * 255 / 512, decoder.bias * 255 / 512
    volume = 0.5 * torch.linalg.slogdet(w.T @ w)[1]
    pixels = (x.double().flatten(1) + 0.5) / 256 - 0.5
    off = (pixels - z @ w.T - c).square().sum(1)
    torch.testing.assert_close(columns["log_p_latent"], gaussian.log_prob(z), rtol=1e-9, atol=0)
    torch.testing.assert_close(columns["log_px"], columns["log_p_latent"], rtol=0, atol=0)
    torch.testing.assert_close(columns["log_volume"], volume.expand(6), rtol=1e-9, atol=0)
    # The same by the plane's own coordinates: x = Q t + c with Q'Q = I, t = R z, is Gaussian with R C R'.
    q, r = torch.linalg.qr(w)
    on_plane = MultivariateNormal(r @ gaussian.mean, r @ gaussian.covariance_matrix @ r.T)
    expected = on_plane.log_prob((z @ w.T) @ q)
    torch.testing.assert_close(columns["log_p_manifold"], expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(columns["log_p_ambient"], expected - model.weight * off, rtol=1e-9, atol=0)


@pytest.mark.parametrize("first", ["autoencoder", "vae"])
def test_no_gradient_passes_from_the_flow_to_the_first_step(first):
    config = {"latents": 2, "hidden": 6}
    model = tiny("two-step", (1, 8, 8), double=True, first=first, first_config=config)
    x, noise = some_images(4, (1, 8, 8)), noise_of(4)
    of_first, of_flow = list(model.first.parameters()), list(model.prior.parameters())
    ours = torch.autograd.grad(model.loss(x, noise).mean(), [*of_first, *of_flow])
    alone = torch.autograd.grad(model.first.loss(x, noise).mean(), of_first)
    z = model.first.encode(x)[0].flatten(1)
    flow = torch.autograd.grad(-model.prior.log_density(z, noise).mean(), of_flow)
    for a, b in zip(ours, [*alone, *flow], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    assert model.latents == math.prod(model.first.latent_shape)


def test_the_first_steps_schedule_runs_as_it_would_alone():
    config = {"latents": 2, "hidden": 6, "warm_up": 0.5}
    model = tiny("two-step", (1, 8, 8), double=True, first="vae", first_config=config)
    x, noise = some_images(4, (1, 8, 8)), noise_of(4)
    kl = model.first.statistics(x, noise)["kl"]
    warm = model.loss(x, noise)
    for progress, weight in ((0.0, 0.0), (0.125, 0.25), (0.5, 1.0)):
        model.progress = progress
        torch.testing.assert_close(model.loss(x, noise), warm - (1 - weight) * kl, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("first", "moved"), [("lae", "last"), ("tsc-vae", "step_size")])
def test_what_the_first_step_moves_by_a_rule_of_its_own_moves(first, moved):
    """The last layer of a Langevin autoencoder and the size of a chain's steps, which no optimiser changes."""
    config = {"latents": 4, "hidden": 6, **({"features": 6} if first == "lae" else {"variational": 0.0})}
    model = tiny("two-step", (1, 8, 8), double=True, first=first, first_config=config)
    before = getattr(model.first, moved).detach().clone()
    model.loss(smooth_images(6, (1, 8, 8)), noise_of(6)).mean().backward()
    model.after_step()
    assert not torch.equal(getattr(model.first, moved), before)


def test_the_jacobian_of_a_vaes_mean_image_is_that_of_autograd():
    model = tiny(
        "two-step", (2, 4, 8), double=True, first="vae", first_config={"latents": 3, "hidden": 6, "mixtures": 2}
    )
    assert isinstance(model.first, VAE)
    assert isinstance(model.first, EncoderDecoder)
    x, noise = some_images(2, (2, 4, 8)), noise_of(2)
    z = model.encode(x, noise)[1].detach()
    found = model.statistics(x, noise)["log_volume"]
    for i in range(2):
        j = torch.autograd.functional.jacobian(lambda t: model.decode(t[None], noise)[0], z[i])
        assert float(found[i].detach()) == pytest.approx(0.5 * float(torch.linalg.slogdet(j.T @ j)[1]), rel=1e-9)


@torch.no_grad()
def test_the_mean_of_a_mixture_is_that_of_its_samples():
    n, channels, mixtures = 20_000, 3, 2
    numbers = logistic_mixture_channels(channels, mixtures)
    parameters = 0.3 * torch.randn(1, numbers, 1, 1, generator=torch.Generator().manual_seed(0))
    parameters[:, mixtures * (1 + channels) : mixtures * (1 + 2 * channels)] = -4.0  # narrow: nothing is cut off
    mean = logistic_mixture_mean(parameters, channels, mixtures)
    noise = Noise.of(torch.arange(n))
    drawn = sample_logistic_mixture(parameters.expand(n, -1, -1, -1), channels, mixtures, noise, "x")
    value = drawn.double() / 127.5 - 1
    error = value.std(0) / math.sqrt(n) + 1e-4
    assert (((value.mean(0) - mean[0]) / error).abs() < 5).all()
    assert mean.shape == (1, 3, 1, 1)


@torch.no_grad()
def test_the_first_step_starts_at_principal_components():
    model = tiny("two-step", SHAPE, double=True, scale=0.0)
    x, noise = smooth_images(100, SHAPE), noise_of(100)
    model.calibrate(x, x)
    value = x.double().flatten(1) / 256
    left = torch.linalg.svdvals(value - value.mean(0))[model.latents :].square().sum() / 100
    error = -model.statistics(x, noise)["reconstruction"].mean() / model.weight
    assert float(error) == pytest.approx(float(left), rel=0.02)
    z = model.encode(x, noise)[1]
    torch.testing.assert_close(z.var(0, correction=0), torch.ones(model.latents).double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["conformal", "rectangular", "two-step", "aef"])
def test_any_registered_flow_on_vectors_can_stand_on_the_latents(name, monkeypatch):
    class Matrices(VectorFlow):
        @classmethod
        def layers_on(cls, dimensions: int, count: int = 1) -> list[Transform]:
            return [Mixing(dimensions, torch.Generator().manual_seed(0)) for _ in range(count)]

    monkeypatch.setattr(MODELS, "_entries", dict(MODELS._entries))  # what was there before comes back
    MODELS.add("matrices", Matrices)
    x, noise = some_images(3, (1, 8, 8)), noise_of(3)
    models = [tiny(name, (1, 8, 8), prior="matrices", prior_config={"count": count}) for count in (1, 3)]
    added = [sum(isinstance(part, Mixing) for part in model.modules()) for model in models]
    assert added[1] - added[0] == 2
    assert all(model.log_prob(x, noise).isfinite().all() for model in models)


def test_a_first_step_without_latents_is_told():
    with pytest.raises(OodbenchError, match=r"glow cannot be .* for it lacks latent_shape, encode, mean_image"):
        TwoStep(SHAPE, first="glow", first_config={"levels": 1, "steps": 1})
    for first in ("cygen", "vqvae-bridge"):  # which encode, but dequantised pixels, and to codes
        with pytest.raises(OodbenchError, match=rf"{first} cannot be .* for it lacks mean_image"):
            TwoStep((1, 8, 8), first=first)
    with pytest.raises(OodbenchError, match="Unknown model 'vea': did you mean vae"):
        TwoStep(SHAPE, first="vea")
