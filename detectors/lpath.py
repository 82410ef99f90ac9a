"""The likelihood's path: not one number of a variational autoencoder, but those that the number is made of."""

from typing import TYPE_CHECKING, Any

import numpy as np

from oodbench.detector import Columns, Detector
from oodbench.errors import OodbenchError
from oodbench.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from oodbench.models.noise import Noise
    from oodbench.models.vae.vae import VAE

__all__ = ["LPath", "LPathMahalanobis", "reconstruction_error"]

# Sufficient for the encoder's and the decoder's densities up to the symmetries that they have.
PATH = ("reconstruction_error", "posterior_mean_norm", "posterior_std_norm")


def _applies(model: Any) -> bool:
    from oodbench.models.vae.vae import VAE

    return isinstance(model, VAE)


@register.statistic("reconstruction_error", applies=_applies)
def reconstruction_error(model: "VAE", x: "Tensor", noise: "Noise") -> "Tensor":
    """|x - E[x | z]| at the posterior's mean z, bytes 0 ... 255 as -1 ... 1

    Takes uint8 (B, C, H, W) and returns (B,).
    """
    decoded = model.mean_image(model.posterior(x, noise).mean)
    return (model.values(x) - decoded).flatten(1).norm(dim=1)


@register.detector("lpath")
class LPath(Detector):
    """COPOD of (|x - decoded x|, |mean of q(z | x)|, |standard deviation of q(z | x)|)

    Of each number the tails left and right of an image, as the validation images have them, are counted; a score sums
    the logarithms of left tails, of right tails, or of those to which the numbers are skewed, whichever is largest.

    Reference:
        Huang et al., "Rethinking Test-time Likelihood: The Likelihood Path Principle and Its Application to OOD
        Detection", 2024, arXiv:2401.04933.
        Li et al., "COPOD: Copula-Based Outlier Detection", ICDM 2020, arXiv:2009.09463, Algorithm 1, each image added
        to the validation images alone.
    """

    needs = PATH

    def fit(self, validation: Columns) -> None:
        """Keeps the numbers of the validation images, sorted, and the direction of their skewness."""
        values = _finite(validation, 1)
        deviations = values - values.mean(0)
        self.skewed_left = (deviations**3).mean(0) < 0  # (3,)
        self.known = np.sort(values, axis=0)  # (n, 3)

    def score(self, columns: Columns) -> np.ndarray:
        """(N,) nats: the negated logarithm of a tail's empirical probability under independence."""
        left, right = np.empty((2, columns.rows, len(PATH)))
        n = len(self.known)
        for k, values in enumerate(_path(columns).T):
            left[:, k] = 1 + np.searchsorted(self.known[:, k], values, "right")
            right[:, k] = 1 + n - np.searchsorted(self.known[:, k], values, "left")
            left[np.isnan(values), k] = np.nan
        left, right = (np.log((n + 1) / tail) for tail in (left, right))
        sums = [tail.sum(1) for tail in (left, right, np.where(self.skewed_left, left, right))]
        scores: np.ndarray = np.max(sums, axis=0)
        return scores


@register.detector("lpath_mahalanobis")
class LPathMahalanobis(Detector):
    """Mahalanobis distance of (|x - decoded x|, |mean of q(z | x)|, |standard deviation of q(z | x)|)

    Reference:
        As of `lpath`; one Gaussian fitted to the validation images.
    """

    needs = PATH

    def fit(self, validation: Columns) -> None:
        """Estimates mean and covariance."""
        values = _finite(validation, 2)
        self.mean = values.mean(0)
        # Of a number that never changes nothing is learned: the pseudo-inverse leaves it out.
        self.precision = np.linalg.pinv(np.atleast_2d(np.cov(values, rowvar=False)), hermitian=True)

    def score(self, columns: Columns) -> np.ndarray:
        """(N,) in standard deviations."""
        deviations = _path(columns) - self.mean
        squares = np.einsum("ni,ij,nj->n", deviations, self.precision, deviations)
        scores: np.ndarray = np.sqrt(np.maximum(squares, 0))
        return scores


def _finite(columns: Columns, least: int) -> np.ndarray:
    """float64 (n, 3) of the images of which the model gave numbers; `OodbenchError` for fewer than `least`."""
    values = _path(columns)
    values = values[np.isfinite(values).all(1)]
    if len(values) < least:
        raise OodbenchError(
            f"The likelihood path needs {least} validation images and there are {len(values)}: take more."
        )
    return values


def _path(columns: Columns) -> np.ndarray:
    """float64 (N, 3)."""
    return np.stack([columns[name].astype(np.float64) for name in PATH], axis=1)
