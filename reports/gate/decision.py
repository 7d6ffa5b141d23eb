"""Owns what becomes of each case: one run suspects, a second one that agrees convicts.

A single run is wrong now and then, whatever its interval says: a session can fall into an odd hour. So a case
that looks slower, faster or unclear is measured again, until runs agree or there have been enough.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from harness.measure.statistics import Change
from reports.gate.change import RULE, Look, Rule, look
from reports.gate.comparable import changed_software, why_not
from reports.gate.saved import Case, Saved


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
    looks: tuple[Look, ...] = ()
    reason: str = ""  # where there are no looks
    software: tuple[str, ...] = ()  # what else is different: 'numba 0.61 -> 0.62'

    @property
    def look(self) -> Look | None:
        """The one that the outcome rests on."""
        return self.looks[-1] if self.looks else None

    @property
    def kernel_changed(self) -> bool:
        return self.stored is not None and self.new is not None and self.stored.sha256 != self.new.sha256


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


def judge(reference: Saved, runs: Sequence[Saved], rule: Rule = RULE) -> Judgement:
    """Decide each case of the reference and of the runs, the whole run first, then those that repeat parts.

    Raises ValueError without a run.
    """
    if not runs:
        raise ValueError("nothing was measured")
    first, *_ = runs
    ids = dict.fromkeys((*reference.cases, *first.cases, *first.failed))
    return Judgement(tuple(_case(c, reference.cases.get(c), runs, rule) for c in ids))


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
    for new in seen:
        if reason := why_not(stored, new):
            return Decision(case, Outcome.NOT_COMPARABLE, stored, new, reason=reason)
    software = changed_software(stored.machine, seen[-1].machine)
    if stored.is_anchor:
        return Decision(case, Outcome.ANCHOR, stored, seen[0], software=software)
    looks = tuple(look(stored, new, rule) for new in seen)
    outcome, decisive = settle([one.change for one in looks], rule)
    kept = looks[: decisive + 1]
    return Decision(case, outcome, stored, seen[decisive], kept, software=software)


_BELIEVED: Mapping[Change, Outcome] = {Change.SLOWER: Outcome.SLOWER, Change.FASTER: Outcome.FASTER}


def settle(changes: Sequence[Change], rule: Rule = RULE) -> tuple[Outcome, int]:
    """What looks at one case come to, in their order, and the index of the one that decided.

    SAME clears at once. SLOWER and FASTER are believed when `agree` looks say so. What is not settled after
    `most` looks is unclear: nobody is convicted of what could not be seen.
    """
    for n, change in enumerate(changes):
        if change is Change.SAME:
            return Outcome.SAME, n
        if change in _BELIEVED and list(changes[: n + 1]).count(change) >= rule.agree:
            return _BELIEVED[change], n
    last = len(changes) - 1
    return (Outcome.UNCLEAR if len(changes) >= rule.most else Outcome.AGAIN), last
