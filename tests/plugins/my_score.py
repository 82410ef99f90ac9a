"""A score of one's own: how far an image's brightness lies from that of the images the model knows."""

import numpy as np

from oodbench import Columns, Detector, register


@register.statistic("brightness", needs_model=False)
def brightness(model, x, noise):
    """Mean pixel, 0 to 255: uint8 (B, C, H, W) to (B,)"""
    return x.float().mean(dim=(1, 2, 3))


@register.detector("my_score")
class MyScore(Detector):
    """|brightness(x) - mean brightness of the validation images|"""

    needs = ("brightness",)

    def fit(self, validation: Columns) -> None:
        self.usual = validation["brightness"].mean()

    def score(self, columns: Columns) -> np.ndarray:
        return np.abs(columns["brightness"] - self.usual)
