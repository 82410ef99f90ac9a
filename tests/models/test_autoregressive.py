"""The autoregressive models see only what comes before, sum to one over whole domains, and sample what they claim."""

import math

import pytest
import torch
from tiny_models import noise_of, some_images, tiny
from torch import Tensor

from oodbench.models.base import DensityModel
from oodbench.models.likelihoods import logistic_mixture_log_prob
from oodbench.models.noise import Noise

BYTES = torch.arange(256, dtype=torch.uint8)


def outputs(model: DensityModel, x: Tensor) -> Tensor:
    """What the model says of each position: (B, H, W, groups, numbers), groups in their order of generation."""
    if hasattr(model, "logits"):
        return model.logits(x)
    return model.parameters_of(x).permute(0, 2, 3, 1)[:, :, :, None]


def influence(model: DensityModel, n: int = 6) -> Tensor:
    """bool (H W groups, H W C): whether an output depends on an input, both in raster order and channels last."""
    channels, height, width = model.shape
    x = some_images(n, model.shape).permute(0, 2, 3, 1).double()

    def positions(x: Tensor) -> Tensor:
        out = outputs(model, x.permute(0, 3, 1, 2))
        weights = torch.randn(out.shape[-1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        return (out @ weights).sum(0).flatten()  # one image of the batch cannot touch another: see below

    jacobian = torch.autograd.functional.jacobian(positions, x, vectorize=True)
    return (jacobian != 0).any(1).reshape(-1, height * width * channels)


@pytest.mark.parametrize("shape", [(3, 4, 4), (1, 4, 5), (2, 3, 3)])
def test_pixelcnn_sees_all_pixels_and_channels_before_each_one_and_none_after(shape):
    model = tiny("pixelcnn", shape, double=True, layers=4)
    size = math.prod(shape)
    assert torch.equal(influence(model), torch.ones(size, size).tril(-1).bool())


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 4, 8), (1, 8, 8)])
def test_pixelcnnpp_sees_all_pixels_before_each_one_and_none_after(shape):
    model = tiny("pixelcnn++", shape, double=True, residuals=2)
    pixels = shape[1] * shape[2]
    before = torch.ones(pixels, pixels).tril(-1).bool().repeat_interleave(shape[0], 1)
    assert torch.equal(influence(model), before)


@pytest.mark.parametrize("name", ["pixelcnn", "pixelcnn++"])
@torch.no_grad()
def test_changing_all_bytes_from_a_position_on_changes_no_output_up_to_it(name):
    model = tiny(name, double=True)
    x = some_images(1)
    groups = outputs(model, x).shape[3]  # 1 where a pixel's channels come at once
    size = 64 * groups
    ordered = x.permute(0, 2, 3, 1).reshape(1, -1)
    places = torch.arange(192)
    starts = torch.arange(size) // groups * 3 + torch.arange(size) % groups
    changed = torch.where(places >= starts[:, None], 255 - ordered, ordered)
    here = outputs(model, x).reshape(size, -1)
    there = outputs(model, changed.reshape(-1, 8, 8, 3).permute(0, 3, 1, 2)).reshape(size, size, -1)
    for position in range(size):
        torch.testing.assert_close(there[position, : position + 1], here[: position + 1], rtol=0, atol=1e-12)
    assert float((there[0, 1:] - here[1:]).abs().amax(-1).min()) > 1e-6  # and does change all after it


@pytest.mark.parametrize("shape", [(1, 1, 2), (1, 2, 1), (2, 1, 1)])
@torch.no_grad()
def test_pixelcnn_gives_all_images_of_a_tiny_domain_a_total_of_one(shape):
    model = tiny("pixelcnn", shape, double=True, scale=2.0)
    everything = torch.cartesian_prod(BYTES, BYTES).reshape(-1, *shape)
    log_probs = torch.cat([model.log_prob(x, noise_of(len(x))) for x in everything.split(8192)])
    assert float(log_probs.exp().sum()) == pytest.approx(1, abs=1e-10)
    joint = log_probs.exp().reshape(256, 256)
    assert float((joint - joint.sum(1)[:, None] * joint.sum(0)[None]).abs().sum()) > 0.01  # the two are dependent


@torch.no_grad()
def test_pixelcnnpp_sums_to_one_over_each_pixel_given_those_before():
    """sum over x_i of P(x_1) ... P(x_i | x_<i) = P(x_1) ... P(x_i-1 | x_<i-1); for the last pixel the left is P(x)."""
    shape = (1, 4, 4)
    model, x = tiny("pixelcnn++", shape, double=True), some_images(1, (1, 4, 4))

    def terms(x: Tensor) -> Tensor:
        p = model.parameters_of(x).permute(0, 2, 3, 1).reshape(16 * len(x), -1, 1, 1)
        return logistic_mixture_log_prob(x.reshape(-1, 1, 1, 1), p, model.mixtures).reshape(-1, 16)

    own = terms(x)[0]
    for i in range(16):
        filled = x.repeat(256, 1, 1, 1)
        filled.view(256, 16)[:, i] = BYTES
        assert float(terms(filled)[:, : i + 1].sum(1).logsumexp(0)) == pytest.approx(float(own[:i].sum()), abs=1e-9)
    whole = model.log_prob(filled, noise_of(256)).logsumexp(0)
    assert float(whole) == pytest.approx(float(own[:15].sum()), abs=1e-9)


def conditionals(model: DensityModel, x: Tensor) -> Tensor:
    """log P(byte | before) for all 256 bytes, positions in order: (B, H W C, 256); of pixelcnn++ for grey images."""
    if hasattr(model, "logits"):
        return model.logits(x).log_softmax(-1).reshape(len(x), -1, 256)
    p = model.parameters_of(x).permute(0, 2, 3, 1).flatten(0, 2)
    p = p.repeat_interleave(256, 0)[:, :, None, None]
    values = BYTES.repeat(len(p) // 256).reshape(-1, 1, 1, 1)
    return logistic_mixture_log_prob(values, p, model.mixtures).reshape(len(x), -1, 256)


@pytest.mark.parametrize(
    ("name", "shape"), [("pixelcnn", (1, 4, 4)), ("pixelcnn", (3, 1, 2)), ("pixelcnn++", (1, 4, 4))]
)
@torch.no_grad()
def test_samples_are_drawn_from_the_conditional_probabilities(name, shape):
    n = 800
    model = tiny(name, shape, double=True, scale=1.0)
    x = model.sample(n, Noise.of(torch.arange(n), seed=9))
    table = torch.cat([conditionals(model, part) for part in x.split(200)])
    byte = x.permute(0, 2, 3, 1).reshape(n, -1, 1).long()
    log_prob = torch.cat([model.log_prob(part, noise_of(len(part))) for part in x.split(200)])
    torch.testing.assert_close(log_prob, table.gather(-1, byte).sum((1, 2)), rtol=1e-9, atol=0)
    # -log P(x) minus the conditional entropies along x has mean 0 under the model itself.
    entropy = -(table.exp() * table).sum((1, 2))
    surprise = -log_prob - entropy
    error = float(surprise.std()) / math.sqrt(n)
    assert error < 0.4
    assert float(surprise.mean()) == pytest.approx(0, abs=4.5 * error)
    assert float(entropy.std()) > 1e-3  # what came before matters
    # Each position's cumulative probability is uniform, and independent of the others'.
    middle = table.exp().cumsum(-1).gather(-1, byte)[..., 0] - 0.5 * table.exp().gather(-1, byte)[..., 0]
    assert float((middle.mean(0) - 0.5).abs().max()) < 4.5 / math.sqrt(12 * n)
    correlations = torch.corrcoef(middle.T) - torch.eye(middle.shape[1])
    assert float(correlations.abs().max()) < 4.5 / math.sqrt(n)


@torch.no_grad()
def test_colour_samples_agree_with_the_probabilities():
    """E[Q(x) / P(x)] = 1 under P for another model Q of the same kind."""
    for name, shape, n in (("pixelcnn", (3, 1, 1), 2000), ("pixelcnn++", (3, 4, 4), 500)):
        model, other = (tiny(name, shape, double=True, scale=0.5) for _ in range(2))
        generator = torch.Generator().manual_seed(3)
        for parameter in other.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        x, noise = model.sample(n, Noise.of(torch.arange(n), seed=4)), noise_of(n)
        ratio = (other.log_prob(x, noise) - model.log_prob(x, noise)).exp()
        error = float(ratio.std()) / math.sqrt(n)
        assert 1e-5 < error < 0.05, name
        assert float(ratio.mean()) == pytest.approx(1, abs=4.5 * error), name


@torch.no_grad()
def test_probabilities_of_images_are_at_most_one():
    for name in ("pixelcnn", "pixelcnn++"):
        assert float(tiny(name).log_prob(some_images(8), noise_of(8)).max()) < 0
