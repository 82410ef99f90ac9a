"""The Langevin autoencoder (Taniguchi et al. 2022): posterior samples come from an encoder that is itself sampled."""

import math

import torch
from torch import Tensor, nn

from oodbench.errors import OodbenchError
from oodbench.models.noise import Noise
from oodbench.models.vae.chains import hamiltonian, langevin
from oodbench.models.vae.laplace import FullGaussian, cholesky, expansion
from oodbench.models.vae.vae import DenseVAE

__all__ = ["LAE"]

SIZE = 0.5  # s of an evaluation chain's steps, in units of the posterior's variances
SETTLING = 10  # steps before the chain is looked at
REACH = 2.0  # the farthest that a later step drifts, in standard deviations: nothing explodes, whatever the image
_IMAGES = 32  # whose chains are run and Jacobians held at a time


class LAE(DenseVAE):
    """z = W f(x): `features` f by a network, and W, its last linear layer, a state of a Markov chain.

    Training (amortised Langevin dynamics): for a batch, `langevin_steps` of

        W <- W + eta d/dW sum_i log p(x_i, z_i = W f(x_i)) + (2 eta)^(1/2) noise,

    if asked `corrected` by Metropolis and Hastings, then one step of the optimiser for the decoder and for f on
    -log p(x, z) at the latents reached; W stays where the chain has brought it. Where the batch's features are
    independent, the z_i are samples of their posteriors; over many batches they spread as posteriors at a temperature
    of features / batch size would. Unlike in the paper the steps are preconditioned by the features' second moment, so
    that `eta` is a step on latents whatever f's scale: with one size for all directions of W, what all features have
    in common moves the latents by far the most, and becomes unstable.

    Evaluation: `chains` of `chain_steps` Langevin steps on each image's own z, from W f(x) on, in units of the inverse
    Fisher information there. q(z | x) is a Gaussian fitted to their second halves, before and apart from the importance
    draws, so that the estimate stays a lower bound in expectation. `loss` is no bound.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        latents: int = 32,
        hidden: int = 400,
        mixtures: int = 1,
        draws: int = 64,
        network: str = "dense",
        observation: str = "logistic",
        features: int = 64,
        eta: float = 1e-4,
        langevin_steps: int = 2,
        corrected: bool = False,
        chains: int = 2,
        chain_steps: int = 100,
    ) -> None:
        super().__init__(shape, latents, hidden, mixtures, draws, network, observation=observation)
        if features < latents:
            raise OodbenchError(f"{latents} latents are made of at least as many features, not of {features}.")
        if not eta > 0 or langevin_steps < 1:
            raise OodbenchError(f"A chain takes at least 1 step of a size above 0, not {langevin_steps} of {eta}.")
        if chains < 1 or chain_steps < 4:
            raise OodbenchError(
                f"A Gaussian is fitted to at least 1 chain of 4 steps, not to {chains} of {chain_steps}."
            )
        self.eta, self.langevin_steps, self.corrected = eta, langevin_steps, corrected
        self.chains, self.chain_steps = chains, chain_steps
        self.encoder = type(self.encoder)(shape, hidden, features)
        self.last = nn.Parameter(torch.eye(latents, features))
        self._reached: Tensor | None = None

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (B, C, H, W) -> W f(x), where chains start, and a spread of 0, each (B, latents)."""
        z = self.encoder(self.values(x)) @ self.last.T
        return z, torch.zeros_like(z)

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """log P(x | z) p(z) in nats (B,)."""
        return self.log_px_given_z(x, z) + self.log_prior(z)

    def loss(self, x: Tensor, noise: Noise) -> Tensor:
        """-log p(x, z) in nats (B,) at the latents that the batch's chain reaches, which count as constants of it."""
        f = self.encoder(self.values(x))
        states, _ = self.amortised(x, f.detach(), noise)
        self._reached = states[-1]
        return -self.log_joint(x, f @ (self.last + (states[-1] - self.last).detach()).T)

    @torch.no_grad()
    def after_step(self) -> None:
        """W becomes what the loss's chain reached, and not what an optimiser makes of its gradient."""
        if self._reached is not None:
            self.last.copy_(self._reached)
            self._reached = None

    @torch.no_grad()
    def amortised(self, x: Tensor, f: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """A batch's chain on W, from where it is: its states (langevin_steps, latents, features), acceptance rate ().

        With V V' = (sum_i f_i f_i' + c I)^-1 it runs on U of W + U V'. The latents Z then move by eta A d/dZ log p with
        A = F V V' F' between 0 and I; c is the features' mean variance, summed over the batch.
        """
        moment, spread = f.T @ f, (f - f.mean(0)).square().sum() + 1e-3 * f.square().sum()
        moment.diagonal().add_(spread / f.shape[1])
        factor = torch.linalg.cholesky(moment)  # V' is its inverse
        whitened = torch.linalg.solve_triangular(factor, f.T, upper=False).T
        start = f @ self.last.T

        def density(u: Tensor) -> Tensor:
            return self.log_joint(x, start + whitened @ u[0].T).sum()[None]

        origin, one = torch.zeros_like(self.last)[None], noise.rows(slice(0, 1))  # the chain is the first image's
        if self.corrected:
            chain = hamiltonian(density, origin, one, self.langevin_steps, (2 * self.eta) ** 0.5, 1, "weights")
        else:
            chain = langevin(density, origin, one, self.langevin_steps, self.eta, "weights")
        moved = torch.linalg.solve_triangular(factor, chain.states[:, 0], upper=False, left=False)
        return self.last + moved, chain.acceptance[0]

    def posterior(self, x: Tensor, noise: Noise) -> FullGaussian:
        """The Gaussian fitted to an image's chains, whose noise is no draw's."""
        means, factors = [], []
        with torch.inference_mode(False), torch.no_grad():  # what a density is made of must not be inference tensors
            for first in range(0, max(1, len(x)), _IMAGES):
                rows = slice(first, first + _IMAGES)
                mean, factor = self.fit(x[rows], noise.rows(rows))
                means.append(mean)
                factors.append(factor)
        return FullGaussian(torch.cat(means), torch.cat(factors))

    def fit(self, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Mean (B, latents) of the images' chains, and the lower factor (B, latents, latents) of a fitted precision."""
        states, origin, factor = self.explore(x, noise)
        count = states.shape[1]
        centre = states.mean(1, keepdim=True)
        one = torch.eye(self.latents, dtype=factor.dtype, device=factor.device)
        squares = (states - centre).mT @ (states - centre)
        covariance = (squares + self.latents * one) / (count + self.latents)
        mean = origin + torch.linalg.solve_triangular(factor.mT, centre.mT, upper=True)[..., 0]
        return mean.to(self.last.dtype), (factor @ cholesky(torch.linalg.inv(covariance))).to(self.last.dtype)

    def explore(self, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor, Tensor]:
        """States u (B, chains * chain_steps, latents) of chains on z = m + F'^-1 u, m (B, latents) and the factor F.

        F F' is the mean of the chains' curvatures where they have settled, m of their places; all in float64.
        """
        rows, image = noise.expand(0, self.chains), x.repeat_interleave(self.chains, 0)
        z = self.settle(image, self.encode(image)[0], rows)
        _, precision = self.expand(image, z)
        factor = cholesky(precision.unflatten(0, (-1, self.chains)).mean(1))
        each = z.unflatten(0, (-1, self.chains)).double()
        origin = each.mean(1)
        start = (each - origin[:, None]) @ factor
        one = torch.eye(self.latents, dtype=factor.dtype, device=factor.device).expand_as(factor)
        unit = torch.linalg.solve_triangular(factor.mT, one, upper=True).to(z.dtype)

        def density(u: Tensor) -> Tensor:
            moved = u.unflatten(0, (-1, self.chains)) @ unit.mT
            return self.log_joint(image, (origin[:, None].to(z.dtype) + moved).flatten(0, 1))

        chain = langevin(density, start.flatten(0, 1).to(z.dtype), rows, self.chain_steps, SIZE, "explore", REACH)
        states = chain.states.double().unflatten(1, (-1, self.chains)).permute(1, 2, 0, 3).flatten(1, 2)
        return states, origin, factor

    def settle(self, x: Tensor, z: Tensor, noise: Noise) -> Tensor:
        """Where `SETTLING` steps end that begin at z (B, latents), each in units of the curvature A where it starts:

            z <- z + s A^-1 d/dz log p(x, z) + (2 s)^(1/2) A^(-1/2) e

        No A^-1 (...) is longer than the prior's radius, as VLAE's: far from a pixel a logistic hardly bends.
        """
        for step in range(SETTLING):
            slope, precision = self.expand(x, z)
            factor = cholesky(precision)
            e = noise.normal((self.latents,), f"settle {step}").double()[..., None]
            move = torch.cholesky_solve(slope[..., None], factor)
            move = move * (math.sqrt(self.latents) / move.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp_max(1.0)
            jump = torch.linalg.solve_triangular(factor.mT, e, upper=True)
            z = (z + (SIZE * move + math.sqrt(2 * SIZE) * jump)[..., 0]).to(z.dtype)
        return z

    def expand(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """See `expansion`."""
        return expansion(self.decoder, x, z)

    @torch.no_grad()
    def calibrate(self, known: Tensor, held_out: Tensor) -> None:
        """Starts at principal components: features at as many as they are, W and the decoder at the first `latents`."""
        value = self.values(known).double()
        first = self.encoder.principal(value, self.latents)
        more = self.encoder.principal(value, self.last.shape[1])
        self.encoder.start_at(more, self.last.shape[1])
        self.decoder.start_at(first, self.pixel)
        # Both are shrunk, as posterior means are, by what they leave out.
        rank = len(first.kept)
        shrinkage = ((first.kept - first.rest) / (more.kept[:rank] - more.rest)).sqrt()
        self.last.zero_()
        self.last[:rank, :rank] = torch.diag(shrinkage).to(self.last)
