"""Owns the reference raised by what was decided: which cases it takes over, and what it says it did.

Only what runs agreed on is taken: a case that is faster, or new. The rest keeps its old measurement. A
reference that was measured anew with every accept would follow a kernel down, a little each time.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.records import Ratio
from reports.gate.change import together
from reports.gate.decision import Judgement, Outcome
from reports.gate.saved import EXTRA, Case, Saved
from reports.gate.words import percent

NOISIER = 2.0  # times the quietest run's noise floor: too noisy to count


class Refused(ValueError):
    """The reference stays as it is; the text says why, and what to do."""


@dataclass(frozen=True)
class Raised:
    """A new reference, to be saved, and what is different in it, a sentence each."""

    content: Mapping[str, Any]
    changes: tuple[str, ...]


@dataclass(frozen=True)
class Kept:
    """A case of a reference, and pytest-benchmark's own entry for it."""

    case: Case
    benchmark: Mapping[str, Any]


def first(runs: Sequence[Saved]) -> Raised:
    """A reference of what was measured, whatever there was before. Raises Refused where that is not whole."""
    if not runs[0].cases:
        raise Refused("no kernel gave a time, so there is nothing to compare with later")
    cases = list(dict.fromkeys(case for run in runs for case in run.cases))
    disturbed = {c: why for run in runs for c, why in run.disturbed.items() if c not in cases}
    failed = disturbed | {case: why for run in runs for case, why in run.failed.items()}
    if failed:
        each = "; ".join(f"{case}: {why}" for case, why in failed.items())
        raise Refused(f"not everything was measured, so it is no reference: {each}")
    chosen = {case: _taken(case, runs) for case in cases}
    return Raised(_file(chosen, runs), tuple(f"{case}: {_speed(kept.case)}" for case, kept in chosen.items()))


def raised(reference: Saved, runs: Sequence[Saved], judgement: Judgement) -> Raised:
    """The reference with what is faster or new. Raises Refused where a case is worse than unclear."""
    for outcome, why in (
        (Outcome.NOT_COMPARABLE, "cannot be compared with the reference"),
        (Outcome.MISSING, "is missing in what was measured"),
        (Outcome.SLOWER, "is slower than the reference"),
        (Outcome.AGAIN, "has to be measured once more: attnbench gate"),
    ):
        if found := judgement.of(outcome):
            each = "; ".join(f"{d.case} {why}" + (f" ({d.reason})" if d.reason else "") for d in found)
            raise Refused(f"{each}. To take it all as it was measured now: attnbench gate accept --replace")
    chosen = {case: Kept(found, reference.benchmark(case)) for case, found in reference.cases.items()}
    changes = []
    for d in judgement.of(Outcome.FASTER):
        assert d.look is not None
        chosen[d.case] = _taken(d.case, runs)
        changes.append(f"{d.case}: {percent(d.look.speed.median - 1)} faster, the new reference")
    for d in judgement.of(Outcome.NEW):
        chosen[d.case] = _taken(d.case, runs)
        changes.append(f"{d.case}: new, {_speed(chosen[d.case].case)}")
    return Raised(_file(chosen, (reference, *runs)), tuple(changes))


def _taken(case: str, runs: Sequence[Saved]) -> Kept:
    """What runs say of a case together: from run to run a ratio differs by more than one of them knows.

    A run that is twice as noisy as the quietest is left out: noisy by the anchor's duplicate, which knows
    nothing of the kernel.
    """
    found = [run for run in runs if case in run.cases]
    quietest = min(found, key=lambda run: run.cases[case].noise_floor)
    limit = NOISIER * quietest.cases[case].noise_floor
    cases = [run.cases[case] for run in found if run.cases[case].noise_floor <= limit]
    update = {name: _mean([getattr(c, name) for c in cases]) for name in ("ratio", "noise")}
    return Kept(quietest.cases[case].model_copy(update={**update, "old": None}), quietest.benchmark(case))


def _mean(ratios: Sequence[Ratio]) -> Ratio:
    i = together(ratios)
    update = {"median": i.median, "low": i.low, "high": i.high, "pairs": i.n}
    return ratios[0].model_copy(update=update)


def _file(chosen: Mapping[str, Kept], files: Sequence[Saved]) -> dict[str, Any]:
    """As pytest-benchmark would have saved them together."""
    newest = max(files, key=lambda file: str(file.raw.get("datetime", "")))
    return {
        **{key: value for key, value in newest.raw.items() if key not in ("benchmarks", EXTRA)},
        "benchmarks": [
            {**kept.benchmark, "extra_info": {EXTRA: kept.case.model_dump(mode="json")}}
            for kept in chosen.values()
        ],
        "accepted": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _speed(case: Case) -> str:
    if case.is_anchor:
        return f"{case.time_ms:.4g} ms, the denominator"
    return f"{case.ratio.median:.3f} times {case.ratio.anchor}, noise floor {percent(case.noise_floor)}"
