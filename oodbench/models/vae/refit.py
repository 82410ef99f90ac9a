"""An encoder fitted to every image apart: copies of its parameters, one an image, through all steps in one batch."""

import copy
from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oodbench.errors import OodbenchError
from oodbench.models import nn as layers
from oodbench.models.nn import network_dtype
from oodbench.models.noise import Noise
from oodbench.models.vae.latent import LatentModel, importance_weighted

__all__ = ["OneEach", "can_refit", "refit", "regret"]

MOST_IMAGES = 64  # at a time, as posteriors that search take no more in one part
COPIES_BYTES = 1 << 28  # of the copies, their gradients and Adam's two moments: so many images are refitted at a time

_CONVOLUTIONS: tuple[type[nn.Module], ...] = (layers.Convolution, nn.Conv2d)
_PRODUCTS: tuple[type[nn.Module], ...] = (layers.Linear, nn.Linear)


class OneEach(nn.Module):
    """A product or convolution with parameters of its own for each of B images: row b of the batch meets the b-th."""

    def __init__(self, layer: Any, images: int) -> None:
        super().__init__()
        weight, bias = layer.weight.detach(), layer.bias.detach()
        self.weight = nn.Parameter(weight.expand(images, *weight.shape).clone())
        self.bias = nn.Parameter(bias.expand(images, *bias.shape).clone())
        self.convolution = isinstance(layer, _CONVOLUTIONS)
        if self.convolution:
            self.padding, self.stride = _pair(layer.padding), _pair(layer.stride)
        self.ours = isinstance(layer, (layers.Convolution, layers.Linear))  # and not torch's

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs) -> (B, outputs), or (B, C, H, W) -> (B, outputs, H', W'), as of the layer."""
        if len(x) != len(self.weight):
            raise OodbenchError(f"An encoder refitted to {len(self.weight)} images takes each once, not {len(x)} rows.")
        dtype = network_dtype(self.weight) if self.ours else self.weight.dtype
        weight, bias, rows = self.weight.to(dtype), self.bias.to(dtype)[:, :, None], x.to(dtype)
        if not self.convolution:
            out = torch.baddbmm(bias, weight, rows[:, :, None])[:, :, 0]
            return out.to(x.dtype)
        kernel = _pair(tuple(weight.shape[3:]))
        columns = F.unfold(rows, kernel, padding=self.padding, stride=self.stride)
        out = torch.baddbmm(bias, weight.flatten(2), columns)
        height, width = ((x.shape[2 + k] + 2 * self.padding[k] - kernel[k]) // self.stride[k] + 1 for k in range(2))
        return out.reshape(*out.shape[:2], height, width)


def can_refit(model: Any) -> bool:
    """Whether a model has an `encoder` of layers that `OneEach` knows, and log P(x | z) of a draw has gradients there.

    From a posterior that runs a chain or draws codes there come none, and steps would better the divergence alone.
    """
    encoder = getattr(model, "encoder", None)
    if not (isinstance(model, LatentModel) and isinstance(encoder, nn.Module)):
        return False
    parameters = list(encoder.parameters())
    if not 0 < len(parameters) == sum(2 for layer in encoder.modules() if _known(layer)):
        return False
    x = torch.zeros(1, *model.shape, dtype=torch.uint8, device=model.device)
    noise = Noise.of(torch.zeros(1, dtype=torch.int64, device=model.device))
    with torch.enable_grad():
        z, _ = model.posterior(x, noise).draw(noise, 1)
        explained = model.log_px_given_z(x, z).sum()
        if not (z.requires_grad and explained.requires_grad):
            return False
        gradients = torch.autograd.grad(explained, parameters, allow_unused=True)
    return any(gradient is not None for gradient in gradients)


def refit(model: LatentModel, x: Tensor, noise: Noise, steps: int, rate: float, decay: float) -> LatentModel:
    """The model for these B images and no others: with an encoder each, after `steps` of Adam on its own bound.

    max over phi of E_{q_phi(z | x)}[log P(x | z) + log p(z) - log q_phi(z | x)], one draw a step, which are the draws
    after those of the estimate. `rate` is Adam's learning rate, `decay` the weight of its squared penalty. Decoder,
    prior and all else stand still, and `model` is left as it is.
    """
    encoder = _one_each(copy.deepcopy(cast(nn.Module, model.encoder)), len(x))
    refitted = copy.copy(model)
    refitted._modules = {**model._modules, "encoder": encoder}
    parameters = list(encoder.parameters())
    optimizer = torch.optim.Adam(parameters, lr=rate, weight_decay=decay, fused=True)
    for step in range(steps):
        bound = importance_weighted(refitted, x, noise.expand(model.draws + step, 1), 1)["elbo"]
        # Of a sum over images, each copy gets the gradient of its own image.
        for parameter, gradient in zip(parameters, torch.autograd.grad(-bound.sum(), parameters), strict=True):
            parameter.grad = gradient
        optimizer.step()
    return refitted


def regret(
    model: LatentModel, x: Tensor, noise: Noise, steps: int = 100, rate: float = 2e-4, decay: float = 5e-5
) -> Tensor:
    """By how much refitting raises the evidence bound, nats (B,), of uint8 (B, C, H, W); see `refit`.

    Both bounds are means over the same K draws. No number depends on the other images of the batch.
    """
    if len(x) == 0:
        return torch.zeros(0, device=x.device)
    return torch.cat([_regret(model, *part, steps, rate, decay) for part in _parts(model, x, noise)])


def _regret(model: LatentModel, x: Tensor, noise: Noise, steps: int, rate: float, decay: float) -> Tensor:
    before = importance_weighted(model, x, noise, model.draws)["elbo"]
    # Evaluation runs in inference mode, out of which no gradient comes.
    with torch.inference_mode(False), torch.enable_grad():
        refitted = refit(model, x.clone(), noise, steps, rate, decay)
        with torch.no_grad():
            return importance_weighted(refitted, x.clone(), noise, model.draws)["elbo"] - before


def _parts(model: LatentModel, x: Tensor, noise: Noise) -> Iterator[tuple[Tensor, Noise]]:
    """The batch, so many images at a time as memory is meant for."""
    parameters = cast(nn.Module, model.encoder).parameters()
    bytes_each = 4 * sum(p.numel() * p.element_size() for p in parameters)
    images = max(1, min(MOST_IMAGES, COPIES_BYTES // bytes_each))
    for first in range(0, len(x), images):
        rows = slice(first, first + images)
        yield x[rows], noise.rows(rows)


def _one_each(encoder: nn.Module, images: int) -> nn.Module:
    """The encoder, every layer with parameters replaced."""
    if _known(encoder):
        return OneEach(encoder, images)
    for name, child in encoder.named_children():
        setattr(encoder, name, _one_each(child, images))
    return encoder


def _known(layer: Any) -> bool:
    """Whether a layer is all that `OneEach` takes it for."""
    if type(layer) in _CONVOLUTIONS:
        plain = not isinstance(layer, nn.Conv2d) or (layer.groups, layer.dilation) == (1, (1, 1))
        return plain and layer.bias is not None and not isinstance(layer.padding, str)
    return type(layer) in _PRODUCTS and layer.bias is not None and getattr(layer, "mask", None) is None


def _pair(value: Any) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)
