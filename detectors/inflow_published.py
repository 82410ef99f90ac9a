"""InFlow's score as published: one gate for a batch of 250 images."""

from typing import TYPE_CHECKING, Any

import numpy as np

from oodbench.detector import Columns, Detector
from oodbench.errors import OodbenchError
from oodbench.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from oodbench.models.noise import Noise

__all__ = ["InFlowPublished", "permutation_p_value", "row_sums"]

REFERENCES = 5000
PERMUTATIONS = 100
SIGNIFICANCE = 0.05


def _applies(model: Any) -> bool:
    return "attention_margin" in model.columns


@register.statistic("attention_encoding", applies=_applies)
def attention_encoding(model: Any, x: "Tensor", noise: "Noise") -> "Tensor":
    """(B, 32) the numbers by which InFlow's attention knows an image"""
    encoding: Tensor = model.attention.encode(x).float()
    return encoding


@register.detector("inflow_published")
class InFlowPublished(Detector):
    """mean over 250 images of -log p, gated for all by one two-sample test against validation images, in nats

    A test of the maximum mean discrepancy with 100 permutations closes the gate of the whole batch at p < 0.05. It
    decides for batches, so its scores are of batches: n and intervals count these. Where the published code lets
    in-distribution images through untested, this one tests every batch; its references are validation images.

    Reference:
        Kumar et al., "InFlow: Robust outlier detection utilizing Normalizing Flows", 2021, arXiv:2106.15894;
        Gretton et al., "A Kernel Two-Sample Test", JMLR 2012.
    """

    needs = ("attention_encoding", "log_px_open", "log_px_closed")
    group_sizes = (250,)

    def fit(self, validation: Columns) -> None:
        """Keeps the encodings of at most 5,000 images and the median of their distances."""
        encodings = validation["attention_encoding"].astype(np.float64)
        encodings = encodings[np.isfinite(encodings).all(1)]
        if len(encodings) < 2:
            raise OodbenchError(
                f"inflow_published needs 2 validation images and there are {len(encodings)}: take more."
            )
        count = min(REFERENCES, len(encodings))
        self.references = encodings[np.arange(count) * len(encodings) // count]
        some = self.references[:: -(-count // 1000)]
        distances = np.sqrt(_squared_distances(some, some)[np.triu_indices(len(some), 1)])
        self.bandwidth = max(float(np.median(distances)), 1e-6)
        self.sums = row_sums(self.references, self.references, self.bandwidth)

    def score(self, columns: Columns) -> np.ndarray:
        """(N / 250,) nats an image."""
        encodings = columns.groups("attention_encoding").astype(np.float64)
        p_values = np.array([permutation_p_value(one, self.references, self.bandwidth, self.sums) for one in encodings])
        opened, closed = (columns.groups(name).astype(np.float64).mean(1) for name in ("log_px_open", "log_px_closed"))
        return -np.where(p_values >= SIGNIFICANCE, opened, closed)


def permutation_p_value(sample: np.ndarray, references: np.ndarray, bandwidth: float, sums: np.ndarray) -> float:
    """The share of random exchanges between (n, d) and (m, d) whose maximum mean discrepancy is at least theirs.

    With K the kernel matrix of all n + m and S the places of the sample, the squared discrepancy is
    (a + b)^2 1_S'K 1_S - 2 b (a + b) 1_S'K 1 + b^2 1'K 1, a = 1/n, b = 1/m: it needs small blocks of K and its rows'
    sums, of which `sums` (m,) are those among the references.
    """
    pool = np.concatenate([sample, references])
    rows = np.concatenate([row_sums(sample, pool, bandwidth), sums + row_sums(references, sample, bandwidth)])
    a, b = 1 / len(sample), 1 / len(references)

    def discrepancy(places: np.ndarray) -> float:
        inside = _kernel(pool[places], pool[places], bandwidth).sum()
        return float((a + b) ** 2 * inside - 2 * b * (a + b) * rows[places].sum() + b**2 * rows.sum())

    random = np.random.Generator(np.random.Philox(key=[0, len(sample)]))
    observed = discrepancy(np.arange(len(sample)))
    exchanged = [discrepancy(random.permutation(len(pool))[: len(sample)]) for _ in range(PERMUTATIONS)]
    return float(np.mean(np.array(exchanged) >= observed - 1e-12))


def row_sums(x: np.ndarray, y: np.ndarray, bandwidth: float) -> np.ndarray:
    """sum_j k(x_i, y_j), (N,), a few rows at a time."""
    parts = np.array_split(x, -(-len(x) // 500))
    return np.concatenate([_kernel(part, y, bandwidth).sum(1) for part in parts])


def _kernel(x: np.ndarray, y: np.ndarray, bandwidth: float) -> np.ndarray:
    values: np.ndarray = np.exp(-0.5 / bandwidth**2 * _squared_distances(x, y))
    return values


def _squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    squares: np.ndarray = (x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T
    return squares.clip(0)
