"""An ensemble of independent trainings (Lakshminarayanan et al. 2017): the control of every posterior."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from oodbench.errors import OodbenchError
from oodbench.models.noise import Noise
from oodbench.models.posteriors.posterior import WeightPosterior

if TYPE_CHECKING:
    from oodbench.pretrained import TrainedModel
    from oodbench.training.recipe import Recipe

__all__ = ["Ensemble"]


class Ensemble(WeightPosterior):
    """Members are the model trained with the seeds s M, s M + 1, ..., s M + M - 1: nothing is trained beyond them.

    So ensembles of different seeds s share no member.
    """

    def seeds(self, seed: int) -> list[int]:
        if self.part:
            raise OodbenchError("An ensemble's members share nothing: leave out `part`.")
        return list(range(seed * self.members, (seed + 1) * self.members))

    def start(self, trained: "TrainedModel") -> None:
        super().start(trained)
        self.keep(self.random)

    def optimizer(self, recipe: "Recipe", images: int, seed: int) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.random.values(), 0.0)

    def collect_after(self, step: int, recipe: "Recipe", optimizer: torch.optim.Optimizer) -> None:
        """Its members are there from the start."""

    def refresh(self, batch: Callable[[int], tuple[Tensor, Noise]], batches: int) -> None:
        """They keep the statistics of their own trainings."""
