"""Owns by how much a case changed, and whether that is more than noise; pure functions.

Where its old self ran in the same session, the change is the ratio of the two. Else it is that of two days,
whose times say little. But each was measured beside the same anchor, in blocks A B B A: what the machine
did that day is in both of them, and mostly not in their ratio. So the change is the new ratio over the stored
one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import stdev

from harness.measure.statistics import Change, Interval, classify, noise_floor
from harness.records import Ratio
from reports.figures import Estimate, product
from reports.gate.saved import Case


@dataclass(frozen=True)
class Rule:
    """What counts as a change. Shares of time: 0.05 is 5 %."""

    least: float = 0.05  # a smaller change is none, however well it is measured
    noise_factor: float = 2.0  # times the noise floor: nor is one that the anchor might make against itself
    blind: float = 0.10  # a band wider than this hides what a gate is there to see
    agree: int = 2  # runs that must say the same before it is believed
    most: int = 4  # runs of one case
    reference: int = 3  # runs behind a reference, each in processes of its own


RULE = Rule()


@dataclass(frozen=True)
class Look:
    """What runs say of a case. `speed`: new over old, above 1 is faster."""

    speed: Interval
    noise_floor: float  # of the session, or of the noisier of the two that are compared
    band: float  # what must be exceeded
    change: Change


def look(stored: Case, runs: Sequence[Case], rule: Rule = RULE) -> Look:
    """Compare what one or more runs of a case say together with the reference.

    Where all of them have its old self in them, by that; what is stored is not asked then.
    """
    noise = noise_floor(together([run.noise for run in runs]))
    speeds = [found for run in runs if (found := speed_beside(stored, run)) is not None]
    if len(speeds) == len(runs):
        speed = together(speeds)
    else:
        speed = quotient(together([run.ratio for run in runs]), together([stored.ratio]))
        noise = max(stored.noise_floor, noise)
    band = max(rule.least, rule.noise_factor * noise)
    change = classify(speed, band)
    if change is Change.SAME and band > rule.blind:
        change = Change.UNCLEAR  # nothing was seen, and nothing could have been
    return Look(speed, noise, band, change)


def speed_beside(stored: Case, new: Case) -> Ratio | None:
    """How much faster a case is than its old self of the same session; None where that was not there."""
    old = new.old
    return old.speed if old is not None and old.sha256 == stored.sha256 else None


def together(ratios: Sequence[Ratio]) -> Interval:
    """Independent measurements of one ratio as one: the mean of the logarithms.

    The arms are theirs in quadrature over their number, and no shorter than the scatter of the medians says.
    """
    n, logs = len(ratios), [math.log(r.median) for r in ratios]
    middle = sum(logs) / n
    scatter = 1.96 * stdev(logs) / math.sqrt(n) if n > 1 else 0.0
    up = max(scatter, math.hypot(*(math.log(r.high / r.median) for r in ratios)) / n)
    down = max(scatter, math.hypot(*(math.log(r.median / r.low) for r in ratios)) / n)
    pairs = sum(r.pairs for r in ratios)
    return Interval(math.exp(middle), math.exp(middle - down), math.exp(middle + up), pairs)


def quotient(new: Interval, stored: Interval) -> Interval:
    """new / stored with its interval.

    The errors of the two are independent, so the arms of their intervals add in quadrature, as logarithms;
    the new one's upper arm goes with the stored one's lower arm.
    """
    found = product([_estimate(new), _estimate(stored).inverse])
    return Interval(found.median, found.low, found.high, min(new.n, stored.n))


def _estimate(of: Interval) -> Estimate:
    return Estimate(of.median, of.low, of.high)
