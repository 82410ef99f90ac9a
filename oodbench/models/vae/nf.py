"""The VAE whose posterior a normalizing flow refines (Rezende & Mohamed 2015; Householder: Tomczak & Welling 2016)."""

from typing import Any

import torch
from torch import Tensor

from oodbench.errors import OodbenchError
from oodbench.models.nn import Linear
from oodbench.models.noise import Noise
from oodbench.models.vae.flow_steps import STEPS
from oodbench.models.vae.posteriors import Posterior
from oodbench.models.vae.refined import Refined
from oodbench.models.vae.vae import DenseVAE

__all__ = ["NormalizingFlowVAE"]

# The share of the context that steers. One update by Adam moves what is linear in hundreds of pixels by about 1: with
# all of it, planar steps were 0.03 bits/dim behind the VAE after 600 updates of fashionmnist, with this ahead.
FELT = 0.1


class NormalizingFlowVAE(DenseVAE):
    """z - m(x) = f_K ... f_1(s(x) e), e ~ N(0, I), with K = `steps` steps of the `flow`: planar, radial or householder.

    A linear map of `context` numbers, which the encoder gives, steers all steps of an image. They act around the mean:
    of the same posteriors, the one to start from is then the VAE's at principal components; planar steps, of
    (z - m(x)) / s(x). `log_px` is a lower bound
    as of any VAE.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        latents: int = 32,
        hidden: int = 400,
        mixtures: int = 1,
        draws: int = 64,
        flow: str = "planar",
        steps: int = 10,
        context: int = 64,
        **config: Any,
    ) -> None:
        if flow not in STEPS:
            raise OodbenchError(f"Unknown flow {flow!r}: take {', '.join(STEPS)}.")
        if steps < 1 or context < 1:
            raise OodbenchError(f"Use at least 1 step and 1 number of context, not {steps} and {context}.")
        super().__init__(shape, latents, hidden, mixtures, draws, outputs=2 * latents + context, **config)
        self.step, self.steps = STEPS[flow], steps
        self.steering = Linear(context, steps * self.step.size(latents))
        with torch.no_grad():
            self.steering.bias.copy_(torch.cat([self.step.start(latents, step) for step in range(steps)]))

    def posterior(self, x: Tensor, noise: Noise) -> Posterior:
        mean, std, context = self.encode_with_context(x)
        parameters = self.steering(FELT * context).reshape(len(x), 1, self.steps, self.step.size(self.latents))
        unit = std if self.step.standardised else torch.ones_like(std)

        def refine(z: Tensor) -> tuple[Tensor, Tensor]:
            y, log_det = (z - mean[:, None]) / unit[:, None], z.new_zeros(z.shape[:2])
            for theta in parameters.unbind(2):
                y, volume = self.step(y, theta)
                log_det = log_det + volume
            return mean[:, None] + unit[:, None] * y, log_det

        return Refined(mean, std, refine)
