"""Input complexity: the model's code length against that of a compressor which never saw the data."""

import io
import os
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from oodbench.detector import Columns, Detector
from oodbench.errors import OodbenchError
from oodbench.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from oodbench.models.noise import Noise

__all__ = ["InputComplexity", "complexity_bits"]

# WebP's effort 2 of 6: more takes 3 to 50 times as long and makes files of 32 x 32 photographs 0.1 % smaller at best.
# JPEG 2000 is written as a bare code stream: the JP2 box around it is another 85 bytes that say nothing of the image.
_CODECS: dict[str, dict[str, Any]] = {
    "PNG": {"optimize": True},
    "WEBP": {"lossless": True, "quality": 80, "method": 2},
    "JPEG2000": {"irreversible": False, "no_jp2": True},
}


# The codecs come with Pillow's wheels, and another release of one may give other sizes: its version is a parameter.
@register.statistic("complexity_bits", needs_model=False, parameters={"codecs": _CODECS, "pillow": version("pillow")})
def complexity_bits(model: None, x: "Tensor", noise: "Noise") -> "Tensor":
    """8 x bytes of the smallest of lossless PNG, WebP and JPEG 2000 as Pillow writes them, headers included

    Takes uint8 (B, C, H, W) as the model sees it; one channel is compressed as grey, three as RGB.
    Returns float64 (B,).
    """
    import torch
    from PIL import Image, features

    lacking = [name for name, feature in (("WebP", "webp"), ("JPEG 2000", "jpg_2000")) if not features.check(feature)]
    if lacking:
        raise OodbenchError(
            f"This Pillow was built without {' and '.join(lacking)}, which complexity_bits needs: install Pillow "
            "from its wheel, or name the detectors to run and leave out input_complexity and compressed_size."
        )
    if x.shape[1] not in (1, 3):
        raise OodbenchError(
            f"complexity_bits compresses images of 1 or 3 channels, not {x.shape[1]}: leave it out here."
        )
    images = x.cpu().permute(0, 2, 3, 1).contiguous().numpy()

    def bits(pixels: np.ndarray) -> int:
        image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        sizes = []
        for codec, options in _CODECS.items():
            buffer = io.BytesIO()
            image.save(buffer, codec, **options)
            sizes.append(len(buffer.getbuffer()))
        return 8 * min(sizes)

    # Pillow releases the interpreter's lock while it compresses.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return torch.tensor(list(pool.map(bits, images)), dtype=torch.float64)


@register.detector("input_complexity")
class InputComplexity(Detector):
    """-log2 p(x) / D - complexity_bits(x) / D: the model's bits/dim less the best lossless compressor's

    Reference:
        Serra et al., "Input Complexity and Out-of-Distribution Detection with Likelihood-Based Generative Models",
        ICLR 2020, arXiv:1909.11480: S(x) = -l(x) - L(x), both in bits/dim, L of the best of several compressors.
    """

    needs = ("log_px", "complexity_bits")

    def score(self, columns: Columns) -> np.ndarray:
        """(N,) bits/dim."""
        model_bits = -columns["log_px"].astype(np.float64) / np.log(2)
        scores: np.ndarray = (model_bits - columns["complexity_bits"].astype(np.float64)) / columns.dimensions
        return scores
