"""How glibc treats freed memory: peers do not ask it to keep any, as our engine does."""

import ctypes
import sys

import torch
from turns import runs_as_by_default

from oodbench.engine.device import keep_freed_memory

__all__ = ["FreedMemory"]

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # names in malloc.h


class FreedMemory:
    """Called with a contender's name before its turn: peers by default get what glibc does of itself, others keep all.

    glibc takes back at once what is larger than the largest block of at most 32 MiB that was freed so far, here of
    `largest` bytes, and trims the heap at twice that. In turns of 1,024 images a Glow of normflows did 244 images/s
    under these thresholds set by hand, 205 to 221 in a process that never set any, and 477 where freed memory was kept.
    In turns of 256 the heap was not always trimmed (498 once, 237 to 268 in a process of its own). Elsewhere than on
    Linux nothing happens.
    """

    def __init__(self, largest: int) -> None:
        self.threshold = min(largest + (1 << 16), 1 << 25)
        self.kept = True

    def __call__(self, name: str) -> None:
        if not sys.platform.startswith("linux"):
            return
        keep = not runs_as_by_default(name)
        if keep and not self.kept:
            keep_freed_memory()
            blocks = [torch.zeros(1 << 26) for _ in range(4)]  # what was given back: the next shall not pay for it
            del blocks
        elif not keep:
            libc = ctypes.CDLL(None)
            libc.mallopt(_MMAP_THRESHOLD, self.threshold)
            libc.mallopt(_TRIM_THRESHOLD, 2 * self.threshold)
            libc.malloc_trim(0)  # what others kept: the next shall not pay for giving it back
        self.kept = keep
