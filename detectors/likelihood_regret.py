"""Likelihood regret: how much better a posterior of its own explains an image than the encoder's guess."""

from typing import TYPE_CHECKING, Any

import numpy as np

from oodbench.detector import Columns, Detector
from oodbench.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from oodbench.models.noise import Noise
    from oodbench.models.vae.latent import LatentModel

__all__ = ["LikelihoodRegret", "regret"]

# As in the published code, which compares importance-weighted estimates of separate draws instead of bounds.
_ADAM = {"steps": 100, "rate": 2e-4, "decay": 5e-5}


def _applies(model: Any) -> bool:
    from oodbench.models.vae.refit import can_refit

    return can_refit(model)


@register.statistic("regret", parameters=_ADAM, applies=_applies)
def regret(model: "LatentModel", x: "Tensor", noise: "Noise") -> "Tensor":
    """What 100 steps of Adam on the encoder, for one image alone, add to its evidence bound

    Takes uint8 (B, C, H, W) and returns nats (B,).
    """
    from oodbench.models.vae import refit

    return refit.regret(model, x, noise, **_ADAM)


@register.detector("likelihood_regret")
class LikelihoodRegret(Detector):
    """max_q ELBO(x, q) - ELBO(x, q_encoder): the encoder refitted to the image alone, the decoder fixed

    Reference:
        Xiao et al., "Likelihood Regret: An Out-of-Distribution Detection Score for Variational Auto-encoder", NeurIPS
        2020, arXiv:2003.02977, Equation 5.
    """

    needs = ("regret",)
    most_images = 1000

    def score(self, columns: Columns) -> np.ndarray:
        """(N,) nats."""
        return columns["regret"].astype(np.float64)
