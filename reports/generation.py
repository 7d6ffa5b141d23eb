"""Owns the figures of trials of models: how far they came, pass@k, fast_p, speedup over the best human.

Pure functions. A trial is right if it ended with a kernel that passed verification. Trials that the
machine spoilt (infra) are in no rate. Intervals of geomeans resample whole trials: another time the
model writes other kernels, and all cells of a trial come from one kernel.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harness.measure.statistics import (
    GeomeanInterval,
    clustered_bootstrap_geomean,
    fast_p,
    pass_at_k,
)
from harness.story import Ending
from harness.verdicts import FUNNEL, NOT_COUNTED, Stage, Verdict, stage_of
from reports.dataset import Cell, Dataset, Row
from reports.figures import FAILED_SPEEDUP, Speedup, best_baseline, speedup
from reports.samples import Maker, maker_of, makers

KS = (1, 3, 5)
PS = (0.5, 0.8, 1.0, 1.1)
OVERALL = "overall"
NOT_CLEAN = frozenset({Verdict.LIBRARY_DISPATCH, Verdict.INTEGRITY})
_ORDER = tuple(Stage)


@dataclass(frozen=True)
class Outcome:
    """What a trial came to in one cell of its task."""

    cell: Cell
    best: Row | None  # the best human baseline
    row: Row | None  # None: the run did not get there
    speedup: Speedup | None  # over `best`

    @property
    def decided(self) -> bool:
        """Whether the row says success or failure: not infra, skipped, or right without a measurement."""
        return self.row is not None and self.row.counted and self.row.result.verdict is not Verdict.PROVEN


@dataclass(frozen=True)
class Attempt:
    """One trial that ended, with its results in the cells of its task."""

    ending: Ending
    maker: Maker
    outcomes: tuple[Outcome, ...]

    @property
    def task(self) -> str:
        return self.ending.assignment.task

    @property
    def counted(self) -> bool:
        return self.ending.verdict not in NOT_COUNTED

    @property
    def correct(self) -> bool:
        return self.ending.verdict is None

    @property
    def rows(self) -> tuple[Row, ...]:
        return tuple(o.row for o in self.outcomes if o.row is not None)

    @property
    def measured(self) -> tuple[Row, ...]:
        return tuple(r for r in self.rows if r.measured)

    @property
    def untimed(self) -> bool:
        """Whether its kernel is right and was timed nowhere: whether it is clean is not known."""
        return self.correct and not self.rows

    @property
    def stage(self) -> Stage:
        """The last stage it completed; measured only if every cell of its task is ok that counts."""
        if self.ending.verdict is not None:
            # without a kernel that was handed on nothing is right, whatever the judge objected to
            return min(stage_of(self.ending.verdict), Stage.RAN, key=_ORDER.index)
        if not self.rows or any(r.result.verdict in NOT_CLEAN for r in self.rows):
            return Stage.CORRECT
        whole = all(o.row is not None and (o.row.measured or not o.row.counted) for o in self.outcomes)
        return Stage.MEASURED if whole and self.measured else Stage.CLEAN

    def reached(self, stage: Stage) -> bool:
        return _ORDER.index(self.stage) >= _ORDER.index(stage)

    @property
    def fastest(self) -> Speedup | None:
        """Its best cell, against the best human."""
        found = [o.speedup for o in self.outcomes if o.speedup]
        return max(found, key=lambda s: s.estimate.median, default=None)


def attempts(dataset: Dataset) -> tuple[Attempt, ...]:
    """Every trial that ended: by maker, then by task, then by sample."""
    rows = {(r.result.candidate.trial, r.result.workload.key): r for r in dataset.rows if r.generated}
    cells = {g: [(c, best_baseline(c)) for c in dataset.cells_of(*g)] for g in dataset.groups}
    who = {m: n for n, m in enumerate(makers(dataset))}
    tasks = {group: n for n, group in enumerate(dataset.groups)}
    found = []
    for ending in dataset.endings:
        a = ending.assignment
        outcomes = [
            _outcome(cell, human, rows.get((ending.trial, cell.workload.key)))
            for cell, human in cells.get((a.target, a.task), ())
        ]
        found.append(Attempt(ending, maker_of(a), tuple(outcomes)))

    def place(attempt: Attempt) -> tuple[int, int, int]:
        a = attempt.ending.assignment
        return who[attempt.maker], tasks.get((a.target, a.task), len(tasks)), a.sample

    return tuple(sorted(found, key=place))


def _outcome(cell: Cell, best: Row | None, row: Row | None) -> Outcome:
    return Outcome(cell, best, row, speedup(cell, row, best) if row and best else None)


@dataclass(frozen=True)
class PassAt:
    """pass@k, unbiased, averaged over the tasks that have k samples; None where none has."""

    k: int
    value: float | None
    tasks: int
    too_few: int  # tasks with fewer than k samples: they are not in the average


def passes(counts: Iterable[tuple[int, int]], k: int) -> PassAt:
    """From (samples, right ones) of each task."""
    counts = tuple(counts)
    values = [pass_at_k(n, c, k) for n, c in counts if n >= k]
    mean = math.fsum(values) / len(values) if values else None
    return PassAt(k, mean, len(values), len(counts) - len(values))


@dataclass(frozen=True)
class Pace:
    """Speed over the best human baseline, over pairs of a trial and a cell of its task."""

    pairs: int  # with a measured baseline and a verdict that counts
    measured: int
    apart: int  # infra, proven, not reached, or no baseline measured
    fast: dict[float, float]  # p -> share of pairs right and more than p times as fast; empty without pairs
    geomean: GeomeanInterval | None  # of measured pairs
    failures_counted: GeomeanInterval | None  # the others as FAILED_SPEEDUP


def pace(of: Sequence[Attempt]) -> Pace:
    """Every pair weighs the same; failures of a trial are failures in each cell of its task."""
    speedups: list[float | None] = []
    measured: dict[str, list[float]] = {}
    everything: dict[str, list[float]] = {}
    apart = 0
    for attempt in (a for a in of if a.counted):
        for o in attempt.outcomes:
            if o.best is None or (attempt.correct and not o.decided):
                apart += 1
                continue
            value = o.speedup.estimate.median if attempt.correct and o.speedup else None
            speedups.append(value)
            everything.setdefault(attempt.ending.trial, []).append(math.log(value or FAILED_SPEEDUP))
            if value is not None:
                measured.setdefault(attempt.ending.trial, []).append(math.log(value))
    right = [s is not None for s in speedups]
    return Pace(
        pairs=len(speedups),
        measured=sum(right),
        apart=apart,
        fast={p: fast_p(speedups, right, p) for p in PS} if speedups else {},
        geomean=clustered_bootstrap_geomean(measured) if measured else None,
        failures_counted=clustered_bootstrap_geomean(everything) if everything else None,
    )


@dataclass(frozen=True)
class Score:
    """What the trials of one maker came to, on one task or overall."""

    maker: Maker
    scope: str
    trials: int  # that count
    infra: int  # spoilt by the machine: in no rate
    untimed: int  # right, and not timed in any cell: in no rate of clean ones
    reached: dict[Stage, int]
    failed: dict[Verdict, int]  # verdicts of trials that ended without a right kernel
    correct_at: tuple[PassAt, ...]  # for each of KS
    clean_at: tuple[PassAt, ...]  # the same for kernels that are right and no library in disguise
    pace: Pace

    @property
    def correct(self) -> int:
        return self.reached[Stage.CORRECT]


def score(maker: Maker, scope: str, of: Sequence[Attempt]) -> Score:
    """Of these trials of one maker."""
    counted = [a for a in of if a.counted]
    tasks: dict[str, list[Attempt]] = {}
    for a in counted:
        tasks.setdefault(a.task, []).append(a)

    def at(stage: Stage) -> tuple[PassAt, ...]:
        known = [
            [a for a in members if stage is Stage.CORRECT or not a.untimed] for members in tasks.values()
        ]
        right = [(len(members), sum(a.reached(stage) for a in members)) for members in known]
        return tuple(passes(right, k) for k in KS)

    return Score(
        maker=maker,
        scope=scope,
        trials=len(counted),
        infra=len(of) - len(counted),
        untimed=sum(a.untimed for a in counted),
        reached={stage: sum(a.reached(stage) for a in counted) for stage in FUNNEL},
        failed=dict(Counter(a.ending.verdict for a in counted if a.ending.verdict is not None)),
        correct_at=at(Stage.CORRECT),
        clean_at=at(Stage.CLEAN),
        pace=pace(of),
    )


def scores(dataset: Dataset, of: Sequence[Attempt]) -> list[Score]:
    """For each maker: one per task, then overall where the run has several tasks."""
    found = []
    several = len({a.task for a in of}) > 1
    for maker in dict.fromkeys(a.maker for a in of):
        own = [a for a in of if a.maker == maker]
        for task in dict.fromkeys(a.task for a in own):
            scope = dataset.group_title(maker.target, task)
            found.append(score(maker, scope, [a for a in own if a.task == task]))
        if several:
            found.append(score(maker, OVERALL, own))
    return found


def overall(found: Sequence[Score]) -> list[Score]:
    """One a maker: over all tasks, or on the only one that the run has."""
    whole = [s for s in found if s.scope == OVERALL]
    return whole or list(found)


def unfinished(dataset: Dataset) -> int:
    """Trials that have steps and no ending: the run was cut short, or waits for answers."""
    return len({s.trial for s in dataset.steps} - {e.trial for e in dataset.endings})


def wilson(right: int, of: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927): what `right` of `of` trials say about the next ones."""
    z = 1.959964
    p, spread = right / of, z * z / of
    centre = (p + spread / 2) / (1 + spread)
    arm = z * math.sqrt(p * (1 - p) / of + spread / (4 * of)) / (1 + spread)
    return max(0.0, centre - arm), min(1.0, centre + arm)
