"""Owns the statistics of a report: composed speedups, best baselines, geomeans, coverage.

Pure functions over rows and cells. Intervals are combined in log space in quadrature: errors
of separate timing sessions are taken as independent. An error of the shared anchor would
partly cancel in the quotient, so the combined interval errs on the wide side. It does not
contain drift between sessions: that is what the noise floor is for.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from harness.records import Measurement
from harness.verdicts import Verdict
from reports.dataset import Cell, Dataset, Row

# What a failed cell is worth in "geomean with failures counted": a tenth of the best baseline.
# A geometric mean has no room for zero; the constant is printed next to every such figure.
FAILED_SPEEDUP = 0.1
# Two kernels whose whole interval lies this close to 1 are called the same.
SAME_MARGIN = 0.01


class Standing(StrEnum):
    """A speedup read against the noise floor of its sessions."""

    FASTER = "faster"
    SLOWER = "slower"
    SAME = "same"
    UNCLEAR = "unclear"


@dataclass(frozen=True)
class Estimate:
    """A ratio with its 95 % interval; > 1 is faster."""

    median: float
    low: float
    high: float

    @property
    def inverse(self) -> Estimate:
        return Estimate(1 / self.median, 1 / self.high, 1 / self.low)


ONE = Estimate(1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Speedup:
    """Of one candidate over one baseline in one cell: time of the baseline over time of the candidate."""

    candidate: Row
    baseline: Row
    estimate: Estimate
    paired: bool  # False: quotient of medians from separate sessions, interval is the samples' p10-p90
    standing: Standing

    @property
    def how(self) -> str:
        return "paired" if self.paired else "not paired"


def geomean(values: Iterable[float]) -> float:
    """Geometric mean, computed in log space; raises ValueError for no values or one that is not > 0."""
    logs = [math.log(v) for v in values]
    if not logs:
        raise ValueError("geomean of no values")
    return math.exp(math.fsum(logs) / len(logs))


def product(factors: Sequence[Estimate]) -> Estimate:
    """Product of independent ratios; each side of the interval combined in quadrature of logs."""
    center = math.fsum(math.log(f.median) for f in factors)
    up = math.sqrt(math.fsum(math.log(f.high / f.median) ** 2 for f in factors))
    down = math.sqrt(math.fsum(math.log(f.median / f.low) ** 2 for f in factors))
    return Estimate(math.exp(center), math.exp(center - down), math.exp(center + up))


def geomean_estimate(values: Sequence[Estimate]) -> Estimate:
    """Geomean of independent ratios with the interval that their own intervals give it."""
    n = len(values)
    whole = product(values)
    center = math.log(whole.median) / n
    return Estimate(
        math.exp(center),
        math.exp(center - math.log(whole.median / whole.low) / n),
        math.exp(center + math.log(whole.high / whole.median) / n),
    )


def compose(cell: Cell, ours: Row, theirs: Row) -> tuple[Estimate, bool] | None:
    """Speedup of `ours` over `theirs`, and whether it is paired; None where one is not measured.

    Either may be a baseline or a candidate. Every measured row is an edge from the contender to
    its anchor; the shortest way between the two is multiplied up. With one common anchor this is
    ratio_ours / ratio_theirs. Of different environments are linked only a row and its own anchor, which
    it was timed in turns with. Without a way (different anchors that nothing links, or different
    environments) the quotient of median device times is given and flagged not paired; its interval is
    the p10-p90 spread of both.
    """
    if ours.measured is None or theirs.measured is None:
        return None
    if ours.result.id == theirs.result.id:
        return ONE, True
    path = _common_anchor(ours, theirs) or _path(cell, ours, theirs)
    if path is not None:
        return product(path), True
    a, b = ours.measured.device_time, theirs.measured.device_time
    spread_a = Estimate(1 / a.median_ms, 1 / max(a.p90_ms, a.median_ms), 1 / min(a.p10_ms, a.median_ms))
    spread_b = Estimate(b.median_ms, min(b.p10_ms, b.median_ms), max(b.p90_ms, b.median_ms))
    return product([spread_a, spread_b]), False


def _common_anchor(start: Row, goal: Row) -> list[Estimate] | None:
    """The way over an anchor that both have, the shortest there can be; None where it differs."""
    first, last = start.measured, goal.measured
    if first is None or last is None:
        return None
    if start.result.environment != goal.result.environment:
        return _own_anchor(start, goal)
    if first.ratio.anchor != last.ratio.anchor:
        return None
    anchor = f"baseline {first.ratio.anchor}"
    there = [] if _node(start) == anchor else [_ratio(first)]
    back = [] if _node(goal) == anchor else [_ratio(last).inverse]
    return there + back


def _own_anchor(start: Row, goal: Row) -> list[Estimate] | None:
    """The way from one to the other where that is the anchor, timed in turns with it in its own session."""
    for row, anchor, back in ((start, goal, False), (goal, start, True)):
        if row.measured is not None and _node(anchor) == f"baseline {row.measured.ratio.anchor}":
            ratio = _ratio(row.measured)
            return [ratio.inverse if back else ratio]
    return None


def _ratio(m: Measurement) -> Estimate:
    return Estimate(m.ratio.median, m.ratio.low, m.ratio.high)


def _path(cell: Cell, start: Row, goal: Row) -> list[Estimate] | None:
    """Ratios along the shortest chain of anchors from start to goal (breadth first), or None."""
    edges: dict[str, list[tuple[str, Estimate]]] = {}
    for row in cell.rows:
        m = row.measured
        if m is None or row.result.environment != start.result.environment:
            continue
        node, anchor = _node(row), f"baseline {m.ratio.anchor}"
        if node == anchor:
            continue  # an anchor beside itself is its own duplicate: 1 by definition
        ratio = _ratio(m)
        edges.setdefault(node, []).append((anchor, ratio))
        edges.setdefault(anchor, []).append((node, ratio.inverse))
    if start.result.environment != goal.result.environment:
        return None
    queue: deque[tuple[str, list[Estimate]]] = deque([(_node(start), [])])
    seen = {_node(start)}
    while queue:
        node, path = queue.popleft()
        if node == _node(goal):
            return path
        for following, ratio in edges.get(node, []):
            if following not in seen:
                seen.add(following)
                queue.append((following, [*path, ratio]))
    return None


def _node(row: Row) -> str:
    return f"{row.result.candidate.kind} {row.contender}"


def fastest(cell: Cell, rows: Iterable[Row]) -> Row | None:
    """The fastest measured of these rows of a cell, by paired ratios; None if none was measured."""
    measured = [r for r in rows if r.measured is not None]
    if not measured:
        return None
    speedups = [(compose(cell, r, measured[0]), r) for r in measured]
    return max(((s[0].median, r) for s, r in speedups if s is not None), key=lambda pair: pair[0])[1]


def best_baseline(cell: Cell) -> Row | None:
    """The fastest measured baseline of a cell: the denominator of its headline; None if none was measured."""
    return fastest(cell, cell.baselines)


def speedup(cell: Cell, candidate: Row, baseline: Row | None = None) -> Speedup | None:
    """Of a candidate over `baseline`, by default the best of the cell; None where there is no figure."""
    baseline = baseline or best_baseline(cell)
    composed = compose(cell, candidate, baseline) if baseline is not None else None
    if composed is None or baseline is None:
        return None
    estimate, paired = composed
    floor = max(session_noise(candidate), session_noise(baseline))
    return Speedup(candidate, baseline, estimate, paired, read_standing(estimate, floor))


def session_noise(row: Row) -> float:
    """The duplicate anchor's deviation from 1 in this row's session, interval included; 0 if not taken."""
    noise = row.measured.noise if row.measured else None
    return max(abs(math.log(noise.low)), abs(math.log(noise.high))) if noise else 0.0


def read_standing(estimate: Estimate, floor: float) -> Standing:
    """Faster or slower only if the whole interval is beyond the noise floor (a log ratio, >= 0)."""
    if math.log(estimate.low) > floor:
        return Standing.FASTER
    if math.log(estimate.high) < -floor:
        return Standing.SLOWER
    if max(-math.log(estimate.low), math.log(estimate.high)) <= SAME_MARGIN:
        return Standing.SAME
    return Standing.UNCLEAR


@dataclass(frozen=True)
class Headline:
    """One candidate against the best human baseline over a set of cells.

    `cells` counts cells with a measured baseline on which the candidate was tried and the
    verdict counts. `proven`, `not_counted` (skipped, infra) and `no_baseline` cells stand apart.
    """

    candidate: str
    scope: str  # a task, or "overall"
    cells: int
    measured: int
    faster: int  # cells won beyond the noise floor
    not_paired: int
    geomean: Estimate | None  # of measured cells
    geomean_failures_counted: float | None  # failed cells as FAILED_SPEEDUP
    proven: int
    not_counted: int
    no_baseline: int
    untried: int  # cells in which the run has no record of it


def headline(candidate: str, scope: str, cells: Sequence[Cell]) -> Headline:
    """Coverage and geomean speedups of one candidate over these cells, every cell weighing the same."""
    won: list[Speedup] = []
    counts: Counter[str] = Counter()
    for cell in cells:
        row = cell.row(candidate)
        if row is None:
            counts["untried"] += 1
        elif not row.counted:
            counts["not_counted"] += 1
        elif row.result.verdict is Verdict.PROVEN:
            counts["proven"] += 1
        elif best_baseline(cell) is None:
            counts["no_baseline"] += 1
        else:
            counts["cells"] += 1
            found = speedup(cell, row)
            won += [found] if found else []
    values = [s.estimate for s in won]
    failed = counts["cells"] - len(won)
    everything = [v.median for v in values] + [FAILED_SPEEDUP] * failed
    return Headline(
        candidate=candidate,
        scope=scope,
        cells=counts["cells"],
        measured=len(won),
        faster=sum(s.standing is Standing.FASTER for s in won),
        not_paired=sum(not s.paired for s in won),
        geomean=geomean_estimate(values) if values else None,
        geomean_failures_counted=geomean(everything) if everything else None,
        proven=counts["proven"],
        not_counted=counts["not_counted"],
        no_baseline=counts["no_baseline"],
        untried=counts["untried"],
    )


def headlines(dataset: Dataset) -> list[Headline]:
    """For each candidate: one per task, then overall where there are several tasks."""
    found = []
    for contender in dataset.candidates:
        for target, task in dataset.groups:
            scope = dataset.group_title(target, task)
            found.append(headline(contender.label, scope, dataset.cells_of(target, task)))
        if len(dataset.groups) > 1:
            found.append(headline(contender.label, "overall", dataset.cells))
    return found
