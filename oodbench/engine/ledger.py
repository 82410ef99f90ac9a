"""What is known of one pass's columns, on disk and in memory, and what is still missing."""

from contextlib import suppress

import numpy as np
import torch
from torch import Tensor

from oodbench.engine.cache import Chunk, Entry
from oodbench.engine.device import Stopwatch
from oodbench.engine.passes import Pass
from oodbench.errors import OodbenchError
from oodbench.files import check_writable
from oodbench.models.noise import Noise

__all__ = ["Ledger"]


class Ledger:
    """The columns of one pass for N images, given by their increasing `rows` of the full data set."""

    def __init__(self, step: Pass, entry: Entry | None, rows: np.ndarray, device: torch.device) -> None:
        self._pass = step
        self._entry = entry
        self._rows = rows
        self._device = device if step.needs_model else torch.device("cpu")
        self._watch = Stopwatch(self._device)
        self.ours = step.blame is None
        self.lanes = 1  # how many batches are computed at a time
        known = entry.read() if entry is not None else None
        self._chunks = [] if known is None else [known]
        self.missing = np.ones(len(rows), bool) if known is None else ~np.isin(rows, known.rows)  # (N,)
        self._positions: list[np.ndarray] = []  # computed, and not yet written: still on the device
        self._outputs: list[dict[str, Tensor]] = []

    def check_writable(self) -> None:
        """Raises `OodbenchError` if what is missing could be computed, but not kept."""
        if self._entry is not None and self.missing.any():
            check_writable(self._entry.folder)

    def compute(self, pixels: np.ndarray, index: np.ndarray, seed: int, size: int) -> dict[str, Tensor]:
        """The pass's columns of at most `size` images uint8 (B, C, H, W), on the device."""
        if self._device.type == "cuda":
            # One shape only, by repeating the last image: nothing is compiled, searched or recorded twice.
            padded = np.minimum(np.arange(size), len(pixels) - 1)
            x, images = self._upload(pixels[padded]), self._upload(index[padded])
        else:
            x, images = self._upload(pixels), self._upload(index)
        noise = Noise.of(images, seed)
        # The batch itself is made outside of inference mode: a statistic that needs gradients can leave the mode.
        with self._watch.running(), torch.inference_mode():
            return {name: column[: len(pixels)] for name, column in self._pass.compute(x, noise).items()}

    def _upload(self, array: np.ndarray) -> Tensor:
        """The array on the device; a GPU copies from pinned memory while it computes."""
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        if self._device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self._device, non_blocking=True)

    def add(self, positions: np.ndarray, outputs: dict[str, Tensor]) -> None:
        """Takes the columns of the images at these positions (of the N)."""
        self._positions.append(positions)
        self._outputs.append(outputs)

    def write(self) -> None:
        """Moves what was added to the host, and to disk as one chunk."""
        if not self._positions:
            return
        positions = np.concatenate(self._positions)
        columns = {name: _to_numpy(torch.cat([out[name] for out in self._outputs])) for name in self._pass.columns}
        seconds = np.full(len(positions), self._watch.read() / (len(positions) * self.lanes))
        self._positions, self._outputs = [], []
        chunk = Chunk(self._rows[positions], seconds, columns)
        self._chunks.append(chunk)
        self.missing[positions] = False
        if self._entry is not None:
            self._entry.append(chunk)

    def finish(self) -> None:
        """Writes the rest, and makes one chunk of this run's."""
        self.write()
        if self._entry is not None and len(self._chunks) > 1:
            with suppress(OodbenchError):  # every row is on disk already
                self._entry.merge()

    def take(self, rows: np.ndarray) -> Chunk:
        """The columns of these rows, in this order; none of them may be missing."""
        return Chunk.join(self._chunks).take(rows)


def _to_numpy(column: Tensor) -> np.ndarray:
    """float64 and uint8 as they are, smaller floats as float32, booleans as uint8, other integers as float64."""
    if column.dtype in (torch.float16, torch.bfloat16):
        column = column.float()
    elif column.dtype == torch.bool:
        column = column.to(torch.uint8)
    elif not column.dtype.is_floating_point and column.dtype != torch.uint8:
        column = column.double()
    return column.cpu().numpy()
