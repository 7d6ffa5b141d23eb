"""Owns the gate's sentences: what a case came to, for people."""

from __future__ import annotations

from harness.measure.statistics import Change
from reports.gate.decision import REFERENCE, Decision, Judgement, Outcome


def percent(share: float) -> str:
    """'4.8 %', signs as they are."""
    return f"{100 * share:.1f} %"


def signed(share: float) -> str:
    """'+4.8 %', '-9.1 %'."""
    return f"{100 * share:+.1f} %"


def sentence(d: Decision) -> str:
    """What became of a case and what to make of it."""
    if d.outcome is Outcome.MISSING:
        missed = ", and the reference has one" if d.stored is not None else ""
        return f"has no time{missed}: {d.reason}"
    if d.outcome is Outcome.NOT_COMPARABLE:
        return f"{d.reason}; nothing follows from the difference"
    if d.outcome is Outcome.NEW and d.there != REFERENCE:
        old = d.new.old if d.new is not None else None
        return f"has no old self in {d.there}" + (f" that has a time: {old.reason}" if old else "")
    if d.outcome is Outcome.NEW:
        return "is not in the reference; `attnbench gate accept` adds it"
    if d.outcome is Outcome.ANCHOR:
        return "is what the others are compared with"
    if d.look is None:
        return f"has to be measured once more: {d.reason}"
    speed, seen = d.look.speed, _interval(d)
    than = "its old self, measured side by side with it" if d.beside else "the reference"
    match d.outcome:
        case Outcome.SLOWER:
            runs = f"{len(d.looks)} runs together" if len(d.looks) > 2 else "two runs agree"
            return f"is {percent(1 - speed.median)} slower than {than} ({seen}; {runs}){_cause(d)}"
        case Outcome.FASTER:
            raise_it = "`attnbench gate accept` raises the reference"
            return f"is {percent(speed.median - 1)} faster than {than} ({seen}); {raise_it}"
        case Outcome.UNCLEAR:
            if d.unchanged and d.look.change in (Change.SLOWER, Change.FASTER):
                return (
                    f"looks {d.look.change} than the reference ({seen}), but kernel and recorded software "
                    "are the same, byte for byte: it is the machine that is different"
                )
            return f"cannot be told after {len(d.looks)} runs ({seen}): measure on a quieter machine"
        case Outcome.AGAIN:
            return f"has to be measured once more ({seen})"
    return f"is as fast as {than} ({seen})"


def _interval(d: Decision) -> str:
    assert d.look is not None
    speed = d.look.speed
    return (
        f"{signed(speed.median - 1)}, between {signed(speed.low - 1)} and {signed(speed.high - 1)}; "
        f"less than {percent(d.look.band)} of time is no change here"
    )


def _cause(d: Decision) -> str:
    """What else is different, where that helps to find out."""
    if d.beside:
        return ". Its sources have changed; all else was the same for both"
    software = f", and so did {', '.join(d.software)}" if d.software else ""
    if d.kernel_changed:
        return f". Its sources have changed{software}{_alone(d)}"
    return f". Its sources are the same; what changed: {', '.join(d.software)}"


def _alone(d: Decision) -> str:
    """Why a changed kernel was not measured beside its old self, and what to do about it."""
    if d.stored is not None and d.stored.kind == "baseline":
        return ""
    old = d.new.old if d.new is not None else None
    if old is not None and old.reason:
        return f". By the stored measurement: its old self gave no time to compare with ({old.reason})"
    return (
        ". By the stored measurement: its old sources are not kept with the reference. One made anew, on the "
        "version before (`attnbench gate --reference`), has the two measured side by side"
    )


def headline(judgement: Judgement) -> str:
    """The whole gate in a sentence."""
    counts = {o: len(judgement.of(o)) for o in Outcome if o is not Outcome.ANCHOR}
    listed = ", ".join(f"{n} {outcome}" for outcome, n in counts.items() if n)
    if judgement.failed:
        return f"FAILED: {listed}"
    if not judgement.comparable:
        return f"NOT COMPARABLE, neither passed nor failed: {listed}"
    if judgement.again:
        return f"UNDECIDED: {listed}"
    return f"passed: {listed or 'no cases'}"
