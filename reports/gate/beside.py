"""Owns a kernel beside its old self: the ratio of the two, from one session, and a reference of such.

The two took turns in the same rounds, so whatever the machine did, it did to both, and both have the same
habits. The ratio of their block times is taken round by round; the anchor is not in it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol

from harness.measure.statistics import bootstrap_median, paired_ratios
from harness.records import Block, Measurement, Ratio, Result
from harness.verdicts import Verdict
from reports.gate.saved import Case, OldSelf, Saved

TIMED = frozenset({Verdict.OK, Verdict.LIBRARY_DISPATCH})  # right, and timed: whose work it is, is not asked


def parted(new: Result, old: Result) -> bool:
    """Whether both have a time, of different sessions: one of them was disturbed and measured again alone."""
    a, b = new.measurement, old.measurement
    timed = new.verdict in TIMED and old.verdict in TIMED
    return timed and a is not None and b is not None and not same_session(a, b)


def old_self(new: Result, old: Result) -> OldSelf:
    """What the old one was beside the new one; without a speed where they did not share a session."""
    a, b = new.measurement, old.measurement
    sha256 = old.candidate.sha256
    if a is None or b is None or old.verdict not in TIMED:
        return OldSelf(sha256=sha256, reason=f"{old.verdict}: {old.reason}")
    if not same_session(a, b):
        return OldSelf(sha256=sha256, reason="the two did not share a session")
    if a.clock != b.clock:
        return OldSelf(sha256=sha256, reason=f"it was timed by {b.clock}, the kernel of now by {a.clock}")
    speed = speed_over(a, b, old.candidate.name)
    return OldSelf(sha256=sha256, time_ms=b.device_time.median_ms, speed=speed, anchored=b.ratio)


def same_session(new: Measurement, old: Measurement) -> bool:
    """A session has one duplicate of the anchor, and its figures are not met with twice."""
    return new.noise is not None and new.noise == old.noise and new.ratio.anchor == old.ratio.anchor


class Timed(Protocol):
    """What a session says of one contender."""

    @property
    def clock(self) -> str: ...
    @property
    def ratio(self) -> Ratio: ...
    @property
    def blocks(self) -> tuple[Block, ...]: ...


def speed_over(new: Timed, old: Timed, name: str) -> Ratio:
    """The old one's time over the new one's, of one session.

    By kernel records a block's own figure is of another clock than the ratio. Then it is the quotient of the
    two ratios over the anchor, whose intervals both hold the anchor's noise: it errs on the wide side.
    """
    ours, theirs = _rounds(new.blocks), _rounds(old.blocks)
    common = sorted(ours.keys() & theirs.keys())
    a, b = new.ratio, old.ratio
    if new.clock == "kernel_records" or not common:
        up = math.hypot(math.log(a.high / a.median), math.log(b.median / b.low))
        down = math.hypot(math.log(a.median / a.low), math.log(b.high / b.median))
        median = a.median / b.median
        update = {"median": median, "low": median * math.exp(-down), "high": median * math.exp(up)}
        return a.model_copy(update={**update, "anchor": name, "pairs": min(a.pairs, b.pairs)})
    found = bootstrap_median(paired_ratios([ours[r] for r in common], [theirs[r] for r in common]))
    update = {"median": found.median, "low": found.low, "high": found.high, "pairs": found.n}
    return a.model_copy(update={**update, "anchor": name})


def _rounds(blocks: Sequence[Block]) -> dict[int, tuple[float, float]]:
    """Block times of each whole round, before and after its middle."""
    times: dict[int, list[float]] = defaultdict(list)
    for block in blocks:
        times[block.round].append(block.median_ms)
    return {n: (found[0], found[1]) for n, found in times.items() if len(found) == 2}


def former(runs: Sequence[Saved]) -> Saved:
    """The old selves of runs as a reference: what is compared where nothing was stored."""
    found: dict[str, Case] = {}
    for run in runs:
        for case in run.cases.values():
            if case.is_anchor:
                found.setdefault(case.id, case)
            elif (old := case.old) is not None and old.time_ms is not None and old.anchored is not None:
                update = {"sha256": old.sha256, "time_ms": old.time_ms, "ratio": old.anchored, "old": None}
                found.setdefault(case.id, case.model_copy(update=update))
    return Saved(runs[0].path, found, {}, {}, {}, {})
