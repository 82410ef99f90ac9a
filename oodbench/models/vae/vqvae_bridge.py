"""Discrete codes whose prior is a diffusion bridge, learnt end to end.

Cohen, Quispe, Le Corff, Ollion & Moulines, "Diffusion bridges vector quantized variational autoencoders", ICML 2022,
arXiv:2202.04895.
"""

import math

import torch
from torch import Tensor, nn

from oodbench.errors import OodbenchError
from oodbench.models.nn import networks
from oodbench.models.noise import Noise
from oodbench.models.vae.bridge_prior import BridgePrior
from oodbench.models.vae.latent import LatentModel
from oodbench.models.vae.networks import build, require_projection
from oodbench.models.vae.observations import observation
from oodbench.models.vae.posteriors import Posterior
from oodbench.models.vae.quantisation import (
    code_log_probs,
    code_probs,
    draw_codes,
    means_of_clusters,
    straight_through,
)

__all__ = ["VQVAEBridge"]

TEMPERATURE = 0.1  # to start from: twice the variance of z_0 given f, Bayes' rule for codes far apart
CLUSTERED = 20_000  # encodings that the codebook starts from


class VQVAEBridge(LatentModel):
    """log P(x) >= E_q log [P(x | c) p(c | z_0) p(z_0 ... z_T) / (q(c | x) q(z_0 ... z_T | x))].

    The encoder's `latents` numbers (of the whole image, or with network "maps" of every 4x4 pixels) are cut into places
    of `dimensions` numbers f(x) each, and every place gets one of `codes` vectors e_c from a common codebook:

        q(c | x) ~ exp(-|f(x) - e_c|^2 / h),  p(c | z_0) ~ exp(-|z_0 - e_c|^2 / h'),  P(x | c): decoded from the e_c

    The path z is an Ornstein-Uhlenbeck bridge of T = `steps` steps under q and its learned reverse under p (Cohen et
    al. 2022; see `BridgePrior`). They put all mass of q(z_0 | x) on f(x), which has no density:
    here the process has run for a short while at z_0, so that every factor is normalised and the number a lower bound.

    One draw is codes and path; `draws` of them are importance-weighted. reconstruction and kl = codes + bridge are the
    two terms of the bound; the posterior's norms are of the code vectors' mean and standard deviation under q(c | x).
    The loss's gradient in q(c | x) is a surrogate, see `straight_through`.
    """

    euclidean = False

    def __init__(
        self,
        shape: tuple[int, int, int],
        latents: int = 32,
        dimensions: int = 2,
        codes: int = 256,
        hidden: int = 400,
        mixtures: int = 1,
        draws: int = 64,
        network: str = "dense",
        steps: int = 8,
        reverse_hidden: int = 256,
        warm_up: float = 0.0,
    ) -> None:
        require_projection(network)
        super().__init__(shape, draws, warm_up=warm_up)
        if min(dimensions, reverse_hidden, steps) < 1 or codes < 2:
            raise OodbenchError(
                f"{codes} codes of {dimensions} numbers, {steps} steps back and {reverse_hidden} hidden units "
                "cannot be: take at least 2 codes and 1 of all others."
            )
        if latents % dimensions:
            raise OodbenchError(f"Codes of {dimensions} numbers do not divide {latents} latents: take a multiple.")
        self.latents = latents
        self.pixel = observation("logistic", shape[0], mixtures)
        self.encoded, self.encoder, self.decoder = build(network, shape, latents, hidden, latents, self.pixel)
        self.places = math.prod(self.encoded) // dimensions
        self.codebook = nn.Parameter(torch.randn(codes, dimensions))
        self.log_temperatures = nn.Parameter(torch.full((2,), TEMPERATURE).log())  # h, h'
        self.prior = BridgePrior((self.places, dimensions), steps, reverse_hidden)
        # z_0 ... z_T, one after the other, and the codes as numbers
        self.latent_shape = (((steps + 1) * dimensions + 1) * self.places,)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """f(x) (B, places, dimensions) and log q(c | x) (B, places, codes) of uint8 (B, C, H, W).

        Always in the weights' own precision: a code that rounding tips over moves the score by nats.
        """
        with networks():
            maps = self.encoder(self._values(x))
        f = maps.unflatten(1, (-1, self.codebook.shape[1])).movedim(2, -1).flatten(1, -2)
        return f, self._log_probs(f, 0)

    def posterior(self, x: Tensor, noise: Noise) -> "CodesAndPath":
        return CodesAndPath(self.prior, self.codebook, *self.encode(x))

    def log_px_given_z(self, x: Tensor, z: Tensor) -> Tensor:
        return self.pixel.log_prob(x, self._decode(self.codebook[self._unpack(z)[1]]))

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z_0 ... z_T) + log p(c | z_0) in nats (B,)."""
        path, codes = self._unpack(z)
        chosen = self._log_probs(path[:, 0], 1).gather(-1, codes[..., None])
        return self.prior.log_prob(path) + chosen.flatten(1).sum(1)

    def sample_prior(self, noise: Noise) -> Tensor:
        """Back from the stationary law, then codes (Cohen et al. 2022, Algorithm 2)."""
        e = noise.normal((self.prior.steps + 1, *self.prior.shape), "prior").to(self.codebook.dtype)
        path = self.prior.sample(e)
        u = noise.uniform((self.places, 1), "prior codes").to(e.dtype)
        return pack(path, draw_codes(self._log_probs(path[:, 0], 1), u)[..., 0])

    def decode_sample(self, z: Tensor, noise: Noise) -> Tensor:
        return self.pixel.sample(self._decode(self.codebook[self._unpack(z)[1]]), noise)

    def loss(self, x: Tensor, noise: Noise) -> Tensor:
        """-ELBO with one draw, nats (B,), its divergences in closed form given the path; kl warmed up."""
        posterior = self.posterior(x, noise)
        path, codes = self._unpack(posterior.draw(noise, 1)[0])
        log_q, log_p = posterior.log_probs, self._log_probs(path[:, 0], 1)
        kl = self.prior.divergence(path, posterior.f) + (code_probs(log_q) * (log_q - log_p)).flatten(1).sum(1)
        weight = min(1.0, self.progress / self.warm_up) if self.warm_up else 1.0
        return weight * kl - self.pixel.log_prob(x, self._decode(straight_through(codes, log_q, self.codebook)))

    @torch.no_grad()
    def calibrate(self, known: Tensor, held_out: Tensor) -> None:
        """Starts at probabilistic principal components, and at a codebook of the clusters of what they encode."""
        principal = self.encoder.principal(self._values(known).double(), self.latents)
        self.encoder.start_at(principal, self.latents)
        self.decoder.start_at(principal, self.pixel)
        f = self.encode(known)[0].flatten(0, 1)
        f = f[:: max(1, len(f) // CLUSTERED)]
        count = min(len(f), len(self.codebook))
        self.codebook[:count] = means_of_clusters(f, count)

    def _values(self, x: Tensor) -> Tensor:
        return x.to(self.codebook.dtype) / 127.5 - 1

    def _log_probs(self, z: Tensor, which: int) -> Tensor:
        """log q(c | f) (which = 0) or log p(c | z_0) (which = 1) (B, places, codes), of (B, places, dimensions)."""
        return code_log_probs(z, self.codebook, self.log_temperatures[which].exp())

    def _decode(self, vectors: Tensor) -> Tensor:
        """Parameters of the pixels, of code vectors (B, places, dimensions)."""
        groups, *rest = self.encoded[0] // vectors.shape[2], *self.encoded[1:]
        z = vectors.reshape(len(vectors), groups, *rest, vectors.shape[2]).movedim(-1, 2).flatten(1, 2)
        if z.ndim == 4:  # maps, whose convolutions are faster so
            z = z.contiguous(memory_format=torch.channels_last)
        parameters: Tensor = self.decoder(z)
        return parameters

    def _unpack(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Path (B, T + 1, places, dimensions) and codes int64 (B, places)."""
        path = z[:, : -self.places].reshape(len(z), self.prior.steps + 1, *self.prior.shape)
        return path, z[:, -self.places :].long()


def pack(path: Tensor, codes: Tensor) -> Tensor:
    """One tensor (B, ((T + 1) dimensions + 1) places) of a path and its codes."""
    return torch.cat([path.flatten(1), codes.to(path.dtype)], 1)


class CodesAndPath(Posterior):
    """q(c | x) q(z_0 ... z_T | x), from f(x) (B, places, dimensions) and log q(c | x) (B, places, codes)."""

    def __init__(self, prior: BridgePrior, codebook: Tensor, f: Tensor, log_probs: Tensor) -> None:
        self.prior, self.f, self.log_probs = prior, f, log_probs
        probs = code_probs(log_probs)
        self.mean = probs @ codebook
        self.std = (probs @ codebook.square() - self.mean.square()).clamp_min(0).sqrt()

    def draw(self, noise: Noise, count: int) -> tuple[Tensor, Tensor]:
        f = self.f.repeat_interleave(count, 0)
        e = noise.normal((self.prior.steps + 1, *self.prior.shape), "path").to(f.dtype)
        path, log_q = self.prior.path(f, e)
        u = noise.uniform(tuple(f.shape[1:2]), "codes").to(f.dtype).reshape(-1, count, f.shape[1]).mT
        codes = draw_codes(self.log_probs, u)  # (B, places, count)
        chosen = self.log_probs.gather(-1, codes).sum(1).flatten()
        return pack(path, codes.mT.flatten(0, 1)), log_q + chosen
