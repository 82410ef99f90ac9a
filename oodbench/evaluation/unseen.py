"""An interval for a metric that did not vary at all in the sample."""

__all__ = ["unseen_interval"]


def unseen_interval(value: float, k: int, confidence: float = 0.95) -> tuple[float, float]:
    """(low, high) of a metric in [0, 1] whose estimate has no spread, from the k images of the smaller kind.

    All k images behaved alike. With this confidence the share of images that behave otherwise is at most
    q = 1 - (alpha/2)^(1/k), Clopper and Pearson's exact bound for 0 of k (near 3.7/k). Those may count anything from
    0 to 1, so the metric lies in [value (1 - q), value (1 - q) + q]: [1 - q, 1] at a perfect value, [0, q] at zero.
    """
    q = 1 - ((1 - confidence) / 2) ** (1 / k)
    return value * (1 - q), value * (1 - q) + q
