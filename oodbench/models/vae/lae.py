"""The Langevin autoencoder (Taniguchi et al. 2022): posterior samples come from an encoder that is itself sampled."""

import torch
from torch import Tensor, nn

from oodbench.errors import OodbenchError
from oodbench.models.noise import Noise
from oodbench.models.vae.chains import hamiltonian, langevin
from oodbench.models.vae.posteriors import Gaussian, Posterior
from oodbench.models.vae.vae import DenseVAE

__all__ = ["LAE"]

PROBES = 16  # of the information: fewer make steps along single axes unstable
SIZE = 0.3  # of an evaluation chain's steps, in units of the posterior's variances
REACH = 1.0  # the farthest that such a step drifts, in standard deviations: nothing explodes, whatever the image


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
        chain_steps: int = 30,
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

    def posterior(self, x: Tensor, noise: Noise) -> Posterior:
        """The Gaussian fitted to an image's chains, whose noise is no draw's.

        Its variances are the mean of the chains' and of the inverse information: so few states alone make some of many
        axes much too narrow, where the weights' variance would have no bound.
        """
        half = self.chain_steps // 2
        with torch.inference_mode(False), torch.no_grad():  # what a density is made of must not be inference tensors
            z, _ = self.encode(x)
            unit = self.precision(x, z, noise, "first").rsqrt()
            found = self.explore(x, z.expand(self.chains, -1, -1), unit, noise, self.chain_steps - half, "first")
            unit = self.precision(x, found.flatten(0, 1).mean(0), noise, "second").rsqrt()
            states = self.explore(x, found[-1], unit, noise, half, "second").flatten(0, 1)
        mean = states.mean(0)
        variance = (states - mean).square().sum(0) / (len(states) - 1)
        return Gaussian(mean, (0.5 * (variance + unit.square())).sqrt())

    def explore(self, x: Tensor, start: Tensor, unit: Tensor, noise: Noise, steps: int, leg: str) -> Tensor:
        """States (steps, chains, B, latents) of Langevin dynamics from start (chains, B, latents), in this unit."""
        image = x.repeat_interleave(self.chains, 0)
        origin, scale = start.transpose(0, 1).flatten(0, 1), unit.repeat_interleave(self.chains, 0)

        def density(u: Tensor) -> Tensor:
            return self.log_joint(image, origin + scale * u)

        rows, stream = noise.expand(0, self.chains), f"explore {leg}"
        chain = langevin(density, torch.zeros_like(origin), rows, steps, SIZE, stream, REACH)
        states = origin + scale * chain.states
        return states.reshape(steps, len(x), self.chains, self.latents).transpose(1, 2)

    def precision(self, x: Tensor, z: Tensor, noise: Noise, leg: str) -> Tensor:
        """About the posterior's precisions (B, latents) at z: 1 + sum_p (d/dz log P(x_p | z))^2 over the places p of x.

        It is the square of d/dz sum_p +-log P(x_p | z) with random signs, whose mean is over `PROBES` of them. Where x
        is of P(x | z), the sum's mean is the Fisher information's diagonal.
        """
        with torch.enable_grad():
            parameters = self.decoder(z).detach().requires_grad_()
            (score,) = torch.autograd.grad(self.pixel.log_prob(x, parameters).sum(), parameters)
            z = z.repeat_interleave(PROBES, 0).requires_grad_()
            signs = (
                (noise.expand(0, PROBES).uniform((1, *parameters.shape[2:]), f"signs {leg}") - 0.5)
                .sign()
                .to(score.dtype)
            )
            (probe,) = torch.autograd.grad(self.decoder(z), z, score.repeat_interleave(PROBES, 0) * signs)
        return 1 + probe.square().reshape(-1, PROBES, self.latents).mean(1)

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
