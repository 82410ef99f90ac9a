"""The VAE whose posterior inverse autoregressive flow refines (Kingma et al. 2016)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oodbench.errors import OodbenchError
from oodbench.models.flows.networks import MLP
from oodbench.models.noise import Noise
from oodbench.models.vae.networks import require_projection
from oodbench.models.vae.posteriors import Posterior
from oodbench.models.vae.refined import Refined
from oodbench.models.vae.vae import DenseVAE

__all__ = ["GatedStep", "InverseAutoregressiveVAE"]

BIAS = 2.0  # of the gates: sigmoid(2) = 0.88 of z is kept at the start (Kingma et al. 2016, Section 4: +1 or +2)


class GatedStep(nn.Module):
    """z' = g z + (1 - g) m, g = sigmoid(s + 2), where m_i and s_i depend on z_1 ... z_{i-1} and the context.

    As of Kingma et al. 2016, Algorithm 1. The masked network (Germain et al. 2015) is zero at the start. `reverse`
    turns the order of the numbers round.
    """

    def __init__(self, latents: int, context: int, hidden: int, reverse: bool) -> None:
        super().__init__()
        place = torch.arange(latents)
        # Hidden units of rank r see the context and the first r + 1 numbers: the context alone steers the first number.
        within = torch.arange(hidden) * latents // hidden - 1
        if reverse:
            place = place.flip(0)
        ranks = (torch.cat([torch.full((context,), -1), place]), within, (place - 1).repeat(2))
        self.network = MLP(context + latents, hidden, 2 * latents, 1, ranks)

    def forward(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """(z' (N, d), log|det dz'/dz| (N,) in nats) of z (N, d) and the context (N, context)."""
        shift, logit = self.network(torch.cat([context, z], 1)).chunk(2, 1)
        logit = logit + BIAS
        return torch.lerp(shift, z, logit.sigmoid()), F.logsigmoid(logit).sum(1)


class InverseAutoregressiveVAE(DenseVAE):
    """`steps` steps of IAF on a draw of the encoder's Gaussian (Kingma et al. 2016, Algorithm 1), orders alternating.

    The encoder gives them `context` numbers; `width` is that of their networks. `log_px` is a lower bound as of any
    VAE.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        latents: int = 32,
        hidden: int = 400,
        mixtures: int = 1,
        draws: int = 64,
        steps: int = 2,
        context: int = 64,
        width: int = 200,
        **config: Any,
    ) -> None:
        if steps < 1 or context < 1 or width < 1:
            raise OodbenchError(
                "IAF takes at least 1 step, 1 number of context and 1 hidden unit, "
                f"not {steps} steps, {context} numbers and {width} units."
            )
        require_projection(config.get("network", "dense"))
        super().__init__(shape, latents, hidden, mixtures, draws, outputs=2 * latents + context, **config)
        self.steps = nn.ModuleList(GatedStep(latents, context, width, step % 2 == 1) for step in range(steps))

    def posterior(self, x: Tensor, noise: Noise) -> Posterior:
        mean, std, context = self.encode_with_context(x)

        def refine(z: Tensor) -> tuple[Tensor, Tensor]:
            rows, log_det = z.flatten(0, 1), z.new_zeros(z.shape[:2])
            given = context.repeat_interleave(z.shape[1], 0)
            for step in self.steps:
                rows, volume = step(rows, given)
                log_det = log_det + volume.reshape(log_det.shape)
            return rows.reshape(z.shape), log_det

        return Refined(mean, std, refine)

    @torch.no_grad()
    def calibrate(self, known: Tensor, held_out: Tensor) -> None:
        """As of the VAE: the first Gaussian is as much wider as the gates make it narrower."""
        super().calibrate(known, held_out)
        weight, bias = self.encoder.linear.weight, self.encoder.linear.bias
        kept = torch.tensor(BIAS).sigmoid() ** len(self.steps)
        weight[: self.latents] /= kept
        bias[: self.latents] /= kept
        bias[self.latents : 2 * self.latents] -= 2 * kept.log()
