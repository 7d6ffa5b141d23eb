"""Owns changes of speed between two runs: ratios of ratios, geomeans of them, device times.

A change is the figure of the second run over that of the first; above 1 is faster. It is called a change
only if its whole interval lies beyond a floor: the session noise of both runs in quadrature, plus the
drift between them (`reports.changes.drift`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from harness.runs import Environment
from reports.changes.drift import Drift, Role, drift_of, near, role_of, same_content
from reports.changes.pairs import CellPair, contender_of
from reports.comparable import Conditions, difference
from reports.dataset import Row
from reports.figures import (
    ONE,
    Estimate,
    Speedup,
    Standing,
    geomean_estimate,
    product,
    read_standing,
    session_noise,
    speedup,
)


@dataclass(frozen=True)
class Change:
    """Of one contender in one cell: its figure in the second run over that in the first."""

    pair: CellPair
    before: Row
    after: Row
    estimate: Estimate
    floor: float  # a log ratio: what lies within is noise
    standing: Standing
    role: Role
    speedups: tuple[Speedup, Speedup] | None = None  # None: a change of device time
    same_denominator: bool = True  # the baseline is the same by content: library and version

    @property
    def called(self) -> bool:
        """Whether it is a change at all."""
        return self.standing in (Standing.FASTER, Standing.SLOWER)

    @property
    def sure(self) -> float:
        """How far its interval's near end lies beyond the floor, a log ratio; negative: within the noise."""
        return near(self.estimate) - self.floor


@dataclass(frozen=True)
class Changes:
    """All changes of one kind, the surest and largest first."""

    of: tuple[Change, ...]
    drift: Drift
    apart: Mapping[str, int]  # why a pair of measured results has no change -> how many

    @property
    def called(self) -> tuple[Change, ...]:
        return tuple(c for c in self.of if c.called)


@dataclass(frozen=True)
class GeomeanChange:
    """Of one contender over the cells in which both runs have its speedup; every cell weighs the same."""

    contender: str
    kind: str
    cells: int
    faster: int
    slower: int
    estimate: Estimate
    floor: float
    standing: Standing


Environments = Mapping[str, Environment]


def speed_changes(pairs: Iterable[CellPair], before: Environments, after: Environments) -> Changes:
    """Changes of the paired speedup over one human baseline that both runs measured in the cell."""
    found: list[Change] = []
    apart: Counter[str] = Counter()
    for pair in pairs:
        measured = [(a, b) for a, b in pair.rows if a.measured and b.measured]
        over = denominator(pair)
        if over is None:
            apart.update(["no human baseline was measured in both runs"] * len(measured))
            continue
        for a, b in measured:
            if a is over[0]:
                continue
            change = _speed_change(pair, a, b, over, role_of(a, b, before, after))
            if change is None:
                apart["not paired with the baseline in one of the two runs"] += 1
            else:
                found.append(change)
    return _with_drift(found, apart)


def denominator(pair: CellPair) -> tuple[Row, Row] | None:
    """The baseline over which both runs are read: of the same content if there is one, then the fastest."""
    found = [(a, b) for a, b in pair.rows if a.is_baseline and a.measured and b.measured]
    return min(found, key=_preference, default=None)


def _preference(rows: tuple[Row, Row]) -> tuple[bool, float, str]:
    a, b = rows
    times = [math.log(r.measured.device_time.median_ms) for r in rows if r.measured]
    return not same_content(a, b), math.fsum(times), a.contender


def _speed_change(pair: CellPair, a: Row, b: Row, over: tuple[Row, Row], role: Role) -> Change | None:
    ours, theirs = speedup(pair.before, a, over[0]), speedup(pair.after, b, over[1])
    if ours is None or theirs is None or not (ours.paired and theirs.paired):
        return None
    same = same_content(*over)
    copied = over[0].result.bare == over[1].result.bare
    if (role is Role.COPY and not copied) or (role is Role.CONTROL and not same):
        role = Role.OTHER
    estimate = ONE if role is Role.COPY else product([theirs.estimate, ours.estimate.inverse])
    floor = math.hypot(*(max(session_noise(r) for r in rows) for rows in ((a, over[0]), (b, over[1]))))
    return Change(pair, a, b, estimate, floor, Standing.UNCLEAR, role, (ours, theirs), same)


def time_changes(pairs: Iterable[CellPair], before: Environments, after: Environments) -> Changes:
    """Changes of median device times, where both were recorded under comparable conditions.

    Two medians of separate sessions: the interval is the p10 to p90 spread of both.
    """
    found: list[Change] = []
    apart: Counter[str] = Counter()
    for pair in pairs:
        for a, b in pair.rows:
            if a.measured is None or b.measured is None:
                continue
            why = _not_comparable(a, b, before, after)
            if why is not None:
                apart[why] += 1
                continue
            role = role_of(a, b, before, after)
            estimate = ONE if role is Role.COPY else product([_rate(b), _rate(a).inverse])
            floor = math.hypot(session_noise(a), session_noise(b))
            found.append(Change(pair, a, b, estimate, floor, Standing.UNCLEAR, role))
    return _with_drift(found, apart)


def _rate(row: Row) -> Estimate:
    """Calls per millisecond, with the spread of the samples."""
    assert row.measured is not None
    t = row.measured.device_time
    return Estimate(1 / t.median_ms, 1 / max(t.p90_ms, t.median_ms), 1 / min(t.p10_ms, t.median_ms))


def _not_comparable(a: Row, b: Row, before: Environments, after: Environments) -> str | None:
    if a.result.identity.task != b.result.identity.task:
        return f"recorded with another version of the task {b.result.task}"
    ours, theirs = (
        Conditions(r.result.environment, known.get(r.result.environment), r.result.identity.protocol)
        for r, known in ((a, before), (b, after))
    )
    return difference(theirs, ours)


def _with_drift(found: Sequence[Change], apart: Mapping[str, int]) -> Changes:
    drift = drift_of([(c.sure, c.before, c.after) for c in found if c.role is Role.CONTROL])
    read = [_read(c, c.floor + drift.value) for c in found]
    return Changes(tuple(sorted(read, key=_order)), drift, dict(apart))


def _read(c: Change, floor: float) -> Change:
    return replace(c, floor=floor, standing=read_standing(c.estimate, floor))


def _order(c: Change) -> tuple[float, float]:
    """Called changes first, by what is sure of them; then by size."""
    return -c.sure if c.called else 0.0, -abs(math.log(c.estimate.median))


def geomean_changes(changes: Changes) -> tuple[GeomeanChange, ...]:
    """One for each contender, candidates first; its floor is the mean of its cells': noise may be common."""
    by: dict[tuple[str, str], list[Change]] = {}
    for change in changes.of:
        by.setdefault(contender_of(change.before), []).append(change)
    found = []
    for (kind, label), of in by.items():
        estimate = geomean_estimate([c.estimate for c in of])
        floor = math.fsum(c.floor for c in of) / len(of)
        found.append(
            GeomeanChange(
                label,
                kind,
                len(of),
                sum(c.standing is Standing.FASTER for c in of),
                sum(c.standing is Standing.SLOWER for c in of),
                estimate,
                floor,
                read_standing(estimate, floor),
            )
        )
    return tuple(sorted(found, key=lambda g: (g.kind != "candidate", -abs(math.log(g.estimate.median)))))
