"""Transport score climbing (Zhang, Blei & Naesseth 2023): a posterior fitted to HMC chains in a space that it warps."""

from typing import Any

import torch
from torch import Tensor, nn

from oodbench.errors import OodbenchError
from oodbench.models.flows.transforms.elementwise import Affine
from oodbench.models.networks import DenseNetwork
from oodbench.models.noise import Noise
from oodbench.models.vae.chains import hamiltonian
from oodbench.models.vae.posteriors import Posterior, standard_normal_log_prob
from oodbench.models.vae.vae import DenseVAE

__all__ = ["TSCVAE", "Transport", "Transported"]

TARGET = 0.67  # acceptance rate
PACE = 0.03  # by which share the chain's step grows and shrinks


class TSCVAE(DenseVAE):
    """q(z | x): z = T(m(x) + s(x) e) with e ~ N(0, I) and T a flow of `couplings`, the same for all images.

    Training: e_0 ~ N(0, I), which is a draw of q; `chain_steps` of Hamiltonian Monte Carlo with `leapfrogs` each on e,
    whose target is log p(x, z(e)) + log |dz/de|; then, at the z reached, encoder and flow climb log q(z | x), which
    descends the forward KL(p || q), and the decoder climbs log P(x | z). The better q is, the nearer e's target is to
    N(0, I), and the better the chain mixes. The steps' size follows the acceptance rate. As in the paper training
    warms up by the ELBO, for its first share `variational`.

    In the paper an image's chain goes on from where it stood an epoch before, over hundreds of them. Here it starts
    anew, so that a run's state is its weights, and few epochs are enough; q is then fitted to what its own draws come
    to, which is the nearer to p the longer the chain. Where q is p, both stay so.

    `log_px` is the importance-weighted bound with q. `loss` is no bound.
    """

    step_size: Tensor  # of the last weights: the averaged ones, which run no chain, keep the first

    def __init__(
        self,
        shape: tuple[int, int, int],
        latents: int = 32,
        hidden: int = 400,
        mixtures: int = 1,
        draws: int = 64,
        network: str = "dense",
        observation: str = "logistic",
        couplings: int = 2,
        width: int = 64,
        chain_steps: int = 4,
        leapfrogs: int = 1,
        step_size: float = 0.1,
        variational: float = 0.25,
        **config: Any,
    ) -> None:
        super().__init__(shape, latents, hidden, mixtures, draws, network, observation=observation, **config)
        if chain_steps < 1 or leapfrogs < 1 or not 0 < step_size <= 1:
            raise OodbenchError(
                f"A chain takes at least 1 step of 1 leapfrog of a size in (0, 1], not {chain_steps} of {leapfrogs} of "
                f"{step_size}."
            )
        if not 0 <= variational <= 1:
            raise OodbenchError(f"The share of training that climbs the ELBO is from 0 to 1, not {variational}.")
        self.transport = Transport(latents, couplings, width)
        self.chain_steps, self.leapfrogs = chain_steps, leapfrogs
        self.register_buffer("step_size", torch.tensor(step_size))
        self.variational = variational
        self._acceptance: Tensor | None = None

    def posterior(self, x: Tensor, noise: Noise) -> "Transported":
        return Transported(*self.encode(x), self.transport)

    def loss(self, x: Tensor, noise: Noise) -> Tensor:
        """-log P(x | z) p(z) - log q(z | x) in nats (B,), at a constant z that the image's chain reaches."""
        if self.progress < self.variational:
            return super().loss(x, noise)
        posterior = self.posterior(x, noise)
        z = self.climb(x, posterior, noise)
        return -self.log_px_given_z(x, z) - self.log_prior(z) - posterior.log_prob(z)

    @torch.no_grad()
    def climb(self, x: Tensor, posterior: "Transported", noise: Noise) -> Tensor:
        """The z (B, latents) where chains end that start at a draw of q."""

        def density(e: Tensor) -> Tensor:
            z, volume = posterior.warp(e)
            return self.log_px_given_z(x, z) + self.log_prior(z) + volume

        start = noise.normal(self.latent_shape, "latent").to(posterior.mean.dtype)
        chain = hamiltonian(density, start, noise, self.chain_steps, self.step_size, self.leapfrogs)
        self._acceptance = chain.acceptance.mean()
        return posterior.warp(chain.states[-1])[0]

    @torch.no_grad()
    def after_step(self) -> None:
        """The chain's step grows while more than `TARGET` is accepted, up to 1, and shrinks while less is."""
        if self._acceptance is not None:
            grow = self._acceptance >= TARGET
            self.step_size.mul_(torch.where(grow, 1 + PACE, 1 - PACE)).clamp_(max=1)
            self._acceptance = None


class Transport(nn.Module):
    """Affine couplings of a vector's halves in turn (Dinh et al. 2017), the identity at first."""

    def __init__(self, numbers: int, couplings: int, width: int) -> None:
        super().__init__()
        if couplings and (numbers < 2 or width < 1):
            raise OodbenchError(
                f"Couplings take at least 2 latents and 1 hidden unit, not {numbers} and {width}: use 0 couplings."
            )
        self.kept, self.element = numbers // 2, Affine()
        sizes = [numbers // 2, numbers - numbers // 2]
        self.networks = nn.ModuleList(
            DenseNetwork(sizes[turn % 2], width, 2 * sizes[1 - turn % 2]) for turn in range(couplings)
        )

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(B, numbers) -> (T(z), log |det dT/dz| (B,) in nats)."""
        first, second, volume = z[:, : self.kept], z[:, self.kept :], z.new_zeros(len(z))
        for turn, network in enumerate(self.networks):
            if turn % 2:
                first, part = self.element.forward(first, network(second))
            else:
                second, part = self.element.forward(second, network(first))
            volume = volume + part
        return torch.cat([first, second], 1), volume

    def inverse(self, y: Tensor) -> Tensor:
        """The z that `forward` takes to y."""
        first, second = y[:, : self.kept], y[:, self.kept :]
        for turn, network in reversed(list(enumerate(self.networks))):
            if turn % 2:
                first = self.element.inverse(first, network(second))
            else:
                second = self.element.inverse(second, network(first))
        return torch.cat([first, second], 1)


class Transported(Posterior):
    """A Gaussian's numbers (B, d) through a flow; `mean` is where the Gaussian's goes, `std` the Gaussian's."""

    def __init__(self, mean: Tensor, std: Tensor, transport: Transport) -> None:
        self.centre, self.std, self.transport = mean, std, transport
        self.mean = transport(mean)[0]

    def warp(self, e: Tensor) -> tuple[Tensor, Tensor]:
        """z and log |dz/de| (B * count,) in nats of e (B * count, d), image-major."""
        count = len(e) // max(1, len(self.std))
        mean, std = (t.repeat_interleave(count, 0) for t in (self.centre, self.std))
        z, volume = self.transport(mean + std * e)
        return z, volume + std.log().sum(1)

    def draw(self, noise: Noise, count: int) -> tuple[Tensor, Tensor]:
        e = noise.normal(tuple(self.std.shape[1:]), "latent").to(self.std.dtype)
        z, volume = self.warp(e)
        return z, standard_normal_log_prob(e) - volume

    def log_prob(self, z: Tensor) -> Tensor:
        """log q(z | x) in nats (B,) of one z (B, d) an image."""
        inner = self.transport.inverse(z)
        _, volume = self.transport(inner)
        e = (inner - self.centre) / self.std
        log_q: Tensor = standard_normal_log_prob(e) - volume - self.std.log().sum(1)
        return log_q
