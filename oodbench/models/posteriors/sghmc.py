"""Stochastic-gradient Hamiltonian Monte Carlo (Chen et al. 2014), and Langevin dynamics as its limit."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from oodbench.errors import OodbenchError
from oodbench.models.posteriors.posterior import WeightPosterior

if TYPE_CHECKING:
    from oodbench.training.recipe import Recipe

__all__ = ["SGHMC", "SGLD", "HamiltonianDynamics"]


class HamiltonianDynamics(torch.optim.Optimizer):
    """v <- (1 - a) v - e grad U + N(0, 2 a e T),    theta <- theta + v       (Chen et al. 2014, Equation 15).

    U = `scale` times the loss whose gradient autograd left, plus |theta|^2 / (2 s^2) with the prior's scale s. e is
    `lr` / `scale`, so that `lr` is that of gradient descent with momentum 1 - a on the loss; a is the `friction`, T the
    `temperature`. With a = 1 it is stochastic-gradient Langevin dynamics (Welling & Teh 2011) with step 2 e. The noise
    is a function of (seed, step): a resumed chain is the same chain.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        scale: float,
        friction: float,
        temperature: float = 1.0,
        prior_std: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(parameters, {"lr": lr})
        self.scale, self.friction, self.temperature = scale, friction, temperature
        self.prior_std, self.seed = prior_std, seed

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            e = group["lr"] / self.scale
            for number, p in enumerate(group["params"]):
                state = self.state[p]
                if not state:
                    state["velocity"], state["step"] = torch.zeros_like(p), torch.zeros((), dtype=torch.int64)
                key = (self.seed * 1_000_003 + int(state["step"])) * 10_007 + number
                generator = torch.Generator(p.device).manual_seed(key)
                noise = torch.randn(p.shape, generator=generator, dtype=p.dtype, device=p.device)
                force = self.scale * p.grad + p / self.prior_std**2
                spread = math.sqrt(2 * self.friction * e * self.temperature)
                state["velocity"].mul_(1 - self.friction).add_(force, alpha=-e).add_(noise, alpha=spread)
                p.add_(state["velocity"])
                state["step"] += 1


class SGHMC(WeightPosterior):
    """Members are states of one chain of `HamiltonianDynamics` that starts at the trained weights.

    The first share `burn_in` of the steps is dropped, then every (rest / M)-th state is kept. `steps` is "constant", or
    "cyclic": M cosine cycles after the burn-in, each ending in a member (Zhang et al. 2020, Equation 1; with noise from
    a cycle's start on, where Algorithm 1 there may begin by descending without any).
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        model: str,
        config: Mapping[str, Any] | None = None,
        members: int = 10,
        part: str = "",
        friction: float = 0.1,
        burn_in: float = 0.3,
        steps: str = "constant",
        temperature: float = 1.0,
        prior_std: float = 1.0,
    ) -> None:
        super().__init__(shape, model, config, members, part)
        if not 0 < friction <= 1:
            raise OodbenchError(f"The friction is a number above 0 and at most 1 (Langevin dynamics), not {friction}.")
        if not 0 <= burn_in < 1:
            raise OodbenchError(f"The burn-in is a share of the steps, 0 to below 1, not {burn_in}.")
        if steps not in ("constant", "cyclic"):
            raise OodbenchError(f"Steps are 'constant' or 'cyclic', not {steps!r}.")
        if temperature < 0 or prior_std <= 0:
            raise OodbenchError("The temperature is at least 0, and the prior's scale positive.")
        self.friction, self.burn_in, self.steps = friction, burn_in, steps
        self.temperature, self.prior_std = temperature, prior_std

    def optimizer(self, recipe: "Recipe", images: int, seed: int) -> torch.optim.Optimizer:
        # The trainer's loss is nats per dimension: U is that of all images.
        scale = float(images * self.dimensions)
        return HamiltonianDynamics(
            self.random.values(), recipe.learning_rate, scale, self.friction, self.temperature, self.prior_std, seed
        )

    def rate(self, step: int, recipe: "Recipe") -> float:
        first = self._burnt(recipe)
        if self.steps == "constant" or step < first:
            return 1.0
        phase = (step - first) * self.members / (recipe.steps - first) % 1
        return 0.5 * (1 + math.cos(math.pi * phase))

    def collect_after(self, step: int, recipe: "Recipe", optimizer: torch.optim.Optimizer) -> None:
        first = self._burnt(recipe)
        due = (step - first) * self.members // (recipe.steps - first) if step > first else 0
        if due > int(self.kept):
            self.keep(self.random)

    def _burnt(self, recipe: "Recipe") -> int:
        first = round(self.burn_in * recipe.steps)
        if recipe.steps - first < self.members:
            raise OodbenchError(f"{recipe.steps} steps are too few for {self.members} members after the burn-in.")
        return first


class SGLD(SGHMC):
    """Stochastic-gradient Langevin dynamics: SGHMC whose velocity forgets everything (Welling & Teh 2011)."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        model: str,
        config: Mapping[str, Any] | None = None,
        members: int = 10,
        part: str = "",
        **options: Any,
    ) -> None:
        super().__init__(shape, model, config, members, part, friction=1.0, **options)
