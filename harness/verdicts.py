"""Owns what can become of a trial on a workload, and how far it came."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Verdict(StrEnum):
    """What became of a trial on a workload; docs/protocol.md explains each."""

    OK = "ok"
    SKIPPED = "skipped"  # a baseline or backend that cannot run this here; `reason` says why
    NO_CODE = "no_code"
    BUILD_ERROR = "build_error"
    CRASH = "crash"
    TIMEOUT = "timeout"
    WRONG_SHAPE = "wrong_shape"
    WRONG_NUMERICS = "wrong_numerics"
    NON_DETERMINISTIC = "non_deterministic"
    OUT_OF_BOUNDS = "out_of_bounds"
    INTEGRITY = "integrity"
    LIBRARY_DISPATCH = "library_dispatch"
    IMPOSSIBLE = "impossible"
    PROVEN = "proven"  # numerics right, speed not measurable here (interpreter, other GPU)
    INFRA = "infra"  # our fault or the machine's: excluded from rates, counted apart


class Stage(StrEnum):
    """The funnel, in order; a trial's stage is the last one it completed."""

    PLANNED = "planned"
    GENERATED = "generated"
    BUILT = "built"
    RAN = "ran"
    CORRECT = "correct"
    CLEAN = "clean"
    MEASURED = "measured"


FUNNEL: tuple[Stage, ...] = tuple(Stage)[1:]

_LAST_STAGE: Mapping[Verdict, Stage] = {
    Verdict.OK: Stage.MEASURED,
    Verdict.SKIPPED: Stage.PLANNED,
    Verdict.NO_CODE: Stage.PLANNED,
    Verdict.BUILD_ERROR: Stage.GENERATED,
    Verdict.CRASH: Stage.BUILT,
    Verdict.TIMEOUT: Stage.BUILT,
    Verdict.WRONG_SHAPE: Stage.BUILT,
    Verdict.WRONG_NUMERICS: Stage.RAN,
    Verdict.NON_DETERMINISTIC: Stage.RAN,
    Verdict.OUT_OF_BOUNDS: Stage.RAN,
    Verdict.INTEGRITY: Stage.CORRECT,
    Verdict.LIBRARY_DISPATCH: Stage.CORRECT,
    Verdict.IMPOSSIBLE: Stage.CLEAN,
    Verdict.PROVEN: Stage.CLEAN,
    Verdict.INFRA: Stage.PLANNED,
}


def stage_of(verdict: Verdict) -> Stage:
    """The last stage of the funnel that a trial with this verdict completed."""
    return _LAST_STAGE[verdict]


# Verdicts that count neither as success nor as failure of the candidate.
NOT_COUNTED = frozenset({Verdict.SKIPPED, Verdict.INFRA})
# Verdicts of trials whose times are kept.
MEASURED_VERDICTS = frozenset({Verdict.OK, Verdict.LIBRARY_DISPATCH, Verdict.IMPOSSIBLE, Verdict.INTEGRITY})
