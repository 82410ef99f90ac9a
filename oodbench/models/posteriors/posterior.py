"""What posteriors over weights share: M stacked weights of one architecture, evaluated in one pass over the images."""

import copy
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from oodbench.errors import OodbenchError
from oodbench.models.base import DensityModel
from oodbench.models.configuration import check_configuration
from oodbench.models.nn import folded
from oodbench.models.noise import Noise
from oodbench.models.vae.latent import DECODER_ROWS, LatentModel, importance_weighted_members
from oodbench.models.vae.networks import DenseDecoder, DenseDecoders
from oodbench.models.vae.vae import VAE
from oodbench.registry import MODELS

if TYPE_CHECKING:
    from oodbench.pretrained import TrainedModel
    from oodbench.training.recipe import Recipe

__all__ = ["WeightPosterior"]

_MANY = 64  # latents, of which on members run faster one after the other: each fills the cores of a CPU


class WeightPosterior(DensityModel):
    """p(x) = 1/M sum_m p(x | theta_m) of `members` M weights theta_m of the registered `model` built with `config`.

    Random are the parameters of `part` ("decoder" or "decoder.layers.0", say; all by default); the others stay those of
    `inner`, which holds the point estimate that sampling starts from. Buffers that are saved with such a part are each
    member's own too. `log_px_members` (B, M) are the members' log p(x | theta_m) in nats, all from the same
    dequantisation noise and importance draws; `log_px` is the logarithm of their mean.

    To add one: subclass, write `optimizer` and `collect_after`, which calls `keep`, and `loss` where it is not the
    model's.
    """

    columns = ("log_px", "log_px_members")

    def __init__(
        self,
        shape: tuple[int, int, int],
        model: str,
        config: Mapping[str, Any] | None = None,
        members: int = 10,
        part: str = "",
    ) -> None:
        super().__init__(shape)
        if members < 1:
            raise OodbenchError(f"A posterior has at least one member, not {members}.")
        build = MODELS.get(model)
        check_configuration(model, build, config or {})
        self.inner: DensityModel = build(shape, **(config or {}))
        if isinstance(self.inner, WeightPosterior):
            raise OodbenchError(f"{model} is a posterior already: name the density model itself.")
        self.model, self.part, self.members = model, part, members
        self.random = {name: p for name, p in self.inner.named_parameters() if _within(name, part)}
        if not self.random:
            there = sorted({name.partition(".")[0] for name, _ in self.inner.named_parameters()})
            raise OodbenchError(f"{model} has no part {part!r}: take one of {', '.join(there)}.")
        for name, parameter in self.inner.named_parameters():
            parameter.requires_grad_(name in self.random)
        saved = self.inner.state_dict().keys()
        self._saved = [name for name, _ in self.inner.named_buffers() if name in saved and _within(name, part)]
        for name, tensor in {**self.random, **self._saved_buffers()}.items():
            self.register_buffer(_key(name), tensor.detach().expand(members, *tensor.shape).clone())
        self.kept: Tensor  # how many members are there
        self.register_buffer("kept", torch.zeros((), dtype=torch.int64))
        self.likelihood, self.version = self.inner.likelihood, self.inner.version
        self.remark = ", ".join(filter(None, [self.inner.remark, f"M = {members}"]))

    def stack(self, name: str) -> Tensor:
        """(M, ...): the members' values of one random parameter, or of a buffer of the part."""
        return self.get_buffer(_key(name))

    @torch.no_grad()
    def keep(self, weights: Mapping[str, Tensor]) -> None:
        """Makes these values of the random parameters the next member, with the buffers that `inner` has now."""
        member = int(self.kept)
        if member == self.members:
            raise OodbenchError(f"All {self.members} members are there already.")
        buffers = self._saved_buffers()
        for name in (*self.random, *buffers):
            self.stack(name)[member] = weights[name] if name in self.random else buffers[name]
        self.kept += 1

    def _saved_buffers(self) -> dict[str, Tensor]:
        buffers = dict(self.inner.named_buffers())
        return {name: buffers[name] for name in self._saved}

    @folded
    def models(self) -> list[DensityModel]:
        """One model a member, whose parameters are views of the stacks; while there is none, `inner` alone."""
        if not int(self.kept):
            return [self.inner]
        models = []
        for member in range(int(self.kept)):
            memo: dict[int, Any] = {id(p): p for p in self.inner.parameters()}  # fixed ones are shared, not copied
            memo |= {id(p): torch.nn.Parameter(self.stack(name)[member], False) for name, p in self.random.items()}
            memo |= {id(b): b for b in self.inner.buffers()}
            memo |= {id(b): self.stack(name)[member] for name, b in self._saved_buffers().items()}
            models.append(copy.deepcopy(self.inner, memo).eval())
        return models

    def log_px_members(self, x: Tensor, noise: Noise) -> Tensor:
        """(B, M) nats of uint8 (B, C, H, W)."""
        models = self.models()
        first = models[0]
        shared = all(name.startswith("decoder.") for name in (*self.random, *self._saved))
        if shared and isinstance(first, LatentModel) and first.encoder_alone:
            return importance_weighted_members(first, self.decoders(), x, noise, first.draws)
        return torch.stack([model.log_prob(x, noise) for model in models], 1)

    @folded
    def decoders(self) -> list[Callable[[Tensor, Tensor], Tensor]]:
        """(x, z) -> log P(x | z, theta_m) (m, n): one each of convolutions, all fully connected ones at once."""
        models = cast("list[LatentModel]", self.models())
        first = models[0]
        if isinstance(first, VAE) and isinstance(first.decoder, DenseDecoder):
            return [_together(cast("list[VAE]", models))]
        return [_alone(model) for model in models]

    def statistics(self, x: Tensor, noise: Noise) -> dict[str, Tensor]:
        of_members = self.log_px_members(x, noise)
        return {"log_px": torch.logsumexp(of_members, 1) - math.log(of_members.shape[1]), "log_px_members": of_members}

    def statistic_parameters(self) -> dict[str, Any]:
        return {**self.inner.statistic_parameters(), "members": self.members}

    def loss(self, x: Tensor, noise: Noise) -> Tensor:
        """The model's own, at the weights where the chain is now."""
        self.inner.progress = 1.0  # no warm-up: it was trained before
        return self.inner.loss(x, noise)

    def sample(self, n: int, noise: Noise) -> Tensor:
        """Each image from one member, drawn by its own noise."""
        models = self.models()
        member = (noise.uniform((), "member") * len(models)).long().clamp_max(len(models) - 1)
        out = torch.empty((n, *self.shape), dtype=torch.uint8, device=self.device)
        for m, model in enumerate(models):
            mine = (member == m).nonzero().flatten()
            if len(mine):
                out[mine] = model.sample(len(mine), Noise(noise.seed, noise.index[mine], noise.draw[mine]))
        return out

    def seeds(self, seed: int) -> list[int]:
        """The seeds of the trainings whose weights `start` takes, one after the other."""
        return [seed]

    def start(self, trained: "TrainedModel") -> None:
        """Begins at the weights of a trained model."""
        try:
            self.inner.load_state_dict(trained.module.state_dict())
        except RuntimeError as error:
            raise OodbenchError(
                f"The weights of {trained.name} on {trained.dataset} have another size than the recipe: train it again."
            ) from error

    @torch.no_grad()
    def refresh(self, batch: Callable[[int], tuple[Tensor, Noise]], batches: int) -> None:
        """Makes batch normalisation's statistics those of each member's weights (Maddox et al. 2019, Algorithm 1).

        They are means over so many `batches` of training images and their noise, `batch(0)` first.
        """
        for model in self.models():
            layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm)]
            if not layers:
                return
            for layer in layers:
                layer.reset_running_stats()
                layer.momentum = None  # a plain mean
                layer.train()
            for k in range(batches):
                model.loss(*batch(k))

    def optimizer(self, recipe: "Recipe", images: int, seed: int) -> torch.optim.Optimizer:
        """What moves `random` from batch to batch, of so many training images."""
        raise NotImplementedError(f"{type(self).__name__} must define optimizer().")

    def rate(self, step: int, recipe: "Recipe") -> float:
        """The share of the recipe's learning rate at a step: constant by default."""
        return 1.0

    def collect_after(self, step: int, recipe: "Recipe", optimizer: torch.optim.Optimizer) -> None:
        """Called when `step` updates are done: keeps members, all of them by the last."""
        raise NotImplementedError(f"{type(self).__name__} must define collect_after().")


def _alone(model: LatentModel) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, z: model.log_px_given_z(x, z)[None]


def _together(models: list[VAE]) -> Callable[[Tensor, Tensor], Tensor]:
    decoders, pixel = DenseDecoders([cast(DenseDecoder, model.decoder) for model in models]), models[0].pixel

    def log_px_given_z(x: Tensor, z: Tensor) -> Tensor:
        if z.device.type == "cpu" and len(z) >= _MANY:
            return torch.stack([model.log_px_given_z(x, z) for model in models])
        most, found = max(1, DECODER_ROWS // len(z)), []  # members at a time: bounds memory whatever M is
        for first in range(0, len(models), most):
            parameters = decoders(z, slice(first, first + most))
            repeated = x.expand(len(parameters), *x.shape).flatten(0, 1)
            found.append(pixel.log_prob(repeated, parameters.flatten(0, 1)).reshape(-1, len(z)))
        return torch.cat(found)

    return log_px_given_z


def _within(name: str, part: str) -> bool:
    """Whether a parameter or buffer is the part or below it, by whole steps of its dotted name."""
    return not part or f"{name}.".startswith(f"{part}.")


def _key(name: str) -> str:
    return "members/" + name.replace(".", "/")  # a buffer's name has no dots
