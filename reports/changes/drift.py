"""Owns the noise between two runs, which no session sees: what unchanged kernels moved by.

A session's duplicate anchor tells what one session adds. Another day, another host of the same kind or a
restart of the driver add more. Two runs hold the means to see it: baselines whose library and version are
the same in both, recorded on a device of the same kind with the same driver and settings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from harness.runs import Environment
from reports.comparable import decisive
from reports.dataset import Row
from reports.figures import Estimate

# Taken at least where there are few controls: they may all have been lucky. Between the published runs of
# 2026-11-23 and 2026-11-25, on H100s of several hosts with the same versions, unchanged baselines moved by
# up to 0.0453 (a log ratio) beyond their intervals and the sessions' noise (6 to 67 controls a pair of runs).
USUAL_DRIFT = 0.046
FEWEST_CONTROLS = 20
# What may differ where a baseline still counts as unchanged: the harness that times it.
_HARNESS = frozenset({"harness sources", "attnbench"})


class Role(StrEnum):
    """What two results of one contender tell of the noise between their runs."""

    COPY = "copy"  # one record, in both runs: nothing
    CONTROL = "control"  # nothing that decides its speed is known to differ
    OTHER = "other"


@dataclass(frozen=True)
class Drift:
    """By how much controls moved beyond their own intervals and session noise: a log ratio."""

    value: float  # added to every floor
    controls: int
    measured: float
    worst: tuple[Row, Row] | None  # the control that moved most; None: none moved


def drift_of(controls: Sequence[tuple[float, Row, Row]]) -> Drift:
    """From how far each control lies beyond its floor (negative: within), and its two results."""
    beyond, a, b = max(controls, key=lambda c: c[0], default=(0.0, None, None))
    measured = max(beyond, 0.0)
    value = measured if len(controls) >= FEWEST_CONTROLS else max(measured, USUAL_DRIFT)
    worst = (a, b) if measured and a is not None and b is not None else None
    return Drift(value, len(controls), measured, worst)


def role_of(a: Row, b: Row, before: Mapping[str, Environment], after: Mapping[str, Environment]) -> Role:
    """Of two results of one contender; a candidate is a control only under the very same harness."""
    if a.result.bare == b.result.bare:
        return Role.COPY
    ours, theirs = before.get(a.result.environment), after.get(b.result.environment)
    if ours is None or theirs is None or not same_content(a, b):
        return Role.OTHER
    if a.result.identity.task != b.result.identity.task:
        return Role.OTHER
    differing = {name for name, (x, y) in decisive(ours, theirs).items() if x != y}
    if a.is_baseline:
        return Role.OTHER if differing - _HARNESS else Role.CONTROL
    same_rules = a.result.identity.protocol == b.result.identity.protocol
    return Role.CONTROL if same_rules and not differing else Role.OTHER


def same_content(a: Row, b: Row) -> bool:
    """The same sources of a candidate; the same name, library and version of a baseline."""
    return a.result.candidate.sha256 == b.result.candidate.sha256


def near(e: Estimate) -> float:
    """Distance of the interval from 1, a log ratio; 0 where it holds 1."""
    return max(math.log(e.low), -math.log(e.high), 0.0)
