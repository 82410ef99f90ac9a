"""Every density on a surface is held to what it declares. A new one is a name in MANIFOLDS and in tiny_models.CONFIGS.

Its volume is 1/2 log det J'J, its way back a right inverse where it is that of a flow, and its density the prior's on
latents less that volume. What each does beyond that is tested in a file of its own.
"""

import pytest
import torch
from tiny_models import CONFIGS, noise_of, smooth_images, some_images, tiny
from torch import Tensor

from oodbench.errors import OodbenchError
from oodbench.models.base import Likelihood
from oodbench.models.manifold.embedded import EmbeddedModel
from oodbench.models.noise import Noise
from oodbench.registry import MODELS

MANIFOLDS = ["conformal", "rectangular", "two-step"]
SHAPES = [(1, 4, 4), (2, 4, 8)]

every_manifold = pytest.mark.parametrize("name", MANIFOLDS)
every_shape = pytest.mark.parametrize("shape", SHAPES)


def test_every_registered_density_on_a_surface_is_tested_here():
    found = {n for n in CONFIGS if isinstance(MODELS.get(n), type) and issubclass(MODELS.get(n), EmbeddedModel)}
    assert found == set(MANIFOLDS)


def a_surface(name: str, shape: tuple[int, int, int]) -> tuple[EmbeddedModel, Tensor, Noise]:
    """A float64 model, four latents and their noise."""
    model, noise = tiny(name, shape, double=True, scale=0.3), noise_of(4)
    assert isinstance(model, EmbeddedModel)
    assert model.likelihood is Likelihood.MANIFOLD
    return model, noise.normal((model.latents,), "latents").double(), noise


@every_manifold
@every_shape
def test_the_log_volume_is_half_that_of_the_jacobians_gram_matrix(name, shape):
    model, z, noise = a_surface(name, shape)
    decoded, volume = model.decode_with_volume(z, noise)
    torch.testing.assert_close(decoded, model.decode(z, noise), rtol=0, atol=1e-12)
    for i in range(4):
        row = noise.rows(slice(i, i + 1))
        j = torch.autograd.functional.jacobian(lambda t, row=row: model.decode(t[None], row)[0], z[i])
        assert j.shape == (model.dimensions, model.latents)
        expected = 0.5 * float(torch.linalg.slogdet(j.T @ j)[1])
        assert float(volume[i].detach()) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", [name for name in MANIFOLDS if name != "two-step"])  # whose encoder is only learnt
@every_shape
@torch.no_grad()
def test_the_way_back_from_the_surface_is_a_right_inverse(name, shape):
    model, z, noise = a_surface(name, shape)
    channels, height, width = shape
    image = model.decode(z, noise).reshape(4, height, width, channels)
    assert model.embedding.inverts
    torch.testing.assert_close(model.embedding(image, noise)[0][0], z, rtol=0, atol=1e-9)


@every_manifold
@every_shape
@torch.no_grad()
def test_the_columns_are_parts_of_one_density(name, shape):
    model, _, _ = a_surface(name, shape)
    x, noise = smooth_images(4, shape), noise_of(4)
    columns = model.statistics(x, noise)
    pixels, z = model.encode(x, noise)
    decoded, volume = model.decode_with_volume(z, noise)
    latent, off = model.prior.log_density(z, noise), -model.weight * (pixels - decoded).square().sum(1)
    expected = {
        "log_p_latent": latent,
        "log_p_manifold": latent - volume,
        "log_p_ambient": latent - volume + off,
        "reconstruction": off,
        "log_volume": volume,
        "latent_norm": model.prior(z, noise)[0][0].norm(dim=1),
    }
    expected["log_px"] = expected[model.log_px_is]
    assert set(expected) == set(model.columns)
    for column, values in expected.items():
        torch.testing.assert_close(columns[column], values, rtol=1e-11, atol=1e-11)


@every_manifold
@every_shape
def test_gradients_of_density_and_volume_are_finite_in_weights_and_latents(name, shape):
    model, z, noise = a_surface(name, shape)
    z.requires_grad_()
    decoded, volume = model.decode_with_volume(z, noise)
    (model.prior.log_density(z, noise) - volume + model.reconstruction(0 * decoded, decoded)).sum().backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()
    assert float(z.grad.abs().amax(1).min()) > 0
    model.zero_grad()
    model.loss(smooth_images(6, shape), noise_of(6)).sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


@every_manifold
@every_shape
@torch.no_grad()
def test_evaluation_is_deterministic_knows_no_batch_and_is_all_in_the_weights(name, shape):
    model, _, _ = a_surface(name, shape)
    x, noise = some_images(4, shape), noise_of(4)
    model.calibrate(smooth_images(40, shape), smooth_images(20, shape, seed=1))
    model.initialise(smooth_images(40, shape), noise_of(40))
    together = model.statistics(x, noise)
    other = MODELS.get(name)(shape, **CONFIGS[name]).double().eval()
    assert not torch.equal(other.log_prob(x, noise), together["log_px"])
    other.load_state_dict(model.state_dict())
    for column, values in together.items():
        assert torch.equal(model.statistics(x, noise)[column], values), column
        assert torch.equal(other.statistics(x, noise)[column], values), column
    for i in range(4):
        row = slice(i, i + 1)
        for column, values in model.statistics(x[row], noise.rows(row)).items():
            torch.testing.assert_close(values, together[column][row], rtol=1e-9, atol=1e-9)


@every_manifold
@torch.no_grad()
def test_a_sample_that_explodes_is_told(name, monkeypatch):
    model, _, noise = a_surface(name, (1, 4, 4))
    assert model.sample(4, noise).dtype == torch.uint8
    decode = model.decode

    def exploding(z: Tensor, noise: Noise) -> Tensor:
        pixels = decode(z, noise)
        pixels[1, 2] = torch.inf
        return pixels

    monkeypatch.setattr(model, "decode", exploding)
    with pytest.raises(OodbenchError, match=r"explodes in 1 of 4 images"):
        model.sample(4, noise)
