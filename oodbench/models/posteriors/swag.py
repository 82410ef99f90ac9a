"""SWAG (Maddox et al. 2019): a Gaussian fitted to the trajectory of stochastic gradient descent."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from oodbench.errors import OodbenchError
from oodbench.models.posteriors.posterior import WeightPosterior

if TYPE_CHECKING:
    from oodbench.training.recipe import Recipe

__all__ = ["SWAG"]


class SWAG(WeightPosterior):
    """theta = mean + diag^(1/2) e_1 / sqrt(2) + D e_2 / sqrt(2 (R - 1))            (Maddox et al. 2019, Equation 1).

    mean and diag are moments of the weights after every `every` steps of gradient descent at a constant rate, from the
    share `burn_in` on; D (d, R) their last `rank` deviations from the running mean; e_1 and e_2 standard normal.
    `scale` multiplies the covariance (1 in the paper). Members are drawn once, at the end.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        model: str,
        config: Mapping[str, Any] | None = None,
        members: int = 10,
        part: str = "",
        rank: int = 20,
        every: int = 10,
        burn_in: float = 0.2,
        momentum: float = 0.9,
        scale: float = 1.0,
    ) -> None:
        super().__init__(shape, model, config, members, part)
        if rank < 2 or every < 1:
            raise OodbenchError(f"SWAG keeps at least 2 deviations, one every 1 step or more, not {rank} and {every}.")
        if not 0 <= burn_in < 1:
            raise OodbenchError(f"The burn-in is a share of the steps, 0 to below 1, not {burn_in}.")
        self.rank, self.every, self.burn_in, self.momentum, self.scale = rank, every, burn_in, momentum, scale

    def optimizer(self, recipe: "Recipe", images: int, seed: int) -> torch.optim.Optimizer:
        self.seed = seed
        points = (recipe.steps - round(self.burn_in * recipe.steps)) // self.every
        if points < self.rank:
            raise OodbenchError(
                f"{recipe.steps} steps give {points} points of a trajectory, not {self.rank}: take more."
            )
        return torch.optim.SGD(self.random.values(), recipe.learning_rate, self.momentum)

    @torch.no_grad()
    def collect_after(self, step: int, recipe: "Recipe", optimizer: torch.optim.Optimizer) -> None:
        first = round(self.burn_in * recipe.steps)
        count, left = divmod(step - first, self.every)
        if step > first and left == 0:
            for p in self.random.values():
                # With the optimizer's state, so that it is in checkpoints and not in the weights.
                collect(optimizer.state[p], p, count, self.rank)
        if step == recipe.steps:
            if count < self.rank:
                raise OodbenchError(
                    f"{recipe.steps} steps give {max(0, count)} deviations, not {self.rank}: take more."
                )
            generator = torch.Generator().manual_seed(self.seed)
            for _ in range(self.members):
                low_rank = torch.randn(self.rank, generator=generator)
                self.keep(
                    {name: self._draw(optimizer.state[p], low_rank, generator) for name, p in self.random.items()}
                )

    def _draw(self, state: dict[str, Tensor], low_rank: Tensor, generator: torch.Generator) -> Tensor:
        mean, deviations = state["swag_mean"], state["swag_deviations"]
        own = torch.randn(mean.shape, generator=generator).to(mean)
        together = torch.tensordot(low_rank.to(mean), deviations, 1) / math.sqrt(2 * (self.rank - 1))
        moved = mean + math.sqrt(self.scale) * (state["swag_variance"].sqrt() * own / math.sqrt(2) + together)
        drawn: Tensor = state["swag_first"] + moved
        return drawn


def collect(state: dict[str, Any], p: Tensor, count: int, rank: int) -> None:
    """Takes the `count`-th (1, 2, ...) point of a trajectory into running moments and the last `rank` deviations.

    The moments are those of what the weights moved since the first point, by Welford's recursion: E[w^2] - E[w]^2 of
    float32 weights, which move by a thousandth of their size or less, would be little but rounding. float64 would not
    do: a checkpoint gives an optimizer's state back in the dtype of its weights.
    """
    if count == 1:
        state["swag_first"] = p.detach().clone()
        state["swag_mean"], state["swag_variance"] = torch.zeros_like(p), torch.zeros_like(p)
        state["swag_deviations"] = torch.zeros((rank, *p.shape), dtype=p.dtype, device=p.device)
    moved, mean = p.detach() - state["swag_first"], state["swag_mean"]
    before = moved - mean
    mean.add_(before, alpha=1 / count)
    deviation = moved - mean
    state["swag_variance"].lerp_(before * deviation, 1 / count)
    state["swag_deviations"][(count - 1) % rank] = deviation
