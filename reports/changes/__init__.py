"""What changed between two runs: verdicts, speedups, times, conditions.

`compare` is the function (from `reports.changes.comparison`).
"""

from reports.changes.comparison import Comparison, compare

__all__ = ["Comparison", "compare"]
