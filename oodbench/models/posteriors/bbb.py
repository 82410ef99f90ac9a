"""Bayes by Backprop (Blundell et al. 2015): independent Gaussians over weights, trained by reparameterisation."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oodbench.errors import OodbenchError
from oodbench.models.manifold.embedded import EmbeddedModel
from oodbench.models.nn import Linear
from oodbench.models.noise import Noise
from oodbench.models.posteriors.posterior import WeightPosterior

if TYPE_CHECKING:
    from oodbench.training.recipe import Recipe

__all__ = ["BBB"]

# Steps of Adam have the size of the learning rate, whatever the gradient's: 1e-4 is much for a weight of 0.05, and
# nothing for the logarithm of a scale, which has some nats to go from any start.
_PACE = 100.0


class BBB(WeightPosterior):
    """q(theta) = N(mean, std^2), trained on E_q[loss] + KL(q || N(0, prior_std^2 I)) / images (Blundell et al. 2015).

    The means start at the trained weights. std = start_std exp(100 rho) rather than the paper's softplus(rho): rho
    starts at 0, and one learning rate suits both. Linear layers use the local reparameterisation (Kingma et al. 2015,
    Equation 6): noise of their own for every row of a batch, of a much smaller variance. All other weights are drawn
    once a batch; so are all weights of a model on a surface, whose encoding, decoding and Jacobian belong to the same
    weights. Members are drawn from q at the end.
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
        self.prior_std, self.start_std = prior_std, start_std
        self.rho = nn.ParameterList([torch.zeros_like(p) for p in self.random.values()])
        self.images = 1  # of the training set: the KL's share a batch

    def optimizer(self, recipe: "Recipe", images: int, seed: int) -> torch.optim.Optimizer:
        self.images, self.seed = images, seed
        # The KL's gradient of one weight in the trainer's nats per dimension is 1 / (images * dimensions), 7e-9 for
        # CIFAR-10: less than Adam's usual epsilon, which would stop the scales that the images leave free.
        return torch.optim.Adam([*self.random.values(), *self.rho], recipe.learning_rate, eps=1e-15)

    def rate(self, step: int, recipe: "Recipe") -> float:
        return 0.5 * (1 + math.cos(math.pi * step / recipe.steps))

    def scales(self) -> dict[str, Tensor]:
        """The standard deviation of every random weight, by name."""
        return {name: self.start_std * (_PACE * rho).exp() for name, rho in zip(self.random, self.rho, strict=True)}

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
        try:
            for name, mean in self.random.items():
                # The same for a whole batch: the noise of its first image, which is a new one in every step.
                e = noise.rows(slice(0, 1)).normal(tuple(mean.shape), f"weight {name}")[0].to(mean)
                module, attribute = owners[name]
                module._parameters[attribute] = mean + scales[name] * e  # until below
            # A surface's layers run both ways, and under torch.func, where NumPy cannot draw a row's noise.
            local = () if isinstance(self.inner, EmbeddedModel) else self.inner.named_modules()
            for path, module in local:
                if isinstance(module, Linear) and f"{path}.weight" in self.random:
                    means = {key: self.random[f"{path}.{key}"] for key in _PARTS if f"{path}.{key}" in self.random}
                    stds = {key: scales[f"{path}.{key}"] for key in means}
                    # Drawn above all the same: some models read the weights of a layer that they do not call.
                    handles.append(module.register_forward_pre_hook(_at(means)))
                    handles.append(module.register_forward_hook(_local(path, stds, dict(module._parameters), noise)))
            yield
        finally:
            for name, mean in self.random.items():
                module, attribute = owners[name]
                module._parameters[attribute] = mean
            for handle in handles:
                handle.remove()


_PARTS = ("weight", "bias")  # of a linear layer


def _owners(inner: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Where each parameter lives, by its name."""
    return {
        f"{path}.{attribute}" if path else attribute: (module, attribute)
        for path, module in inner.named_modules()
        for attribute in module._parameters
    }


def _at(means: Mapping[str, Tensor]) -> Callable[..., None]:
    """A hook before a layer that puts the means in the place of the drawn weights."""

    def hook(module: nn.Module, _: tuple[Tensor]) -> None:
        module._parameters.update(means)  # type: ignore[arg-type]  # a tensor does as well

    return hook


def _local(
    name: str, stds: Mapping[str, Tensor], drawn: Mapping[str, Tensor | None], noise: Noise
) -> Callable[..., Tensor]:
    """A hook that adds to x W' + b the noise that random W and b would: sqrt((x^2)' s_W^2 + s_b^2) e.

    Without s_b the bias is none or fixed. The drawn weights come back.
    """

    def hook(module: nn.Module, arguments: tuple[Tensor], out: Tensor) -> Tensor:
        module._parameters.update(drawn)  # type: ignore[arg-type]
        weight, bias = stds["weight"].square(), stds.get("bias")
        if isinstance(module, Linear) and module.mask is not None:
            weight = weight * module.mask
        x = arguments[0].to(weight.dtype)
        spread = F.linear(x.square(), weight, None if bias is None else bias.square()).clamp_min(1e-20).sqrt()
        rows = noise if len(out) == len(noise.index) else noise.expand(0, len(out) // len(noise.index))
        return out + (spread * rows.normal(tuple(out.shape[1:]), f"local {name}").to(spread)).to(out.dtype)

    return hook
