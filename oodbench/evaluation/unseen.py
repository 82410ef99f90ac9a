"""An interval for a metric that did not vary at all in the sample."""

__all__ = ["unseen_interval", "unseen_share"]


def unseen_interval(value: float, k: int, confidence: float = 0.95) -> tuple[float, float]:
    """(low, high) of a metric in [0, 1] whose estimate has no spread, from the k images of the smaller kind.

    All k images behaved alike. With this confidence at most a share q = `unseen_share` of images behaves otherwise.
    Those may count anything from 0 to 1, so the metric lies in [value (1 - q), value (1 - q) + q]: [1 - q, 1] at a
    perfect value, [0, q] at zero.
    """
    q = unseen_share(k, confidence)
    return value * (1 - q), value * (1 - q) + q


def unseen_share(k: int, confidence: float = 0.95) -> float:
    """The largest share, with this confidence, of what was not seen once in k images: 1 - (alpha/2)^(1/k), near 3.7/k.

    Clopper and Pearson's exact bound for 0 of k.
    """
    return float(1 - ((1 - confidence) / 2) ** (1 / k))
