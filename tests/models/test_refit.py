"""An encoder refitted to every image: against the best bound there is, and against one image at a time."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from test_vae import LATENTS, SHAPE, SIGMA, LinearGaussian, images
from tiny_models import CONFIGS, noise_of, smooth_images, tiny
from torch import Tensor, nn
from torch.distributions import Normal

from oodbench.errors import OodbenchError
from oodbench.models.nn import Convolution, Linear, networks
from oodbench.models.noise import Noise
from oodbench.models.vae import refit as room
from oodbench.models.vae.latent import LatentModel, importance_weighted
from oodbench.models.vae.refit import OneEach, can_refit, refit, regret
from oodbench.models.vae.vae import VAE
from oodbench.registry import MODELS

NETWORKS = {"maps": (1, 8, 8), "convolutional": (3, 8, 8), "dense": (1, 4, 4), "dcgan": (3, 16, 16)}


class LinearEncoder(LinearGaussian):
    """The linear-Gaussian model with an encoder of free weights: one linear map to mean and log-variance."""

    def __init__(self, draws: int = 64) -> None:
        super().__init__(draws)
        self.encoder = nn.Linear(16, 2 * LATENTS)
        with torch.no_grad():
            self.encoder.weight.mul_(0.1)
        self.double()

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.encoder(self.value(x)).chunk(2, 1)
        return mean[:, :, None, None], (0.5 * log_variance).exp()[:, :, None, None]

    def reconstruction(self, x: Tensor) -> Tensor:
        mean, std = (t.flatten(1) for t in self.encode(x))
        expected = Normal(mean @ self.w.T + self.c, SIGMA).log_prob(self.value(x)).sum(1)
        return expected - 0.5 * (std.square() @ self.w.square().T).sum(1) / SIGMA**2

    def best_bound(self, x: Tensor) -> Tensor:
        """The evidence bound of the best Gaussian with independent latents: the exact mean, 1 / precision's diagonal.

        It misses log p(x) by (sum log diagonal - log det) / 2.
        """
        precision = torch.eye(LATENTS, dtype=torch.float64) + self.w.T @ self.w / SIGMA**2
        return self.exact(x) - 0.5 * (precision.diagonal().log().sum() - precision.logdet())


def vae(network: str, **config) -> VAE:
    name = "vae" if network == "maps" else "vae-mlp"
    return tiny(name, NETWORKS[network], double=True, network=network, **config)


def test_regret_comes_to_the_distance_from_the_best_bound_there_is() -> None:
    model = LinearEncoder(draws=2000)
    x = images(model, 4)
    with torch.no_grad():
        missing = model.best_bound(x) - model.elbo(x)
    found = regret(model, x, noise_of(4), steps=400, rate=0.01, decay=0.0)
    assert float(missing.min()) > 4
    torch.testing.assert_close(found, missing, rtol=0.02, atol=0.3)
    exact = model.elbo(x) + found
    assert (exact < model.best_bound(x) + 0.3).all()  # but for the draws' own noise there is nothing above


def test_without_steps_there_is_nothing_to_regret() -> None:
    model, x = vae("maps"), smooth_images(3, NETWORKS["maps"])
    torch.testing.assert_close(regret(model, x, noise_of(3), steps=0), torch.zeros(3).double(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("network", NETWORKS)
def test_all_images_at_once_is_one_after_another_with_a_copied_model_and_torchs_adam(network: str) -> None:
    model, x, noise = vae(network), smooth_images(4, NETWORKS[network]), noise_of(4)
    expected = []
    for row in (slice(i, i + 1) for i in range(4)):
        copied = copy.deepcopy(model)
        optimizer = torch.optim.Adam(copied.encoder.parameters(), lr=0.01, weight_decay=0.1)
        for step in range(5):
            optimizer.zero_grad()
            at = noise.rows(row).expand(model.draws + step, 1)
            mean, std = copied.encode(x[row])
            z = mean + std * at.normal(model.latent_shape, "latent").double()
            kl = 0.5 * (mean**2 + std**2 - 1 - 2 * std.log()).sum()
            (kl - copied.log_px_given_z(x[row], z).sum()).backward()
            optimizer.step()
        with torch.no_grad():
            one, two = (importance_weighted(m, x[row], noise.rows(row), model.draws) for m in (copied, model))
        expected.append(one["elbo"] - two["elbo"])
    found = regret(model, x, noise, steps=5, rate=0.01, decay=0.1)
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-7, atol=1e-7)
    assert float(found.min()) > 0.5


@pytest.mark.parametrize("network", NETWORKS)
def test_an_image_has_one_regret_in_any_company_and_any_part(network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, noise = vae(network), smooth_images(5, NETWORKS[network]), noise_of(5)
    together = regret(model, x, noise, steps=4)
    alone = [regret(model, x[i : i + 1], noise.rows(slice(i, i + 1)), steps=4) for i in range(5)]
    torch.testing.assert_close(torch.cat(alone), together, rtol=1e-7, atol=1e-7)
    taken = []
    monkeypatch.setattr(room, "refit", lambda model, x, *rest: (taken.append(len(x)), refit(model, x, *rest))[1])
    monkeypatch.setattr(room, "COPIES_BYTES", 2 * 4 * 8 * sum(p.numel() for p in model.encoder.parameters()))
    torch.testing.assert_close(regret(model, x, noise, steps=4), together, rtol=1e-7, atol=1e-7)
    assert taken == [2, 2, 1]
    assert regret(model, x[:0], noise.rows(slice(0, 0)), steps=2).shape == (0,)


def test_in_evaluation_it_is_the_same_and_leaves_the_model_and_its_folded_weights_alone() -> None:
    """Inference mode, weights folded for the block, two lanes at a time."""
    model, x, noise = tiny("vae", (1, 8, 8)), smooth_images(6, (1, 8, 8)), noise_of(6)
    expected, before = regret(model, x, noise, steps=3), copy.deepcopy(model.state_dict())
    halves = [slice(0, 3), slice(3, 6)]

    def one(rows: slice) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            value = regret(model, x[rows], noise.rows(rows), steps=3)
            return value, model.log_prob(x[rows], noise.rows(rows))

    with networks(fold=True), ThreadPoolExecutor(2) as pool:
        results = list(pool.map(one, halves))
    torch.testing.assert_close(torch.cat([r for r, _ in results]), expected, rtol=1e-4, atol=1e-3)
    with torch.no_grad():
        torch.testing.assert_close(torch.cat([p for _, p in results]), model.log_prob(x, noise), rtol=1e-6, atol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


@torch.no_grad()
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (Convolution(3, 5, (4, 4), (1, 1), stride=2), (3, 8, 12)),
        (nn.Conv2d(2, 3, (3, 1), padding=(1, 0), stride=(2, 1)), (2, 9, 5)),
        (Linear(7, 4), (7,)),
        (nn.Linear(7, 4), (7,)),
    ],
)
def test_each_image_meets_its_own_weights(layer: nn.Module, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x, each = torch.randn(4, *shape, generator=generator), OneEach(layer, 4)
    torch.testing.assert_close(each(x), layer(x), rtol=1e-5, atol=1e-5)
    each.weight += torch.randn(each.weight.shape, generator=generator)
    each.bias += torch.randn(each.bias.shape, generator=generator)
    for i in range(4):
        layer.weight.copy_(each.weight[i])
        layer.bias.copy_(each.bias[i])
        torch.testing.assert_close(each(x)[i], layer(x[i : i + 1])[0], rtol=1e-5, atol=1e-5)
    with networks(torch.bfloat16):
        rough = each(x)
        assert rough.dtype == (torch.bfloat16 if isinstance(layer, Convolution) else torch.float32)
    assert float((rough - each(x)).abs().max()) < 0.5
    assert torch.equal(rough, each(x)) == (type(layer) in (nn.Linear, nn.Conv2d))  # torch's own know no precision
    with pytest.raises(OodbenchError, match="4 images takes each once, not 3"):
        each(x[:3])


def test_a_posterior_that_is_searched_for_in_parts_is_refitted_whatever_the_batch() -> None:
    model, x, noise = tiny("vlae", (1, 8, 8)), smooth_images(66, (1, 8, 8)), noise_of(66)
    found = regret(model, x, noise, steps=1)
    alone = regret(model, x[65:], noise.rows(slice(65, 66)), steps=1)
    torch.testing.assert_close(found[65:], alone, rtol=1e-3, atol=1e-3)


def test_it_applies_to_models_whose_encoder_it_can_copy_and_reach() -> None:
    assert can_refit(tiny("vae"))
    assert can_refit(tiny("vae-mlp"))
    assert not can_refit(tiny("vqvae-bridge"))  # the code that is drawn follows no encoder
    for name in CONFIGS:
        known = issubclass(MODELS.get(name), LatentModel)
        assert known or not can_refit(tiny(name)), name  # nothing else has an encoder and a bound
    normalised = tiny("vae-mlp")
    normalised.encoder.layers.append(nn.LayerNorm(8))
    assert not can_refit(normalised)
    deaf = tiny("vae-mlp")
    deaf.posterior = lambda x, noise: VAE.posterior(deaf, x, noise.__class__.of(noise.index))
    assert can_refit(deaf)
    deaf.encode = lambda x: tuple(t.detach() for t in VAE.encode(deaf, x))
    assert not can_refit(deaf)


def test_draws_of_the_steps_are_not_those_of_the_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    model, drawn = vae("dense"), []
    normal = Noise.normal
    monkeypatch.setattr(Noise, "normal", lambda self, *rest: (drawn.append(self.draw), normal(self, *rest))[1])
    x = smooth_images(2, NETWORKS["dense"])
    regret(model, x, noise_of(2), steps=3)
    draws = [sorted(set(one.tolist())) for one in drawn]
    estimate = list(range(model.draws))
    assert draws == [estimate, *([model.draws + step] for step in range(3)), estimate]
    assert NETWORKS["dense"] == SHAPE
