"""Owns what becomes of each case: one run suspects, further ones that agree convict.

A single run is wrong now and then, whatever its interval says: a session can fall into an odd hour. So a case
that looks slower, faster or unclear is measured again, until runs agree or there have been enough.

Runs that have a kernel's old self in them are believed before what is stored. And a kernel whose sources and
software are the same has not changed: what looks otherwise is the machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from harness.measure.statistics import Change
from reports.gate.change import RULE, Look, Rule, look, speed_beside
from reports.gate.comparable import changed_software, why_not
from reports.gate.saved import Case, Saved

REFERENCE = "the reference"


class Outcome(StrEnum):
    """What a case comes to."""

    SAME = "same"
    SLOWER = "slower"
    FASTER = "faster"
    MISSING = "missing"  # no time, though the reference has one or the kernel is there
    NOT_COMPARABLE = "not comparable"
    UNCLEAR = "unclear"  # too noisy, in as many runs as there may be
    AGAIN = "again"  # no decision yet: measure it once more
    NEW = "new"  # the reference does not have it
    ANCHOR = "anchor"  # the denominator: it has no ratio of its own


FAILS = frozenset({Outcome.SLOWER, Outcome.MISSING})


@dataclass(frozen=True)
class Decision:
    """One case: what it comes to, from what."""

    case: str
    outcome: Outcome
    stored: Case | None = None
    new: Case | None = None  # of the run that decided
    looks: tuple[Look, ...] = ()  # of each run
    look: Look | None = None  # the one that the outcome rests on
    reason: str = ""  # where there are no looks
    software: tuple[str, ...] = ()  # what else is different: 'numba 0.61 -> 0.62'
    there: str = REFERENCE  # what it is compared with

    @property
    def kernel_changed(self) -> bool:
        return self.stored is not None and self.new is not None and self.stored.sha256 != self.new.sha256

    @property
    def beside(self) -> bool:
        """Whether it was decided by its old self, measured side by side with it."""
        return self.stored is not None and self.new is not None and _beside(self.stored, self.new)

    @property
    def unchanged(self) -> bool:
        """Whether kernel and recorded software are those of the reference."""
        known = self.stored is not None and self.new is not None
        return known and not self.kernel_changed and not self.software


@dataclass(frozen=True)
class Judgement:
    """All cases of a gate."""

    decisions: tuple[Decision, ...]

    def of(self, *outcomes: Outcome) -> tuple[Decision, ...]:
        return tuple(d for d in self.decisions if d.outcome in outcomes)

    @property
    def again(self) -> tuple[str, ...]:
        """Cases that must be measured once more before the gate can say anything."""
        return tuple(d.case for d in self.of(Outcome.AGAIN))

    @property
    def failed(self) -> bool:
        return bool(self.of(*FAILS))

    @property
    def comparable(self) -> bool:
        return not self.of(Outcome.NOT_COMPARABLE)


def judge(reference: Saved, runs: Sequence[Saved], rule: Rule = RULE, there: str = REFERENCE) -> Judgement:
    """Decide each case of the reference and of the runs, the whole run first, then those that repeat parts.

    `there`: where the old ones are from, to be told. Raises ValueError without a run.
    """
    if not runs:
        raise ValueError("nothing was measured")
    first, *_ = runs
    ids = dict.fromkeys((*reference.cases, *first.cases, *first.failed))
    decisions = (_case(c, reference.cases.get(c), runs, rule) for c in ids)
    return Judgement(tuple(replace(d, there=there) for d in decisions))


def _case(case: str, stored: Case | None, runs: Sequence[Saved], rule: Rule) -> Decision:
    seen = [run.cases[case] for run in runs if case in run.cases]
    for run in runs:
        if case in run.failed:
            return Decision(case, Outcome.MISSING, stored, reason=run.failed[case])
    if not seen:
        if disturbed := [run.disturbed[case] for run in runs if case in run.disturbed]:
            return Decision(case, Outcome.AGAIN, stored, reason=disturbed[-1])
        return Decision(
            case, Outcome.MISSING, stored, reason=runs[0].skipped.get(case, "it was not measured")
        )
    if stored is None:
        return Decision(case, Outcome.NEW, new=seen[0])
    software = changed_software(stored.machine, seen[-1].machine)
    if stored.is_anchor and seen[0].is_anchor:
        return Decision(case, Outcome.ANCHOR, stored, seen[0], software=software)
    if beside := [new for new in seen if _beside(stored, new)]:
        return _weighed(case, stored, beside, rule, spent=len(seen) >= rule.most)
    for new in seen:
        if reason := why_not(stored, new):
            return Decision(case, Outcome.NOT_COMPARABLE, stored, new, reason=reason)
    found = _weighed(case, stored, seen, rule, software=software)
    if found.unchanged and found.outcome in _BELIEVED.values():
        return replace(found, outcome=Outcome.UNCLEAR)
    return found


def _weighed(
    case: str,
    stored: Case,
    runs: Sequence[Case],
    rule: Rule,
    *,
    spent: bool = False,
    software: tuple[str, ...] = (),
) -> Decision:
    """`spent`: there may be no further run, though some of those there were do not count."""
    weighed = weigh(stored, runs, rule)
    outcome, new = weighed.outcome, runs[len(weighed.looks) - 1]
    if outcome is Outcome.AGAIN and spent:
        outcome = Outcome.UNCLEAR
    return Decision(case, outcome, stored, new, weighed.looks, weighed.look, software=software)


def _beside(stored: Case, new: Case) -> bool:
    return speed_beside(stored, new) is not None


@dataclass(frozen=True)
class Weighed:
    """What runs of a case come to: each for itself, as far as they were needed, and the look that decided."""

    outcome: Outcome
    looks: tuple[Look, ...]
    look: Look


def weigh(stored: Case, runs: Sequence[Case], rule: Rule = RULE) -> Weighed:
    """Decide a case by its runs, in their order.

    A run that sees no change clears it, and so do all runs taken together. Slower and faster are believed
    where all together say so, and `agree` of them lie beyond the band, each for itself. What is not settled
    after `most` runs is unclear: nobody is convicted of what could not be seen. Raises ValueError without a
    run.
    """
    alone: list[Look] = []
    for n, run in enumerate(runs, 1):
        alone.append(look(stored, [run], rule))
        all_runs = look(stored, runs[:n], rule)
        for one in (alone[-1], all_runs):
            if one.change is Change.SAME:
                return Weighed(Outcome.SAME, tuple(alone), one)
        outcome = _BELIEVED.get(all_runs.change)
        if outcome is not None and sum(_beyond(one, all_runs) for one in alone) >= rule.agree:
            return Weighed(outcome, tuple(alone), all_runs)
    if not alone:
        raise ValueError("a case without a run")
    return Weighed(Outcome.UNCLEAR if len(alone) >= rule.most else Outcome.AGAIN, tuple(alone), all_runs)


_BELIEVED: Mapping[Change, Outcome] = {Change.SLOWER: Outcome.SLOWER, Change.FASTER: Outcome.FASTER}


def _beyond(one: Look, all_runs: Look) -> bool:
    """Whether a run's own median lies beyond the band, on the side where all of them are."""
    edge = 1 + all_runs.band
    return one.speed.median > edge if all_runs.change is Change.FASTER else one.speed.median < 1 / edge
