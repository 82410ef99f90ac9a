"""Statistics of images, computed once in batches that fit the device, and kept."""

from oodbench.engine.evaluate import Evaluation, evaluate

__all__ = ["Evaluation", "evaluate"]
