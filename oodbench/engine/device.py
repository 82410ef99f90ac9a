"""Where work runs, how much of it at a time, and how long it took."""

import ctypes
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from oodbench.errors import OodbenchError
from oodbench.messages import tell

__all__ = ["BatchSize", "Stopwatch", "choose_device", "is_out_of_memory", "keep_freed_memory", "true_float32"]

_CPU_BATCH = 64  # activations of 32 to 64 images stay in the caches: larger batches are slower
_CUDA_BYTES_PER_IMAGE = 1 << 25  # a generous guess; too large a batch is halved, so it need not hold


def choose_device(name: str) -> torch.device:
    """The device called `auto`, `cpu`, `cuda` or `cuda:N`; one that is not there is an `OodbenchError`."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise OodbenchError(f"Unknown device {name!r}: use auto, cpu, cuda or cuda:N.") from error
    if device.type not in ("cpu", "cuda"):
        raise OodbenchError(f"Device {name!r} is not supported: use auto, cpu, cuda or cuda:N.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise OodbenchError(
            f"Device {name!r} was asked for, but torch finds {torch.cuda.device_count()} GPUs here: "
            "use --device cpu, or install a torch that knows your GPU."
        )
    return device


class BatchSize:
    """How many images are computed at a time: chosen by the device, halved when its memory does not suffice."""

    def __init__(self, asked: int | str, device: torch.device) -> None:
        if asked != "auto" and (not isinstance(asked, int) or asked < 1):
            raise OodbenchError(f"The batch size must be 'auto' or a positive number, not {asked!r}.")
        self.device = device
        self.value = asked if isinstance(asked, int) else _automatic(device)

    def halve(self, used: int) -> None:
        """Makes batches half of what was `used` and did not fit; if that was one image, it is an `OodbenchError`."""
        if used <= 1:
            raise OodbenchError(
                f"Out of memory on {self.device} with a single image: use another device, or a smaller model or preset."
            )
        self.value = used // 2
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        tell(f"oodbench: out of memory with {used} images at a time; going on with {self.value}.")


def _automatic(device: torch.device) -> int:
    if device.type == "cpu":
        return _CPU_BATCH
    free, _ = torch.cuda.mem_get_info(device)
    fitting = max(64, min(1024, free // _CUDA_BYTES_PER_IMAGE))
    return 1 << (fitting.bit_length() - 1)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that a device or the computer has no memory left."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    signs = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


class Stopwatch:
    """Seconds that a device worked, without making it wait: a GPU's events are read only when it is done anyway.

    Several threads may use it at once; their seconds are added.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._seconds: list[float] = []
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Counts the block, unless it ends with an exception."""
        if self._cuda:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            yield
            end.record()
            self._events.append((start, end))
        else:
            started = time.perf_counter()
            yield
            self._seconds.append(time.perf_counter() - started)

    def read(self) -> float:
        """Seconds since the last reading."""
        for start, end in self._events:
            end.synchronize()
            self._seconds.append(start.elapsed_time(end) / 1000)
        seconds = sum(self._seconds)
        self._seconds.clear()
        self._events.clear()
        return seconds


@contextmanager
def true_float32(device: torch.device) -> Iterator[None]:
    """Inside, float32 is float32 on a GPU.

    Else cuDNN by default, and matrix products in NVIDIA's containers, round their inputs to 10 bits (TF32).
    """
    if device.type == "cuda":
        products = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            # Batches have one shape, so that searching for the fastest algorithm once is worth it.
            with torch.cuda.device(device), torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
                yield
        finally:
            torch.set_float32_matmul_precision(products)
    else:
        yield


def keep_freed_memory() -> None:
    """Tells glibc to keep large freed blocks: giving each activation back to the kernel costs up to half of the time.

    Elsewhere than on Linux with glibc it does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    mmap_threshold, trim_threshold = -3, -1  # names in malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    if not mallopt(mmap_threshold, 1 << 30):
        mallopt(mmap_threshold, 1 << 25)  # the most that older versions take
    mallopt(trim_threshold, 1 << 30)
