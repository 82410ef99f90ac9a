"""Bits/dim of a full-covariance Gaussian fitted to dequantised training images: what every model has to beat.

usage: python benchmarks/gaussian.py NAME ...
"""

import sys

import numpy as np

from oodbench.data import Images, adaptation, in_domain, load


def dequantised(images: Images, seed: int) -> np.ndarray:
    """float64 (N, D): the images in their model's domain plus uniform noise."""
    pixels = adaptation(images, in_domain(images))(np.asarray(images.pixels)).reshape(len(images), -1)
    return pixels + np.random.default_rng(seed).random(pixels.shape)


def main(names: list[str]) -> None:
    for name in names:
        train, test = dequantised(load(name, "train"), 0), dequantised(load(name, "test"), 1)
        mean, covariance = train.mean(0), np.cov(train.T)
        factor = np.linalg.cholesky(covariance)
        z = np.linalg.solve(factor, (test - mean).T)
        dimensions = len(mean)
        nats = 0.5 * (z**2).sum(0) + np.log(np.diag(factor)).sum() + 0.5 * dimensions * np.log(2 * np.pi)
        print(f"{name}: {nats.mean() / dimensions / np.log(2):.3f} bits/dim on {len(test):,} test images")


if __name__ == "__main__":
    main(sys.argv[1:] or sys.exit(__doc__))
