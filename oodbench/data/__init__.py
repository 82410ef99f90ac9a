"""Where images come from, and how they enter a model's domain."""

from oodbench.data.adaptation import Adaptation, Domain, adaptation, in_domain
from oodbench.data.images import SPLITS, Images, safe_name
from oodbench.data.own import identity
from oodbench.data.sources import available, load

__all__ = [
    "SPLITS",
    "Adaptation",
    "Domain",
    "Images",
    "adaptation",
    "available",
    "identity",
    "in_domain",
    "load",
    "safe_name",
]
