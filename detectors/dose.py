"""Density of states: how usual all of a model's statistics are, not how likely the image is."""

import numpy as np

from oodbench.detector import EVERY_COLUMN, Columns, Detector
from oodbench.errors import OodbenchError
from oodbench.registry import register

__all__ = ["DoSE", "DoSESVM"]

_ROWS = 256  # images at a time against all validation images


class _States(Detector):
    """What both have in common: each statistic in units of its own middle half, and only those that vary."""

    needs = (EVERY_COLUMN,)

    def fit(self, validation: Columns) -> None:
        """Finds the statistics that tell validation images apart, their medians and spreads."""
        self.names, centres, spreads = [], [], []
        for name, column in validation.items():
            values = column.astype(np.float64)
            if values.ndim != 1:
                continue
            values = values[np.isfinite(values)]
            # A number that is constant but for rounding (a constant-volume flow's log-determinant) says nothing.
            if len(values) < 2 or np.ptp(values) <= 1e-5 * np.abs(values).max():
                continue
            low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
            # As of a Gaussian; a few images that the model has no idea of make the standard deviation any size.
            spread = (high - low) / 1.349 or values.std()
            self.names, centres, spreads = [*self.names, name], [*centres, middle], [*spreads, spread]
        if not self.names:
            raise OodbenchError("DoSE needs a statistic that varies over the validation images: leave it out here.")
        self.centres, self.spreads = np.array(centres), np.array(spreads)
        states = self._states(validation)
        self._learn(states[np.isfinite(states).all(1)])

    def score(self, columns: Columns) -> np.ndarray:
        """(N,); NaN where a statistic is not finite."""
        states = self._states(columns)
        finite = np.isfinite(states).all(1)
        scores = np.full(len(states), np.nan)
        if finite.any():
            scores[finite] = self._unusual(states[finite])
        return scores

    def _states(self, columns: Columns) -> np.ndarray:
        """(N, S), standardised."""
        values = np.stack([columns[name].astype(np.float64) for name in self.names], axis=1)
        states: np.ndarray = (values - self.centres) / self.spreads
        return states

    def _learn(self, states: np.ndarray) -> None:
        raise NotImplementedError

    def _unusual(self, states: np.ndarray) -> np.ndarray:
        raise NotImplementedError


@register.detector("dose")
class DoSE(_States):
    """-sum_s log KDE_s(statistic s) over all scalar columns of the model's forward pass

    Gaussian kernels, whose width is Scott's rule for the middle half of the validation images: 1.06 spread n^(-1/5).

    Reference:
        Morningstar et al., "Density of States Estimation for Out-of-Distribution Detection", AISTATS 2021,
        arXiv:2006.09273, Equation 3: statistics as if independent, their densities from images held out of training.
    """

    def _learn(self, states: np.ndarray) -> None:
        self.known = states  # (n, S)
        self.width = 1.06 * len(states) ** -0.2

    def _unusual(self, states: np.ndarray) -> np.ndarray:
        # scikit-learn's KernelDensity takes ten times as long in one dimension, for its tree saves nothing exact.
        logs = np.zeros(len(states))
        for start in range(0, len(states), _ROWS):
            rows = slice(start, start + _ROWS)
            for new, known in zip(states[rows].T, self.known.T, strict=True):
                exponents = -0.5 * ((new[:, None] - known) / self.width) ** 2
                largest = exponents.max(1)  # far from all that is known densities underflow, their logarithms do not
                logs[rows] += largest + np.log(np.exp(exponents - largest[:, None]).mean(1))
        constant = np.log(self.width * np.sqrt(2 * np.pi) * self.spreads).sum()
        unusual: np.ndarray = constant - logs
        return unusual


@register.detector("dose_svm")
class DoSESVM(_States):
    """-(margin of a one-class SVM) on all scalar columns of the model's forward pass

    A Gaussian kernel of gamma = 1 / S on S standardised statistics, nu = 1/2, as scikit-learn has them by default.

    Reference:
        Morningstar et al. 2021, arXiv:2006.09273: the second of their two estimators.
    """

    def _learn(self, states: np.ndarray) -> None:
        from sklearn.svm import OneClassSVM

        self.svm = OneClassSVM(gamma="auto").fit(states)

    def _unusual(self, states: np.ndarray) -> np.ndarray:
        margins: np.ndarray = -self.svm.score_samples(states)
        return margins
