"""Distributions of one 8-bit pixel given a network's output: a mixture of discretised logistics (Salimans et al. 2017).

    P(x) = sum_k pi_k prod_c [sigmoid((x_c + 1/2 - m_kc) / s_kc) - sigmoid((x_c - 1/2 - m_kc) / s_kc)]

with the lower edge of 0 and the upper edge of 255 at infinity, so that the 256 probabilities of a channel sum to 1. The
means of green and blue shift linearly with the channels before them, which makes a pixel's channels dependent.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from oodbench.errors import OodbenchError
from oodbench.models.nn import Convolution
from oodbench.models.noise import Noise

__all__ = [
    "logistic_expansion",
    "logistic_mixture_channels",
    "logistic_mixture_head",
    "logistic_mixture_log_density",
    "logistic_mixture_log_prob",
    "logistic_mixture_mean",
    "logistic_mixture_start",
    "sample_logistic_mixture",
]

_HALF_BIN = 1 / 255  # on the scale where 0 ... 255 is -1 ... 1
_MIN_LOG_SCALE = -7.0


def logistic_mixture_channels(channels: int, mixtures: int) -> int:
    """How many numbers a pixel needs: weight logits, means, log-scales and coupling coefficients.

    Raises `OodbenchError` for a mixture of nothing.
    """
    if mixtures < 1:
        raise OodbenchError(f"A mixture has at least 1 component, not {mixtures}.")
    return mixtures * (1 + 2 * channels + channels * (channels - 1) // 2)


def logistic_mixture_start(channels: int, mixtures: int) -> Tensor:
    """Parameters of one pixel (logistic_mixture_channels,) to start training from: components spread evenly.

    Components that start alike would stay alike; ones far narrower or wider than their gaps learn slowly.
    """
    start = torch.zeros(logistic_mixture_channels(channels, mixtures))
    means, scales = mixtures * (1 + channels), mixtures * (1 + 2 * channels)
    start[mixtures:means] = torch.linspace(-0.5, 0.5, mixtures + 2)[1:-1].repeat(channels)
    start[means:scales] = -1.5 - math.log(mixtures) / 2
    return start


def logistic_mixture_head(inputs: int, channels: int, mixtures: int) -> Convolution:
    """A 1x1 convolution to a mixture's parameters that gives `logistic_mixture_start` at first."""
    head = Convolution(inputs, logistic_mixture_channels(channels, mixtures), zero=True)
    with torch.no_grad():
        head.bias.copy_(logistic_mixture_start(channels, mixtures))
    return head


def logistic_mixture_log_prob(x: Tensor, parameters: Tensor, mixtures: int) -> Tensor:
    """log P of uint8 images (B, C, H, W) in nats (B,), from parameters (B, logistic_mixture_channels, H, W).

    With t = |x - m| / s and half a bin h = w / 2 in units of s, the difference of two sigmoids is

        2 sinh(h) e^-t / (1 + 2 cosh(h) e^-t + e^-2t),  sinh(h) = tanh(h) cosh(h),

    so that its logarithm is exact at any distance from the mean (no clamped probabilities, no differences of near
    numbers) and costs one exponential and one logarithm.
    """
    logits, means, log_scales, coefficients = _unpack(parameters, x.shape[1], mixtures)
    byte = x[:, :, None]  # (B, C, 1, H, W)
    value = byte.to(parameters.dtype) / 127.5 - 1
    inverse_scale = torch.exp(-log_scales)
    z = (value - _coupled(means, coefficients, value)) * inverse_scale
    half = _HALF_BIN * inverse_scale
    # 0 and 255 have one edge only: log sigmoid(a) = min(a, 0) - log(1 + exp(-|a|)) of a = z + h or h - z. Blended by
    # products, which run several times faster than choices by a mask.
    last = (byte == 255).to(z.dtype)
    edge = (byte == 0).to(z.dtype) + last
    inner = 1 - edge
    a = torch.addcmul((1 - 2 * last) * z, edge, half)  # z itself, where there are two edges
    distance = a.abs()
    decay = torch.exp(-distance)
    growth = torch.exp(half)
    twice_cosh = growth + 1 / growth
    numerator = torch.addcmul(edge, inner, torch.tanh(half) * twice_cosh)
    denominator = 1 + decay * (edge + inner * (twice_cosh + decay))
    log_probs = torch.log(numerator / denominator) - torch.addcmul(inner * distance, edge, torch.relu(-a))
    per_component = log_probs.sum(1)  # (B, K, H, W)
    if mixtures == 1:
        return per_component.sum((1, 2, 3))
    mixed = torch.logsumexp(per_component + logits, 1) - torch.logsumexp(logits, 1)
    return mixed.sum((1, 2))


def logistic_expansion(x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
    """First and second derivatives of log P(x) in the means and log-scales of one component, for Newton's method.

    Of uint8 images (B, C, H, W) and parameters (B, logistic_mixture_channels(C, 1), H, W); two of (B, 2 C, H, W), the
    means' first: the slope, and the curvature -d^2 log P. Means always curve downwards (logistics are log-concave);
    where a log-scale does not, or where it is held at its least, 0 stands for its curvature.
    """
    _, means, log_scales, coefficients = _unpack(parameters, x.shape[1], 1)
    byte = x[:, :, None]
    value = byte.to(parameters.dtype) / 127.5 - 1
    centred = value - _coupled(means, coefficients, value)
    inverse_scale = torch.exp(-log_scales)
    upper, lower = (centred + _HALF_BIN) * inverse_scale, (centred - _HALF_BIN) * inverse_scale
    first, last = byte == 0, byte == 255
    above, below = torch.sigmoid(-upper).masked_fill(last, 0.0), torch.sigmoid(lower).masked_fill(first, 0.0)
    width = (2 * _HALF_BIN * inverse_scale).clamp_min(1e-12)
    inside = (width / torch.expm1(width)).masked_fill(first | last, 0.0)  # -d/d log-scale of log(1 - exp(-width))
    spread_above, spread_below = above * (1 - above), below * (1 - below)
    slope_scale = lower * below - upper * above - inside
    curvature_scale = (
        upper.square() * spread_above + lower.square() * spread_below
        - upper * above + lower * below + inside * (width + inside - 1)
    )  # fmt: skip
    free = log_scales > _MIN_LOG_SCALE
    slope = torch.cat([(below - above) * inverse_scale, slope_scale * free], 1)
    curvature = torch.cat(
        [(spread_above + spread_below) * inverse_scale.square(), curvature_scale.clamp_min(0) * free], 1
    )
    return slope[:, :, 0], curvature[:, :, 0]


def logistic_mixture_log_density(value: Tensor, parameters: Tensor, mixtures: int) -> Tensor:
    """The log density in nats (B,) of continuous pixels (B, C, H, W) in -1 ... 1, where each logistic is a Gaussian.

    With the moments of the discretised logistic inside the range: the variance (pi s)^2 / 3 and that of a bin. For
    derivatives in x, which bytes have not.
    """
    logits, means, log_scales, coefficients = _unpack(parameters, value.shape[1], mixtures)
    value = value[:, :, None]
    variance = ((math.pi * log_scales.exp()).square() + _HALF_BIN**2) / 3
    centred = value - _coupled(means, coefficients, value)
    per_component = -0.5 * (centred.square() / variance + (2 * math.pi * variance).log()).sum(1)
    return (torch.logsumexp(per_component + logits, 1) - torch.logsumexp(logits, 1)).sum((1, 2))


def logistic_mixture_mean(parameters: Tensor, channels: int, mixtures: int) -> Tensor:
    """The mean image (B, C, H, W), 0 ... 255 as -1 ... 1, from parameters (B, logistic_mixture_channels, H, W).

    Of the logistics before they are rounded and cut off at the ends of the range: smooth in the parameters.
    """
    logits, means, _, coefficients = _unpack(parameters, channels, mixtures)
    value = means
    for _ in range(channels - 1):  # each turn makes one more channel right
        value = _coupled(means, coefficients, value)
    return (value * F.softmax(logits, 1)[:, None]).sum(2)


def sample_logistic_mixture(parameters: Tensor, channels: int, mixtures: int, noise: Noise, stream: str) -> Tensor:
    """uint8 (B, C, H, W), pixels independent given the parameters, channels in order."""
    logits, means, log_scales, coefficients = _unpack(parameters, channels, mixtures)
    shape = tuple(logits.shape[2:])
    # Numbers are drawn pixel by pixel, a pixel's components or channels next to each other.
    gumbel = -torch.log(-torch.log(noise.uniform((*shape, mixtures), f"{stream} component")))
    chosen = F.one_hot((logits + gumbel.permute(0, 3, 1, 2)).argmax(1), mixtures).to(parameters.dtype)
    u = noise.uniform((*shape, channels), f"{stream} value").permute(0, 3, 1, 2)
    logistic = torch.log(u) - torch.log1p(-u)
    chosen = chosen.permute(0, 3, 1, 2)[:, None]
    means, log_scales, coefficients = ((t * chosen).sum(2, True) for t in (means, log_scales, coefficients))
    value = torch.zeros_like(means)
    for c in range(channels):
        mean = _coupled(means, coefficients, value)[:, c, 0]
        drawn = mean + log_scales[:, c, 0].exp() * logistic[:, c]
        # Rounded to the grid at once: the next channel must see the byte that is kept.
        byte = ((drawn + 1) * 127.5).round().clamp(0, 255)
        value[:, c, 0] = byte / 127.5 - 1
    return ((value[:, :, 0] + 1) * 127.5).round().to(torch.uint8)


def _unpack(parameters: Tensor, channels: int, mixtures: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weight logits (B, K, H, W); means, log-scales (B, C, K, H, W); coefficients (B, C(C-1)/2, K, H, W).

    Pixels last, where arithmetic runs many times faster than on a few components.
    """
    parameters = parameters.contiguous()
    pairs = channels * (channels - 1) // 2
    logits, rest = parameters[:, :mixtures], parameters[:, mixtures:]
    rest = rest.reshape(len(rest), 2 * channels + pairs, mixtures, *rest.shape[2:])
    means, log_scales, coefficients = torch.split(rest, [channels, channels, pairs], 1)
    return logits, means, log_scales.clamp_min(_MIN_LOG_SCALE), torch.tanh(coefficients)


def _coupled(means: Tensor, coefficients: Tensor, value: Tensor) -> Tensor:
    """Means with the linear shift by earlier channels: m_c + sum_{d<c} a_cd x_d."""
    channels = means.shape[1]
    shifted = [means[:, :1]]
    pair = 0
    for c in range(1, channels):
        earlier = (coefficients[:, pair : pair + c] * value[:, :c]).sum(1, keepdim=True)
        shifted.append(means[:, c : c + 1] + earlier)
        pair += c
    return torch.cat(shifted, 1) if channels > 1 else means
