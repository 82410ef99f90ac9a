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
    "by_image",
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
_FAR = 1e30  # an edge at infinity that still can be multiplied by 0


def by_image(x: Tensor, parameters: Tensor) -> Tensor:
    """(B, k, ...) of (B * k, ...): the k of every image of (B, ...)."""
    return parameters.reshape(len(x), len(parameters) // max(1, len(x)), *parameters.shape[1:])


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
    """log P in nats (n,) of uint8 images (B, C, H, W), from parameters (n, logistic_mixture_channels, H, W).

    n is a multiple of B: an image has as many sets of parameters as any other, one after another.

    With the distances a = (m - upper) / s and b = (lower - m) / s of the mean from the bin's two edges, each positive
    beyond its edge, and half a bin h in units of s, the difference of two sigmoids is

        sigmoid(-a) sigmoid(-b) (1 - e^-2h),    1 - e^-2h = tanh(h) / sigmoid(2h),

    so that its logarithm is exact at any distance from the mean (no clamped probabilities, no differences of near
    numbers). An edge at infinity is a number so large that its sigmoid is 1 whatever m and s are. Sigmoids are by far
    the cheapest of the functions with an exponential inside; a logarithm of each factor would cost most.
    """
    logits, means, log_scales, coefficients = _unpack(by_image(x, parameters), x.shape[1], mixtures)
    value, lower, upper, half = (t[:, None, :, None] for t in _bins(x, parameters.dtype))  # (B, 1, C, 1, H, W)
    centres = _coupled(means, coefficients, value)
    inverse_scale = torch.exp(-log_scales)
    over, under = (centres - upper) * inverse_scale, (lower - centres) * inverse_scale
    width = half * inverse_scale
    # log sigmoid(-a) = log sigmoid(|a|) - (|a| + a) / 2, whose gradient is right at 0 too.
    of_over, of_under = over.abs(), under.abs()
    near = torch.sigmoid(of_over) * torch.sigmoid(of_under) * (torch.tanh(width) / torch.sigmoid(2 * width))
    log_probs = torch.sub(near.log(), (of_over + over) + (of_under + under), alpha=0.5)
    if mixtures == 1:
        of_columns = log_probs.sum(-2).flatten(2)
    else:
        of_pixels = torch.logsumexp(log_probs.sum(2) + logits, 2) - torch.logsumexp(logits, 2)
        of_columns = of_pixels.sum(-2)
    # Exactly, once they are few: at thousands of nats two float32 are 0.0001 apart.
    return of_columns.double().sum(2).to(parameters.dtype).flatten()


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


def _bins(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of bytes: their values on -1 ... 1, both edges of their bins, and half the bins' widths."""
    value = x.to(dtype) / 127.5 - 1
    first, last = x == 0, x == 255
    lower = (value - _HALF_BIN).masked_fill(first, -_FAR)
    upper = (value + _HALF_BIN).masked_fill(last, _FAR)
    return value, lower, upper, torch.full_like(value, _HALF_BIN).masked_fill(first | last, _FAR)


def _unpack(parameters: Tensor, channels: int, mixtures: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of (..., P, H, W): weight logits (..., K, H, W); means, log-scales (..., C, K, H, W); coefficients
    (..., C(C-1)/2, K, H, W).

    The logit of one component alone says nothing: it may be left out, and 0 stands for it. Pixels last, where
    arithmetic runs many times faster than on a few components.
    """
    parameters = parameters.contiguous()
    pairs = channels * (channels - 1) // 2
    numbers = mixtures * (2 * channels + pairs)
    logits, rest = torch.split(parameters, [parameters.shape[-3] - numbers, numbers], -3)
    if mixtures == 1:
        logits = parameters.new_zeros(()).expand(*parameters.shape[:-3], 1, *parameters.shape[-2:])
    rest = rest.reshape(*rest.shape[:-3], 2 * channels + pairs, mixtures, *rest.shape[-2:])
    means, log_scales, coefficients = torch.split(rest, [channels, channels, pairs], -4)
    return logits, means, log_scales.clamp_min(_MIN_LOG_SCALE), torch.tanh(coefficients)


def _coupled(means: Tensor, coefficients: Tensor, value: Tensor) -> Tensor:
    """Means with the linear shift by earlier channels: m_c + sum_{d<c} a_cd x_d."""
    channels = means.shape[-4]
    if channels == 1:
        return means
    of_channels, of_pairs, earlier = means.unbind(-4), coefficients.unbind(-4), value.unbind(-4)
    shifted, pair = [of_channels[0]], 0
    for c in range(1, channels):
        shifted.append(of_channels[c] + sum(of_pairs[pair + d] * earlier[d] for d in range(c)))
        pair += c
    return torch.stack(shifted, -4)
