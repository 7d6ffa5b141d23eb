"""Owns the conditions of the measurement: noise floor, telemetry, stopping reasons, time and money spent."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from reports.dataset import Dataset, Row


@dataclass(frozen=True)
class Noise:
    """Ratios of the anchor to its own duplicate, over the sessions of a scope."""

    scope: str
    sessions: int
    median_deviation: float  # |ratio - 1|
    worst_deviation: float
    worst: Row
    within_02: float  # share of sessions within 0.2 % of 1
    within_05: float


def noise_floor(dataset: Dataset) -> list[Noise]:
    """Per task, then over all; empty where no duplicate was timed."""
    found = []
    for target, task in dataset.groups:
        rows = [r for c in dataset.cells_of(target, task) for r in c.rows]
        found.append(_noise(dataset.group_title(target, task), rows))
    if len(dataset.groups) > 1:
        found.append(_noise("overall", dataset.rows))
    return [n for n in found if n is not None]


def _noise(scope: str, rows: Iterable[Row]) -> Noise | None:
    taken = sorted(
        ((abs(r.measured.noise.median - 1), r) for r in rows if r.measured and r.measured.noise),
        key=lambda pair: pair[0],
    )
    if not taken:
        return None
    values = [deviation for deviation, _ in taken]
    n = len(values)
    median = (values[(n - 1) // 2] + values[n // 2]) / 2
    return Noise(
        scope,
        n,
        median,
        values[-1],
        taken[-1][1],
        sum(v <= 0.002 for v in values) / n,
        sum(v <= 0.005 for v in values) / n,
    )


@dataclass(frozen=True)
class Clocks:
    """What NVML said over the blocks of one contender; None where the device does not say."""

    contender: str
    blocks: int
    sm_mhz: tuple[float, float, float] | None  # lowest, median, highest
    power_w: tuple[float, float, float] | None
    temperature_c: tuple[float, float, float] | None
    throttled: float  # share of blocks with a throttle reason
    reasons: tuple[str, ...]  # by how often
    row: Row  # one record of it


def telemetry(dataset: Dataset) -> list[Clocks]:
    """Per contender, over the blocks of all its sessions; empty where no block carries telemetry."""
    found = []
    for contender in dataset.contenders:
        rows = [r for r in dataset.rows if r.contender == contender.label and r.measured]
        taken = [b.telemetry for r in rows if r.measured for b in r.measured.blocks if b.telemetry]
        if not taken:
            continue
        reasons = Counter(reason for t in taken for reason in t.throttle)
        found.append(
            Clocks(
                contender.label,
                len(taken),
                _spread(t.sm_mhz for t in taken),
                _spread(t.power_w for t in taken),
                _spread(t.temperature_c for t in taken),
                sum(bool(t.throttle) for t in taken) / len(taken),
                tuple(name for name, _ in reasons.most_common()),
                rows[0],
            )
        )
    return found


def _spread(values: Iterable[float | None]) -> tuple[float, float, float] | None:
    known = [v for v in values if v is not None]
    return (min(known), statistics.median(known), max(known)) if known else None


def stopping(dataset: Dataset) -> dict[str, int]:
    """Why sampling ended, over all measured results."""
    return dict(Counter(r.measured.ratio.stopped for r in dataset.rows if r.measured))


@dataclass(frozen=True)
class Time:
    """Wall time of all invocations of a run, in seconds."""

    invocations: int
    interrupted: int
    wall_s: float
    gpu_work_s: float
    stages_s: dict[str, float]  # exclusive; longest first; "other" is the rest

    @property
    def gpu_share(self) -> float:
        return self.gpu_work_s / self.wall_s if self.wall_s else 0.0


def time_spent(dataset: Dataset) -> Time | None:
    """Where the time went; None without summary.jsonl."""
    if not dataset.summaries:
        return None
    stages: dict[str, float] = {}
    for summary in dataset.summaries:
        for name, spent in summary.stages_s.items():
            stages[name] = stages.get(name, 0.0) + spent
    wall = sum(s.wall_s for s in dataset.summaries)
    rest = wall - sum(stages.values())
    if rest > 0.005 * wall:
        stages["other"] = stages.get("other", 0.0) + rest
    return Time(
        len(dataset.summaries),
        sum(s.interrupted for s in dataset.summaries),
        wall,
        sum(s.gpu_work_s for s in dataset.summaries),
        dict(sorted(stages.items(), key=lambda item: -item[1])),
    )


@dataclass(frozen=True)
class Spent:
    """Tokens and money of one generated candidate's trials."""

    contender: str
    tokens_in: int
    tokens_out: int
    usd: float


def money_spent(dataset: Dataset) -> list[Spent]:
    """Candidates that cost tokens or money; empty for a run of folders and baselines only."""
    found = []
    for contender in dataset.candidates:
        costs = [r.result.cost for r in dataset.rows if r.contender == contender.label]
        spent = Spent(
            contender.label,
            sum(c.tokens_in for c in costs),
            sum(c.tokens_out for c in costs),
            sum(c.usd for c in costs),
        )
        if spent.tokens_in or spent.tokens_out or spent.usd:
            found.append(spent)
    return found
