"""What holds for every density model, whatever it is inside."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import CONFIGS, SHAPE, noise_of, perturb, smooth_images, some_images, tiny

from oodbench.errors import OodbenchError
from oodbench.models.base import DensityModel, Likelihood, bits_per_dim
from oodbench.models.nn import networks
from oodbench.models.noise import Noise
from oodbench.pretrained import load_model, save_model
from oodbench.registry import MODELS

every_model = pytest.mark.parametrize("name", CONFIGS)
# Their losses' gradients are on purpose not the losses': see their own tests.
SURROGATES = {"rectangular", "two-step", "svae", "vqvae-bridge", "cygen", "lae", "tsc-vae"}


def test_every_built_in_model_is_tested_here():
    assert {name for name in MODELS if MODELS.origin_of(name) == "oodbench"} == set(CONFIGS)


@every_model
@torch.no_grad()
def test_columns_are_one_finite_float32_an_image(name):
    model, x = tiny(name), some_images(5)
    columns = model.statistics(x, noise_of(5))
    assert tuple(columns) == model.columns
    for column, values in columns.items():
        assert (values.dtype, len(values)) == (torch.float32, 5), column
        assert values.ndim == (2 if column == "log_px_scales" else 1), column
        assert values.isfinite().all(), column
        assert float(values.std(0).min()) > 0 or column in ("log_det", "log_px_error"), column
    assert torch.equal(model.log_prob(x, noise_of(5)), columns["log_px"])
    assert isinstance(model.likelihood, Likelihood)
    assert model.shape == SHAPE
    assert model.dimensions == 192
    assert model.statistics(x[:0], noise_of(5).rows(slice(0, 0)))["log_px"].shape == (0,)


@pytest.mark.parametrize("name", [name for name in CONFIGS if "latent_norm" in MODELS.get(name).columns])
def test_latent_norms_are_of_as_many_numbers_as_the_model_says(name):
    model = tiny(name)
    bases = getattr(model, "prior", None) or model.flow
    assert model.latent_dimensions == sum(math.prod(shape) for shape in bases.latent_shapes)
    assert (model.latent_dimensions < 192) == (model.likelihood is Likelihood.MANIFOLD or name == "funnel")


@every_model
@torch.no_grad()
def test_the_same_question_has_the_same_answer_in_training_mode_too(name):
    model, x = tiny(name), some_images(5)
    first = model.statistics(x, noise_of(5))
    model.train()
    for column, values in model.statistics(x, noise_of(5)).items():
        assert torch.equal(values, first[column]), column
    loss = model.loss(x, noise_of(5))
    assert torch.equal(loss, model.loss(x, noise_of(5)))
    assert loss.shape == (5,)


@every_model
@torch.no_grad()
def test_an_image_has_one_score_in_any_company(name):
    model, x, noise = tiny(name), some_images(5), noise_of(5)
    together = model.statistics(x, noise)
    for i in range(5):
        row = slice(i, i + 1)
        for column, values in model.statistics(x[row], noise.rows(row)).items():
            torch.testing.assert_close(values, together[column][row], rtol=2e-6, atol=1e-4)
    order = torch.tensor([3, 0, 4, 1, 2])
    turned = model.statistics(x[order], Noise(noise.seed, noise.index[order], noise.draw[order]))
    for column, values in turned.items():
        torch.testing.assert_close(values, together[column][order], rtol=2e-6, atol=1e-4)
    in_memory = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model.log_prob(in_memory, noise), together["log_px"], rtol=2e-6, atol=1e-4)


@every_model
@torch.no_grad()
def test_only_models_that_say_so_depend_on_the_noise(name):
    model, x = tiny(name), some_images(5)
    same = torch.equal(model.log_prob(x, noise_of(5)), model.log_prob(x, noise_of(5, first=1)))
    assert same == (model.likelihood is Likelihood.EXACT or name == "two-step")  # which encodes the bytes themselves


@every_model
def test_finite_gradients_reach_every_parameter(name):
    model = tiny(name)
    model.loss(smooth_images(8), noise_of(8)).mean().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert float(parameter.grad.abs().max()) > 0, key


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in SURROGATES])
def test_the_gradient_is_that_of_the_loss(name):
    """Against finite differences along a random direction, in float64."""
    model, x, noise = tiny(name, double=True, scale=0.3), smooth_images(4), noise_of(4)
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(model.loss(x, noise).mean(), parameters)
    generator = torch.Generator().manual_seed(1)
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    slope = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True))
    losses, step = [], 1e-7
    with torch.no_grad():
        for sign in (1, -2):
            for p, d in zip(parameters, direction, strict=True):
                p += sign * step * d
            losses.append(float(model.loss(x, noise).mean()))
    assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(slope, rel=1e-4, abs=1e-3)


@every_model
@torch.no_grad()
def test_samples_are_images_that_belong_to_their_rows(name):
    shape = (3, 8, 8)
    model = tiny(name, shape, double=True, scale=0.2)  # samples of wilder flows explode
    noise = Noise.of(torch.tensor([5, 9, 5, 700]), seed=1)
    x = model.sample(4, noise)
    assert (x.dtype, x.shape) == (torch.uint8, (4, *shape))
    assert torch.equal(x[0], x[2])  # the same image index
    assert not torch.equal(x[0], x[1])
    parts = [model.sample(b - a, noise.rows(slice(a, b))) for a, b in ((0, 1), (1, 4))]
    assert torch.equal(torch.cat(parts), x)
    for other in (Noise.of(noise.index, seed=2), Noise.of(noise.index, seed=1, draw=1)):
        assert not torch.equal(model.sample(4, other), x)
    assert model.log_prob(x, noise).isfinite().all()


@every_model
@torch.no_grad()
def test_saved_and_loaded_again_a_model_says_the_same(name, tmp_path: Path):
    model, x = tiny(name), some_images(3)
    entry = {
        "dataset": "toys", "model": name, "role": "model", "preset": "small", "seed": 0, "shape": list(SHAPE),
        "recipe": {"config": CONFIGS[name]}, "data_fingerprint": "0", "undertrained": False,
    }  # fmt: skip
    save_model(model, entry, tmp_path)
    loaded = load_model(name, "toys", weights=tmp_path).module
    assert not loaded.training
    for column, values in loaded.statistics(x, noise_of(3)).items():
        assert torch.equal(values, model.statistics(x, noise_of(3))[column]), column


def plain(config: dict[str, Any]) -> list[Any]:
    """The values of a configuration, and of those inside."""
    return [v for value in config.values() for v in (plain(value) if isinstance(value, dict) else [value])]


@pytest.mark.parametrize(
    ("name", "shape", "config"),
    [
        ("glow", (1, 6, 8), {}),
        ("glow", (3, 8, 10), {"levels": 2}),
        ("glow-cv", (1, 28, 28), {}),
        *((name, (1, 8, 8), {"levels": 1, "hidden": 0}) for name in ("glow", "realnvp", "nsf", "iresnet", "inflow")),
        *(
            (name, (1, 8, 8), {"levels": 1, "steps": steps})
            for name in ("glow", "glow-cv", "nsf", "nxn-flow", "funnel", "inflow")
            for steps in (0, -1)
        ),
        *(("iresnet", (1, 8, 8), {"levels": 1, "blocks": blocks}) for blocks in (0, -1)),
        *((name, (1, 8, 8), {"levels": 1, "blocks": -1}) for name in ("realnvp", "nsf")),
        *((name, (1, 8, 8), {"blocks": -1}) for name in ("nice", "maf", "iaf", "nsf-ar")),
        *((name, (1, 8, 8), {"levels": 100_000}) for name in ("glow", "realnvp", "iresnet", "funnel")),
        ("conformal", (1, 8, 8), {"latents": 4, "levels": 100_000}),
        *(("nice", (1, 8, 8), {"floor": floor}) for floor in (-1.0, math.nan, math.inf)),
        ("conformal", (1, 8, 8), {"latents": 4, "levels": 1, "weight": math.nan}),
        ("rectangular", (1, 8, 8), {"latents": 4, "weight": math.inf}),
        ("two-step", (1, 8, 8), {"weight": math.nan}),
        ("nxn-flow", (1, 8, 8), {"levels": 1, "hidden": -1}),
        ("funnel", (1, 8, 8), {"levels": 1, "hidden": -1}),
        ("nice", (1, 8, 8), {"hidden": -1}),
        ("nice", (1, 1, 1), {}),
        ("nice", (1, 8, 8), {"couplings": 1}),
        ("realnvp", (3, 8, 10), {"levels": 2}),
        ("realnvp", (3, 8, 8), {"steps": 1}),
        ("maf", (1, 8, 8), {"layers": 0}),
        ("iaf", (3, 32, 32), {}),
        ("nsf", (1, 28, 28), {}),
        ("nsf", (3, 8, 8), {"bins": 1}),
        ("nsf-ar", (1, 8, 8), {"layers": 0}),
        ("nsf-ar", (1, 8, 8), {"bound": -1.0}),
        *((name, (1, 1, 1), {}) for name in ("vae-mlp", "svae", "cygen", "vqvae-bridge", "lae")),
        ("cygen", (1, 8, 8), {"mixtures": 0}),
        ("vae", (1, 6, 8), {}),
        ("vae", (3, 8, 9), {}),
        ("vae", (3, 8, 8), {"draws": 0}),
        ("nf-vae", (1, 8, 8), {"flow": "sylvester", "steps": 8}),
        ("nf-vae", (1, 8, 8), {"steps": 0}),
        ("nf-vae", (1, 8, 8), {"context": 0}),
        ("nf-vae", (1, 8, 8), {"latents": 0}),
        ("iaf-vae", (1, 8, 8), {"steps": 0}),
        ("iaf-vae", (1, 8, 8), {"context": 0}),
        ("iaf-vae", (1, 8, 8), {"width": 0}),
        ("svae", (1, 8, 8), {"latents": 21}),
        ("svae", (1, 8, 8), {"latents": 1}),
        ("cygen", (1, 8, 8), {"draws": 1}),
        ("cygen", (1, 8, 8), {"weight": -0.5}),
        ("cygen", (1, 8, 8), {"warm_up": 1.5}),
        ("vqvae-bridge", (1, 8, 8), {"latents": 9}),
        ("vqvae-bridge", (1, 8, 8), {"codes": 1}),
        ("vqvae-bridge", (1, 6, 8), {"network": "maps"}),
        ("lae", (1, 8, 8), {"mixtures": 2}),
        ("lae", (1, 8, 8), {"features": 31}),
        ("lae", (1, 8, 8), {"eta": -1e-4}),
        ("lae", (1, 8, 8), {"chain_steps": 1}),
        ("tsc-vae", (1, 8, 8), {"step_size": 1.5}),
        ("tsc-vae", (1, 8, 8), {"latents": 1}),
        ("tsc-vae", (1, 8, 8), {"variational": 1.25}),
        ("pixelcnn", (3, 8, 8), {"filters": 2}),
        ("pixelcnn", (3, 8, 8), {"layers": 0}),
        ("pixelcnn++", (3, 6, 8), {}),
        ("pixelcnn++", (1, 8, 8), {"mixtures": 0}),
        ("pixelcnn++", (1, 8, 8), {"filters": -1}),
        ("pixelcnn++", (1, 8, 5), {}),
        ("aef", (1, 8, 8), {"latents": 64}),
        ("aef", (1, 8, 8), {"latents": 1}),
        ("aef", (1, 8, 8), {"core": "edge"}),
        ("aef", (1, 8, 8), {"hidden": 0}),
        ("aef", (1, 8, 6), {}),
        ("aef", (1, 8, 8), {"prior_config": {"count": 0}}),
        ("conformal", (1, 8, 8), {"latents": 64}),
        ("conformal", (1, 8, 8), {"latents": 20, "levels": 2, "channels": 4}),
        ("conformal", (1, 6, 6), {"latents": 4, "levels": 2}),
        ("conformal", (1, 8, 8), {"weight": 0.0}),
        ("conformal", (1, 8, 8), {"latents": 4, "channels": 0}),
        ("rectangular", (1, 8, 8), {"latents": 64}),
        ("rectangular", (1, 8, 8), {"couplings": 0}),
        ("rectangular", (1, 8, 8), {"hidden": -1}),
        ("rectangular", (1, 8, 8), {"prior": "glow"}),
        ("two-step", (1, 8, 8), {"first_config": {"latents": 64}}),
        ("two-step", (1, 4, 4), {"first": "vae", "first_config": {"latents": 16}}),
        ("two-step", (1, 8, 6), {}),
    ],
)
def test_a_shape_or_configuration_that_cannot_be_is_told_in_one_sentence(name, shape, config):
    with pytest.raises(OodbenchError) as caught:
        MODELS.get(name)(shape, **config)
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    assert any(str(number) in message for number in (*shape, *plain(config)))


@every_model
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_folded_weights_give_the_very_same_numbers(name, dtype, mode):
    model, x = tiny(name), some_images(4)
    with networks(dtype), mode():
        expected = model.statistics(x, noise_of(4))
    with networks(dtype, fold=True), mode():
        for _ in range(2):  # the second time from the folded weights
            for column, values in model.statistics(x, noise_of(4)).items():
                assert torch.equal(values, expected[column]), column


@every_model
@torch.no_grad()
def test_inference_mode_changes_no_more_than_rounding(name):
    """Evaluations run in it, and their convolutions by other calls."""
    model, x = tiny(name), some_images(4)
    expected = model.statistics(x, noise_of(4))
    with torch.inference_mode():
        for column, values in model.statistics(x, noise_of(4)).items():
            torch.testing.assert_close(values, expected[column])


@every_model
@torch.no_grad()
def test_bfloat16_networks_move_the_score_by_little_and_leave_it_float32(name):
    """Measured on these: 0.0001 bits/dim (flows, pixelcnn) to 0.0012 (pixelcnn++), or 0.01 to 0.16 nats."""
    model, x = tiny(name, scale=0.1), smooth_images(16)
    model.calibrate(x, x)
    model.initialise(x, noise_of(16))
    exact = model.statistics(x, noise_of(16))
    with networks(torch.bfloat16):
        rough = model.statistics(x, noise_of(16))
    for column, values in rough.items():
        assert values.dtype == torch.float32, column
    difference = bits_per_dim((rough["log_px"] - exact["log_px"]).abs(), model.dimensions).abs()
    assert 0 < float(difference.max()) < 0.005


@every_model
def test_torchs_global_generator_is_left_alone(name):
    model, x = tiny(name, (3, 8, 8)), some_images(3, (3, 8, 8))
    milder = tiny(name, (3, 8, 8), scale=0.1)  # as samples of wild flows explode, which they say
    before = torch.get_rng_state()
    model.initialise(x, noise_of(3))
    model.log_prob(x, noise_of(3))
    model.loss(x, noise_of(3)).sum().backward()
    milder.sample(2, noise_of(2))
    assert torch.equal(torch.get_rng_state(), before)


@every_model
def test_float64_weights_compute_in_float64_and_agree(name):
    x = smooth_images(6)
    with torch.no_grad():
        model = tiny(name, scale=0.0)
        model.initialise(x, noise_of(6))
        perturb(model, 0.1)
        single = model.statistics(x, noise_of(6))
        double = model.double().statistics(x, noise_of(6))
    for column, values in double.items():
        assert values.dtype == torch.float64, column
        torch.testing.assert_close(single[column].double(), values, rtol=1e-5, atol=2e-3)


class Uniform(DensityModel):
    """The least that a model must define."""

    likelihood = Likelihood.EXACT

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__(shape)
        self.unused = torch.nn.Parameter(torch.zeros(()))

    def log_prob(self, x, noise):
        return torch.full((len(x),), -self.dimensions * math.log(256))


def test_a_model_that_defines_only_log_prob_has_a_loss_and_columns():
    model, x = Uniform((1, 2, 2)), some_images(3, (1, 2, 2))
    assert set(model.statistics(x, noise_of(3))) == set(model.columns) == {"log_px"}
    assert torch.equal(model.loss(x, noise_of(3)), -model.log_prob(x, noise_of(3)))
    assert bits_per_dim(model.log_prob(x, noise_of(3)), 4).tolist() == pytest.approx([8, 8, 8])
    assert model.statistic_parameters() == {}
    assert model.device == torch.device("cpu")
    with pytest.raises(NotImplementedError, match="Uniform"):
        model.sample(1, noise_of(1))
