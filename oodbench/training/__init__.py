"""One trainer for every model; recipes are data."""

from oodbench.training.recipe import Recipe, load_recipe
from oodbench.training.trainer import train

__all__ = ["Recipe", "load_recipe", "train"]
