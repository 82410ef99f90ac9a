"""Random numbers that belong to an image, not to a batch: Philox4x32-10 (Salmon et al. 2011) in torch integers.

Every number is a function of (seed, image index, draw, stream, position) alone, so an image's dequantisation noise and
importance draws are the same at any batch size, order, shard, resume point and device.
"""

import zlib
from dataclasses import dataclass
from math import prod, sqrt
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

__all__ = ["Noise", "philox"]

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_CHUNK = 1 << 15  # counters at a time: the working set of ten rounds stays in the cores' caches


Words = TypeVar("Words", Tensor, "np.ndarray[Any, Any]")


def philox(c0: Words, c1: Words, c2: Words, c3: Words, key: tuple[int, int]) -> tuple[Words, Words, Words, Words]:
    """Ten rounds of Philox4x32 on int64 tensors or arrays of 32-bit words, which broadcast; returns four such of words.

    Counters that differ along one axis only are best given unexpanded: the first two rounds are then nearly free.
    """
    k0, k1 = key
    for _ in range(10):
        # The product of two 32-bit words wraps in int64, but its 64 bits are right: mask after the arithmetic shift.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c2 = (p1 >> 32) ^ c1, (p0 >> 32) ^ c3
        c0 ^= k0
        c2 ^= k1
        c0 &= _MASK
        c2 &= _MASK
        c1, c3 = p1, p0  # their upper halves are no part of the words: masked in the next round, with what they enter
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1 & _MASK, c2, c3 & _MASK


@dataclass(frozen=True)
class Noise:
    """The randomness of a batch: row b belongs to image `index[b]` and, among its repetitions, to `draw[b]`."""

    seed: int
    index: Tensor  # int64 (B,)
    draw: Tensor  # int64 (B,)

    @classmethod
    def of(cls, index: Tensor, seed: int = 0, draw: int = 0) -> "Noise":
        """The noise of the images with these indices in their data set."""
        index = index.to(torch.int64)
        return cls(seed, index, torch.full_like(index, draw))

    def expand(self, first: int, count: int) -> "Noise":
        """(B * count) rows: every image repeated for the draws first ... first + count - 1, image-major."""
        draws = torch.arange(first, first + count, device=self.index.device)
        return Noise(
            self.seed,
            self.index.repeat_interleave(count),
            (self.draw[:, None] + draws[None, :]).reshape(-1),
        )

    def to(self, device: torch.device) -> "Noise":
        """The same noise, computed on that device."""
        return Noise(self.seed, self.index.to(device, non_blocking=True), self.draw.to(device, non_blocking=True))

    def rows(self, rows: slice) -> "Noise":
        """The noise of some of the rows."""
        return Noise(self.seed, self.index[rows], self.draw[rows])

    def uniform(self, shape: tuple[int, ...], stream: str) -> Tensor:
        """float32 (B, *shape), uniform on the open interval (0, 1), independent for every stream name."""
        words = self._words(prod(shape), stream).to(torch.float32)
        return words.add_(0.5).mul_(2.0**-23).reshape(len(self.index), *shape)

    def normal(self, shape: tuple[int, ...], stream: str) -> Tensor:
        """float32 (B, *shape), standard normal: Phi^-1 of the uniforms."""
        # 2u - 1 = (2k + 1 - 2^23) / 2^23 is exact in float32, so the tails are symmetric and finite (|z| < 5.4).
        words = self._words(prod(shape), stream).to(torch.float32)
        return torch.erfinv(words.mul_(2.0**-22).add_(2.0**-23 - 1)).mul_(sqrt(2)).reshape(len(self.index), *shape)

    def _words(self, size: int, stream: str) -> Tensor:
        """int32 (B, size) words of 23 random bits."""
        blocks, count, device = -(-size // 4), len(self.index), self.index.device
        key = (self.seed & _MASK, (self.seed >> 32) & _MASK)
        words = torch.empty(count, blocks, 4, dtype=torch.int32, device=device)
        position = torch.arange(blocks, device=device)[None]
        name = torch.full_like(position[:, :1], zlib.crc32(stream.encode()))
        counters: list[Any] = [position, self.index[:, None] & _MASK, self.draw[:, None] & _MASK, name]
        into: Any = words
        step = count
        if device.type == "cpu":  # where NumPy needs half of torch's time for integers
            counters, into, step = [c.numpy() for c in counters], words.numpy(), max(1, _CHUNK // max(1, blocks))
        position, index, draw, name = counters
        for start in range(0, count, max(1, step)):
            rows = slice(start, start + step)
            for k, word in enumerate(philox(position, index[rows], draw[rows], name, key)):
                into[rows, :, k] = word >> 9
        return words.reshape(count, 4 * blocks)[:, :size]
