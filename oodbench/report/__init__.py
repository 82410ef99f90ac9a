"""Tables and pictures: pure functions of records and score arrays."""

from oodbench.report.comparisons import comparison_table
from oodbench.report.plots import histograms, roc_curves
from oodbench.report.suites import suite_table
from oodbench.report.tables import FORMATS, table

__all__ = ["FORMATS", "comparison_table", "histograms", "roc_curves", "suite_table", "table"]
