"""Owns the whole of what changed between two runs, each part computed once."""

from __future__ import annotations

from dataclasses import dataclass

from reports.changes.differences import Difference, differences
from reports.changes.pairs import Match, match
from reports.changes.speeds import Changes, GeomeanChange, geomean_changes, speed_changes, time_changes
from reports.changes.verdicts import VerdictChange, verdict_changes
from reports.dataset import Dataset


@dataclass(frozen=True)
class Comparison:
    """Two runs: what both have and what became of it."""

    before: Dataset
    after: Dataset
    match: Match
    verdicts: tuple[VerdictChange, ...]
    speeds: Changes
    geomeans: tuple[GeomeanChange, ...]
    times: Changes
    differences: tuple[Difference, ...]

    @property
    def results(self) -> int:
        """Results of a contender in a cell that both runs have."""
        return sum(len(pair.rows) for pair in self.match.cells)


def compare(before: Dataset, after: Dataset) -> Comparison:
    """What changed from `before` to `after`; the other way round gives the inverse."""
    matched = match(before, after)
    speeds = speed_changes(matched.cells, before.environments, after.environments)
    return Comparison(
        before=before,
        after=after,
        match=matched,
        verdicts=verdict_changes(matched.cells),
        speeds=speeds,
        geomeans=geomean_changes(speeds),
        times=time_changes(matched.cells, before.environments, after.environments),
        differences=differences(before, after),
    )
