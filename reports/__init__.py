"""Reports of a run: tables, plots and pages, made from its records alone.

`render` is the function (from `reports.report`).
"""

from reports.dataset import Dataset, RunError, load_run
from reports.report import render
from reports.tables import terminal_table

__all__ = ["Dataset", "RunError", "load_run", "render", "terminal_table"]
