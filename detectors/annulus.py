"""Annulus: a Gaussian's mass lies in a thin shell, far from its mode."""

import numpy as np

from oodbench.detector import Columns, Detector
from oodbench.registry import register

__all__ = ["Annulus"]


@register.detector("annulus")
class Annulus(Detector):
    """|norm(z) - sqrt(d)|: distance of a flow's d whitened latents from the shell on which N(0, I) lives

    `latent_norm` is the norm of all latents, those split off on the way included, each whitened by the prior that the
    flow gives it: as many as the image has numbers, or as a density on a surface has dimensions. A VAE's or an
    autoregressive model's images have no such latents.

    Reference:
        Choi et al., "WAIC, but Why?", 2018, arXiv:1810.01392: typical sets in a flow's latent space;
        Nalisnick et al. 2019, arXiv:1906.02994: |norm(f(x)) - sqrt(d)|, the "annulus method" among their baselines.
    """

    needs = ("latent_norm",)

    def score(self, columns: Columns) -> np.ndarray:
        """(N,) in units of the latents' standard deviation."""
        d = columns.dimensions if columns.latents is None else columns.latents
        scores: np.ndarray = np.abs(columns["latent_norm"].astype(np.float64) - np.sqrt(d))
        return scores
