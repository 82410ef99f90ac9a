"""Papers as data: a TOML file names pairs, models, detectors, and the published numbers with their source."""

from oodbench.suites.suite import Pair, Published, Suite, available_suites, load_suite

__all__ = ["Pair", "Published", "Suite", "available_suites", "load_suite"]
