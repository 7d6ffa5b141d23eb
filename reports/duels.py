"""Owns the speedup of a way through LLM-TL over the direct way: same model, same backend, same cells.

Three variants, since each alone misleads: the best of samples flatters whoever has more luck, paired
samples leave out what failed, and counting failures makes a ratio out of a convention.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from harness.measure.statistics import GeomeanInterval, clustered_bootstrap_geomean
from reports.dataset import Cell, Row
from reports.figures import FAILED_SPEEDUP, ONE, Estimate, compose, fastest, speedup
from reports.generation import Attempt, Outcome
from reports.samples import TL_METHODS, Maker

DIRECT = "vanilla"
BEST = "best of samples"
PAIRED = "paired samples"
COUNTED = "failures counted"


@dataclass(frozen=True)
class CellRatio:
    """Time of the direct way over time of the way through LLM-TL in one cell: > 1, LLM-TL is faster."""

    cell: Cell
    ours: Row | None  # None: a stand-in for a method without a right kernel there
    theirs: Row | None
    estimate: Estimate
    paired: bool
    sample: int | None = None  # of paired samples: which


@dataclass(frozen=True)
class Variant:
    """One way to compare; `ratios` has one entry a cell, of paired samples one for each pair."""

    name: str
    ratios: tuple[CellRatio, ...]
    geomean: GeomeanInterval | None
    highest: CellRatio | None

    @property
    def cells(self) -> int:
        return len({_place(r.cell) for r in self.ratios})

    @property
    def ours_failed(self) -> int:
        return sum(r.ours is None for r in self.ratios)

    @property
    def theirs_failed(self) -> int:
        return sum(r.theirs is None for r in self.ratios)

    def of(self, cell: Cell) -> tuple[CellRatio, ...]:
        return tuple(r for r in self.ratios if r.cell is cell)


@dataclass(frozen=True)
class Duel:
    """Two makers of one model; `cells` are those in which both were tried."""

    ours: Maker
    theirs: Maker
    cells: tuple[Cell, ...]
    best: Variant
    paired: Variant
    counted: Variant

    @property
    def variants(self) -> tuple[Variant, Variant, Variant]:
        return self.best, self.paired, self.counted


def duels(of: Sequence[Attempt]) -> list[Duel]:
    """Every way through LLM-TL against the direct way of the model that thinks in it, in order of makers."""
    by_maker: dict[Maker, list[Attempt]] = {}
    for attempt in of:
        by_maker.setdefault(attempt.maker, []).append(attempt)
    found = []
    for ours, own in by_maker.items():
        if ours.method not in TL_METHODS:
            continue
        theirs = Maker(ours.target, DIRECT, ours.thinker, ours.backend)
        if theirs in by_maker:
            found.append(duel(ours, theirs, own, by_maker[theirs]))
    return found


def duel(ours: Maker, theirs: Maker, own: Sequence[Attempt], other: Sequence[Attempt]) -> Duel:
    """All three variants over the cells in which both makers were tried."""
    mine, others = _by_cell(own), _by_cell(other)
    shared = [key for key in mine if key in others]
    cells = tuple(mine[key][0][1].cell for key in shared)
    best, paired, counted = [], [], []
    for key in shared:
        best += _best(mine[key], others[key])
        paired += _paired(mine[key], others[key])
        counted += _counted(mine[key], others[key])
    return Duel(
        ours, theirs, cells, _variant(BEST, best), _variant(PAIRED, paired), _variant(COUNTED, counted)
    )


_Tried = list[tuple[Attempt, Outcome]]


def _place(cell: Cell) -> tuple[str, str, str]:
    return cell.target, cell.task, cell.workload.key


def _by_cell(of: Sequence[Attempt]) -> dict[tuple[str, str, str], _Tried]:
    """What became of counted trials in each cell of their tasks."""
    found: dict[tuple[str, str, str], _Tried] = {}
    for attempt in (a for a in of if a.counted):
        for outcome in attempt.outcomes:
            if not attempt.correct or outcome.decided:
                found.setdefault(_place(outcome.cell), []).append((attempt, outcome))
    return found


def _fastest(tried: _Tried) -> Row | None:
    return fastest(tried[0][1].cell, (o.row for a, o in tried if a.correct and o.row is not None))


def _best(own: _Tried, other: _Tried) -> list[CellRatio]:
    return _between(own[0][1].cell, _fastest(own), _fastest(other))


def _paired(own: _Tried, other: _Tried) -> list[CellRatio]:
    against = {a.ending.assignment.sample: o.row for a, o in other if a.correct}
    found = []
    for attempt, outcome in own:
        sample = attempt.ending.assignment.sample
        if attempt.correct:
            found += _between(outcome.cell, outcome.row, against.get(sample), sample)
    return found


def _between(cell: Cell, ours: Row | None, theirs: Row | None, sample: int | None = None) -> list[CellRatio]:
    composed = compose(cell, ours, theirs) if ours and theirs else None
    return [CellRatio(cell, ours, theirs, *composed, sample)] if composed else []


def _counted(own: _Tried, other: _Tried) -> list[CellRatio]:
    """As the best of samples, but who has no right kernel is as fast as FAILED_SPEEDUP of the best human."""
    cell, human = own[0][1].cell, own[0][1].best
    ours, theirs = _fastest(own), _fastest(other)
    if ours and theirs:
        return _between(cell, ours, theirs)
    if human is None:
        return []
    right = ours or theirs
    if right is None:
        return [CellRatio(cell, None, None, ONE, True)]
    found = speedup(cell, right, human)
    if found is None:
        return []
    over = [v / FAILED_SPEEDUP for v in (found.estimate.median, found.estimate.low, found.estimate.high)]
    estimate = Estimate(*over) if ours else Estimate(*over).inverse
    return [CellRatio(cell, ours, theirs, estimate, found.paired)]


def _variant(name: str, ratios: Sequence[CellRatio]) -> Variant:
    """Intervals resample tasks, of paired samples pairs of trials: cells of one kernel move together."""
    logs: dict[str, list[float]] = {}
    for r in ratios:
        logs.setdefault(f"{r.cell.target}/{r.cell.task}/{r.sample}", []).append(math.log(r.estimate.median))
    return Variant(
        name,
        tuple(ratios),
        clustered_bootstrap_geomean(logs) if logs else None,
        max(ratios, key=lambda r: r.estimate.median, default=None),
    )
