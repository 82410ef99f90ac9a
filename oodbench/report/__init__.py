"""Tables and pictures: pure functions of records and score arrays."""

from oodbench.report.plots import histograms, roc_curves
from oodbench.report.tables import FORMATS, table

__all__ = ["FORMATS", "histograms", "roc_curves", "table"]
