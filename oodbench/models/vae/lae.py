"""The Langevin autoencoder (Taniguchi et al. 2022): posterior samples come from an encoder that is itself sampled."""

import math

import torch
from torch import Tensor, nn

from oodbench.errors import OodbenchError
from oodbench.models.nn import networks
from oodbench.models.noise import Noise
from oodbench.models.vae.chains import hamiltonian, langevin
from oodbench.models.vae.laplace import FullGaussian, cholesky, expansion
from oodbench.models.vae.vae import DenseVAE

__all__ = ["LAE"]

SIZE = 0.5  # s of an evaluation chain's steps, in units of the posterior's variances
SETTLING = 10  # steps before the chain is looked at
REACH = 2.0  # the farthest that a later step drifts, in standard deviations: nothing explodes, whatever the image
PRIOR = 3.0  # times as many states as latents is what the curvature's own covariance counts for in the fit
_IMAGES = 64  # whose chains are run and Jacobians held at a time


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

    Evaluation, on each image's own z: `SETTLING` Langevin steps of size s from W f(x), then `chain_steps` to whose
    states q(z | x) is fitted, a Gaussian with all covariances. Steps are in units of the decoder's curvature A at this
    image, as `VLAE`'s are. Nothing is rejected, which widens all variances by 1 / (1 - s / 2), as is good for a
    proposal. Fit and draws share no noise, and q is proper whatever the chain did, as A^-1 is a part of its covariance:
    the estimate is a lower bound in expectation. `loss` is no bound.

    Independent variances, fitted to chains in units of each axis' squared slope, were too narrow around means that were
    off by a standard deviation: 6 nats worse on FashionMNIST and, as slopes are large wherever an image does not fit,
    16,000 on white images. Chains run in float64: on images to which nothing fits they wander, and float32's
    rounding, which depends on the batch, gave a white one 520 nats more or less.
    """

    encoder_alone = False  # its decoder shapes q(z | x) too

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
        chain_steps: int = 96,
    ) -> None:
        super().__init__(shape, latents, hidden, mixtures, draws, network, observation=observation)
        if (network, observation, mixtures) != ("dense", "logistic", 1):
            raise OodbenchError(
                "The curvature that sizes the chain's steps needs network 'dense', observation 'logistic' and mixtures "
                f"1, not {network!r}, {observation!r} and {mixtures}."
            )
        if features < latents:
            raise OodbenchError(f"{latents} latents are made of at least as many features, not of {features}.")
        if not eta > 0 or langevin_steps < 1:
            raise OodbenchError(f"A chain takes at least 1 step of a size above 0, not {langevin_steps} of {eta}.")
        if chain_steps < 2:
            raise OodbenchError(f"A Gaussian is fitted to a chain of at least 2 steps, not of {chain_steps}.")
        self.eta, self.langevin_steps, self.corrected = eta, langevin_steps, corrected
        self.chain_steps = chain_steps
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
        """The Gaussian fitted to every image's chain, whose noise is no draw's."""
        means, factors = [], []
        # What a density is made of must not be inference tensors.
        with torch.inference_mode(False), torch.no_grad(), networks(torch.float64, fold=True):
            for first in range(0, max(1, len(x)), _IMAGES):
                rows = slice(first, first + _IMAGES)
                mean, factor = self.fit(x[rows], noise.rows(rows))
                means.append(mean.to(self.last.dtype))
                factors.append(factor.to(self.last.dtype))
        return FullGaussian(torch.cat(means), torch.cat(factors))

    def fit(self, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Mean (B, latents) of every image's chain, and the lower factor (B, latents, latents) of a precision.

        Its inverse, the covariance, is (sum_t (z_t - mean)(z_t - mean)' + w A^-1) / (chain_steps + w): so few states
        alone make it much too narrow along some directions, where the weights' variance would have no bound.
        """
        u, origin, factor = self.explore(x, noise)
        centre = u.mean(0)
        deviations = (u - centre).permute(1, 2, 0)
        one = torch.eye(self.latents, dtype=u.dtype, device=u.device)
        weight = PRIOR * self.latents
        covariance = (deviations @ deviations.mT + weight * one) / (len(u) + weight)
        mean = origin + torch.linalg.solve_triangular(factor.mT, centre[..., None], upper=True)[..., 0]
        return mean, factor @ cholesky(torch.linalg.inv(covariance))

    def explore(self, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor, Tensor]:
        """States u (chain_steps, B, latents) of chains on z = m + F'^-1 u, and m (B, latents) and F of every image.

        m is where a chain has settled, F (B, latents, latents) the lower factor of the curvature there; in float64.
        """
        start = self.encoder(self.values(x).double()) @ self.last.double().T
        origin = self.settle(x, start, noise)
        factor = cholesky(self.expand(x, origin)[1])
        one = torch.eye(self.latents, dtype=factor.dtype, device=factor.device).expand_as(factor)
        unit = torch.linalg.solve_triangular(factor.mT, one, upper=True)

        def density(u: Tensor) -> Tensor:
            return self.log_joint(x, origin + (unit @ u[..., None])[..., 0])

        chain = langevin(density, torch.zeros_like(origin), noise, self.chain_steps, SIZE, "explore", REACH)
        return chain.states, origin, factor

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
            z = z + (SIZE * move + math.sqrt(2 * SIZE) * jump)[..., 0]
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
