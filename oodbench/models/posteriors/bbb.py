"""Bayes by Backprop (Blundell et al. 2015): independent Gaussians over weights, trained by reparameterisation."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oodbench.errors import OodbenchError
from oodbench.models import networks
from oodbench.models.nn import Linear
from oodbench.models.noise import Noise
from oodbench.models.posteriors.posterior import WeightPosterior

if TYPE_CHECKING:
    from oodbench.training.recipe import Recipe

__all__ = ["BBB"]


class BBB(WeightPosterior):
    """q(theta) = N(mean, softplus(rho)^2), trained on E_q[loss] + KL(q || N(0, prior_std^2 I)) / images.

    The means start at the trained weights, the scales at `start_std`. Linear layers use the local reparameterisation
    (Kingma et al. 2015, Equation 6): noise of their own for every row of a batch, of a much smaller variance. All
    other weights are drawn once a batch. Members are drawn from q at the end.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        model: str,
        config: Mapping[str, Any] | None = None,
        members: int = 10,
        part: str = "",
        prior_std: float = 1.0,
        start_std: float = 1e-3,
    ) -> None:
        super().__init__(shape, model, config, members, part)
        if prior_std <= 0 or start_std <= 0:
            raise OodbenchError("The scales of prior and start must be positive.")
        self.prior_std = prior_std
        start = math.log(math.expm1(start_std))
        self.rho = nn.ParameterList([torch.full_like(p, start) for p in self.random.values()])
        self.images = 1  # of the training set: the KL's share a batch

    def optimizer(self, recipe: "Recipe", images: int, seed: int) -> torch.optim.Optimizer:
        self.images, self.seed = images, seed
        return torch.optim.Adam([*self.random.values(), *self.rho], recipe.learning_rate)

    def rate(self, step: int, recipe: "Recipe") -> float:
        return 0.5 * (1 + math.cos(math.pi * step / recipe.steps))

    def scales(self) -> dict[str, Tensor]:
        """The standard deviation of every random weight, by name."""
        return {name: F.softplus(rho) for name, rho in zip(self.random, self.rho, strict=True)}

    def kl(self) -> Tensor:
        """KL(q(theta) || N(0, prior_std^2 I)) in nats."""
        terms = []
        for p, std in zip(self.random.values(), self.scales().values(), strict=True):
            ratio = std / self.prior_std
            terms.append((0.5 * (ratio.square() + (p / self.prior_std).square() - 1) - ratio.log()).sum())
        return torch.stack(terms).sum()

    def loss(self, x: Tensor, noise: Noise) -> Tensor:
        """The model's loss at weights drawn for this batch, and the KL's share of an image; nats (B,)."""
        with self._drawn(noise):
            return super().loss(x, noise) + self.kl() / self.images

    def collect_after(self, step: int, recipe: "Recipe", optimizer: torch.optim.Optimizer) -> None:
        if step == recipe.steps:
            generator, scales = torch.Generator().manual_seed(self.seed), self.scales()
            for _ in range(self.members):
                drawn = {}
                for name, p in self.random.items():
                    drawn[name] = p.detach() + scales[name] * torch.randn(p.shape, generator=generator).to(p)
                self.keep(drawn)

    @contextmanager
    def _drawn(self, noise: Noise) -> Iterator[None]:
        """Inside, `inner` computes with random weights: differentiable in means and scales."""
        scales, owners, handles = self.scales(), _owners(self.inner), []
        means = dict(self.random)
        for name, module in self.inner.named_modules():
            if isinstance(module, Linear | networks.Linear) and f"{name}.weight" in means:
                of_weight, of_bias = (scales[f"{name}.{part}"] for part in ("weight", "bias"))
                del means[f"{name}.weight"], means[f"{name}.bias"]
                handles.append(module.register_forward_hook(_local(module, name, of_weight, of_bias, noise)))
        try:
            for name, mean in means.items():
                # The same for a whole batch: the noise of its first image, which is a new one in every step.
                e = noise.rows(slice(0, 1)).normal(tuple(mean.shape), f"weight {name}")[0].to(mean)
                module, attribute = owners[name]
                module._parameters[attribute] = mean + scales[name] * e  # until below
            yield
        finally:
            for name in means:
                module, attribute = owners[name]
                module._parameters[attribute] = self.random[name]
            for handle in handles:
                handle.remove()


def _owners(inner: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Where each parameter lives, by its name."""
    return {
        f"{path}.{attribute}" if path else attribute: (module, attribute)
        for path, module in inner.named_modules()
        for attribute in module._parameters
    }


def _local(
    module: Linear | networks.Linear, name: str, of_weight: Tensor, of_bias: Tensor, noise: Noise
) -> Callable[..., Tensor]:
    """A hook that adds to x W' + b the noise that random W and b would: sqrt((x^2)' s_W^2 + s_b^2) e."""

    mask = module.mask if isinstance(module, Linear) else None

    def hook(_: nn.Module, arguments: tuple[Tensor], out: Tensor) -> Tensor:
        x = arguments[0].to(of_weight.dtype)
        variance = of_weight.square() if mask is None else of_weight.square() * mask
        spread = F.linear(x.square(), variance, of_bias.square()).clamp_min(1e-20).sqrt()
        rows = noise if len(out) == len(noise.index) else noise.expand(0, len(out) // len(noise.index))
        return out + (spread * rows.normal(tuple(out.shape[1:]), f"local {name}").to(spread)).to(out.dtype)

    return hook
