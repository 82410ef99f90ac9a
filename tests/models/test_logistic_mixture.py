"""The discretised logistic mixture is a distribution on bytes, the right one, and its sampler draws from it."""

import math

import pytest
import torch
from torch import Tensor

from oodbench.models.likelihoods import (
    logistic_mixture_channels,
    logistic_mixture_head,
    logistic_mixture_log_prob,
    sample_logistic_mixture,
)
from oodbench.models.noise import Noise

BYTES = torch.arange(256, dtype=torch.uint8)


def parameters(
    channels: int,
    mixtures: int,
    seed: int,
    spread: float = 1.0,
    log_scale: float = -2.0,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """One pixel's (1, P, 1, 1): means of standard deviation `spread`, log-scales around `log_scale`."""
    generator = torch.Generator().manual_seed(seed)
    p = torch.randn(logistic_mixture_channels(channels, mixtures), generator=generator, dtype=torch.float64)
    means, log_scales = (slice(mixtures * (1 + i * channels), mixtures * (1 + (i + 1) * channels)) for i in range(2))
    p[means] *= spread
    p[log_scales] += log_scale
    return p.to(dtype).reshape(1, -1, 1, 1)


def log_probs(pixels: Tensor, p: Tensor, mixtures: int) -> Tensor:
    """log P of pixels uint8 (N, C), all with the same parameters."""
    return logistic_mixture_log_prob(pixels[:, :, None, None], p.expand(len(pixels), -1, -1, -1), mixtures)


def pairs() -> Tensor:
    """All (256^2, 2) values of two channels."""
    return torch.cartesian_prod(BYTES, BYTES)


@pytest.mark.parametrize("mixtures", [1, 4])
@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("log_scale", [-20.0, -7.0, -3.0, 0.0, 5.0])
def test_the_256_probabilities_sum_to_one(mixtures, spread, log_scale):
    for seed in range(5):
        double = log_probs(BYTES[:, None], parameters(1, mixtures, seed, spread, log_scale), mixtures)
        single = log_probs(BYTES[:, None], parameters(1, mixtures, seed, spread, log_scale, torch.float32), mixtures)
        assert double.isfinite().all()
        assert single.isfinite().all()
        assert float(double.exp().sum()) == pytest.approx(1, abs=1e-10)
        assert float(single.double().exp().sum()) == pytest.approx(1, abs=1e-5 if log_scale > -7 else 1e-4)


def test_each_probability_is_a_difference_of_cumulative_probabilities():
    mixtures = 3
    p = parameters(1, mixtures, seed=1)
    weights, means, log_scales = p.flatten().split(mixtures)
    edges = (torch.arange(257, dtype=torch.float64) - 0.5) / 127.5 - 1
    edges[0], edges[-1] = -math.inf, math.inf
    cumulative = torch.sigmoid((edges[:, None] - means) / log_scales.exp()) @ weights.softmax(0)
    torch.testing.assert_close(log_probs(BYTES[:, None], p, mixtures).exp(), cumulative.diff(), rtol=1e-9, atol=1e-14)


def test_far_from_the_mean_the_logarithm_falls_linearly_instead_of_becoming_minus_infinity():
    log_scale, mean = -5.0, 200.0  # thousands of scales above every byte
    p = torch.tensor([0.0, mean, log_scale], dtype=torch.float64).reshape(1, 3, 1, 1)
    values = BYTES[1:255, None]
    upper = (values.double() / 127.5 - 1 + 1 / 255 - mean) * math.exp(-log_scale)
    # sigmoid(t) is exp(t) there, so that the difference is exp(upper) - exp(lower).
    expected = upper + math.log1p(-math.exp(-2 / 255 * math.exp(-log_scale)))
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        torch.testing.assert_close(log_probs(values, p.to(dtype), 1).double(), expected[:, 0], rtol=tolerance, atol=0)
    assert float(log_probs(BYTES[-1:, None], p, 1)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("byte", [0, 100, 127, 254, 255])
def test_the_slope_is_right_where_the_mean_lies_on_an_edge_of_the_bin(byte: int) -> None:
    """There the two sides of absolute values and maxima meet."""
    value, half, log_scale = byte / 127.5 - 1, 1 / 255, -3.0
    p = torch.tensor([[0.0, value + side, log_scale] for side in (-half, 0.0, half)], dtype=torch.float64)
    p = p.reshape(3, 3, 1, 1).requires_grad_()
    x = torch.full((3, 1, 1, 1), byte, dtype=torch.uint8)
    (slope,) = torch.autograd.grad(logistic_mixture_log_prob(x, p, 1).sum(), p)
    mean = p[:, 1, 0, 0].detach()
    below = torch.sigmoid((value - half - mean) / math.exp(log_scale)) if byte > 0 else torch.zeros(3)
    above = torch.sigmoid((mean - value - half) / math.exp(log_scale)) if byte < 255 else torch.zeros(3)
    expected = (below - above) * math.exp(-log_scale)  # d log [F(upper) - F(lower)] / d mean, F a logistic's
    torch.testing.assert_close(slope[:, 1, 0, 0], expected.double(), rtol=1e-9, atol=1e-9)


def test_all_pairs_of_two_channels_sum_to_one_and_the_channels_depend_on_each_other():
    mixtures = 3
    for seed, log_scale in ((0, -1.0), (1, -3.0), (2, -5.0)):
        p = parameters(2, mixtures, seed, log_scale=log_scale)
        joint = log_probs(pairs(), p, mixtures).exp().reshape(256, 256)
        assert float(joint.sum()) == pytest.approx(1, abs=1e-10)
        independent = joint.sum(1)[:, None] * joint.sum(0)[None]
        assert float((joint - independent).abs().sum()) > 0.05


@pytest.mark.parametrize("mixtures", [1, 3])
def test_summing_over_blue_leaves_the_distribution_of_red_and_green(mixtures):
    p = parameters(3, mixtures, seed=5).flatten()
    weights, rest = p[:mixtures], p[mixtures:].reshape(9, mixtures)  # 3 means, 3 log-scales, 3 couplings
    two = torch.cat([weights, rest[[0, 1, 3, 4, 6]].flatten()]).reshape(1, -1, 1, 1)
    for red, green in ((0, 0), (255, 0), (128, 30), (97, 255), (180, 181)):
        front = torch.tensor([[red, green]], dtype=torch.uint8)
        total = log_probs(torch.cat([front.expand(256, 2), BYTES[:, None]], 1), p.reshape(1, -1, 1, 1), mixtures)
        assert float(total.logsumexp(0)) == pytest.approx(float(log_probs(front, two, mixtures)), abs=1e-10)


def test_an_image_is_the_product_of_its_pixels():
    p = torch.cat([parameters(3, 2, seed) for seed in range(12)]).reshape(2, 2, 3, -1).permute(0, 3, 1, 2)
    x = torch.randint(0, 256, (2, 3, 2, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    single = [
        [logistic_mixture_log_prob(x[:, :, i : i + 1, j : j + 1], p[:, :, i : i + 1, j : j + 1], 2) for j in range(3)]
        for i in range(2)
    ]
    torch.testing.assert_close(logistic_mixture_log_prob(x, p, 2), sum(map(sum, single)), rtol=1e-12, atol=0)


def chi_square(counts: Tensor, probabilities: Tensor) -> float:
    """Pearson's statistic in standard deviations from its mean; cells that expect fewer than 5 are put together."""
    expected = probabilities * counts.sum()
    rare = expected < 5
    counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    statistic = float(((counts - expected) ** 2 / expected.clamp_min(1e-9)).sum())
    freedom = len(expected) - 1
    return (statistic - freedom) / math.sqrt(2 * freedom)


def draw(p: Tensor, channels: int, mixtures: int, n: int) -> Tensor:
    """n samples of one pixel, int64 (n, C)."""
    noise = Noise.of(torch.arange(n), seed=1)
    x = sample_logistic_mixture(p.expand(n, -1, -1, -1), channels, mixtures, noise, "pixel")
    assert x.dtype == torch.uint8
    assert x.shape == (n, channels, 1, 1)
    return x.reshape(n, channels).long()


@pytest.mark.parametrize(("spread", "log_scale"), [(1.0, -2.0), (0.3, -4.0), (2.0, 0.0), (0.1, -9.0)])
def test_samples_of_one_channel_have_the_frequencies_of_their_probabilities(spread, log_scale):
    p = parameters(1, 3, seed=8, spread=spread, log_scale=log_scale)
    counts = torch.bincount(draw(p, 1, 3, 40_000)[:, 0], minlength=256).double()
    assert abs(chi_square(counts, log_probs(BYTES[:, None], p, 3).exp())) < 4.5


def test_samples_of_two_channels_have_the_frequencies_of_their_joint_probabilities():
    p = parameters(2, 2, seed=3, spread=0.5)
    red, green = draw(p, 2, 2, 40_000).unbind(1)
    counts = torch.bincount((red // 16) * 16 + green // 16, minlength=256).double()
    joint = log_probs(pairs(), p, 2).exp().reshape(16, 16, 16, 16).sum((1, 3)).flatten()
    assert abs(chi_square(counts, joint)) < 4.5


def test_samples_of_three_channels_agree_with_their_probabilities():
    """E[Q(x) / P(x)] = 1 under P for every other distribution Q, here one with slightly other parameters."""
    for seed in range(4):
        p = parameters(3, 2, seed, spread=0.5)
        x = draw(p, 3, 2, 20_000).to(torch.uint8)
        for column in range(0, p.shape[1], 3):
            other = p.clone()
            other[0, column] += 0.15
            ratio = (log_probs(x, other, 2) - log_probs(x, p, 2)).exp()
            error = float(ratio.std()) / math.sqrt(len(x))
            assert float(ratio.mean()) == pytest.approx(1, abs=4.5 * error + 1e-9)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_fresh_head_is_neither_far_from_images_nor_symmetric_in_its_components(channels):
    head = logistic_mixture_head(7, channels, 5)
    p = head(torch.randn(1, 7, 1, 1)).detach().double()
    probabilities = log_probs(BYTES[:, None].expand(256, channels), p, 5) / channels
    assert float(-probabilities.mean()) / math.log(2) < 12  # bits a channel: uniform would have 8
    means = p.flatten()[5 : 5 * (1 + channels)].reshape(channels, 5)
    assert float(means.diff(dim=1).min()) > 0.05
