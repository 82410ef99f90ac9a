"""The latent-identifiable variational autoencoder.

Wang, Blei & Cunningham, "Posterior Collapse and Latent Variable Non-identifiability", NeurIPS 2021, arXiv:2301.00537.
"""

from typing import Any

from oodbench.errors import OodbenchError
from oodbench.models.vae.brenier import InjectiveDecoder
from oodbench.models.vae.vae import DenseVAE

__all__ = ["LIDVAE"]


class LIDVAE(DenseVAE):
    """The VAE with a decoder that gives no two latents the same P(x | z), so that none can be collapsed.

    Where latents are not identifiable, the posterior may equal the prior at no cost (Wang et al. 2021). Here
    the pixels' means are an injective function of z (`InjectiveDecoder`), whatever its scales are. Means of a mixture
    may change places, and a Bernoulli or categorical decoder has none: it takes the logistic observation with one
    component. All other things are the VAE's; the number reported is the importance-weighted bound.
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
        **config: Any,
    ) -> None:
        if (network, observation, mixtures) != ("dense", "logistic", 1):
            raise OodbenchError(
                "An injective decoder needs network 'dense', observation 'logistic' and mixtures 1, "
                f"not {network!r}, {observation!r} and {mixtures}."
            )
        super().__init__(shape, latents, hidden, mixtures, draws, network, observation=observation, **config)
        if latents > self.dimensions:
            raise OodbenchError(f"An image of {self.dimensions} numbers has no room for {latents} injective latents.")
        self.decoder = InjectiveDecoder(shape, hidden, latents, self.pixel)
