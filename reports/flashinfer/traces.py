"""Owns what became of a result in flashinfer-bench's terms: status, correctness, performance.

The format's words are fewer than the verdicts. What it has no word for is no trace, with the reason;
what it has a word for, and what was rejected for another cause than wrong numbers, begins its log with
the verdict.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from harness.records import Check, Result
from harness.runs import Environment as Found
from harness.verdicts import Verdict
from reports.dataset import Cell, Row
from reports.figures import Speedup, best_baseline, speedup
from reports.flashinfer.definitions import Unsayable
from reports.flashinfer.schema import Correctness, Environment, Evaluation, Performance, Status

STATUS: Mapping[Verdict, Status] = {
    Verdict.OK: Status.PASSED,
    Verdict.NO_CODE: Status.COMPILE_ERROR,
    Verdict.BUILD_ERROR: Status.COMPILE_ERROR,
    Verdict.CRASH: Status.RUNTIME_ERROR,
    Verdict.TIMEOUT: Status.TIMEOUT,
    Verdict.WRONG_SHAPE: Status.INCORRECT_SHAPE,
    Verdict.WRONG_NUMERICS: Status.INCORRECT_NUMERICAL,
    Verdict.NON_DETERMINISTIC: Status.RUNTIME_ERROR,
    Verdict.OUT_OF_BOUNDS: Status.RUNTIME_ERROR,
    Verdict.INTEGRITY: Status.RUNTIME_ERROR,
    Verdict.LIBRARY_DISPATCH: Status.RUNTIME_ERROR,
    Verdict.IMPOSSIBLE: Status.RUNTIME_ERROR,
}
NO_STATUS: Mapping[Verdict, str] = {
    Verdict.SKIPPED: "it was not run, and the format has no status for that",
    Verdict.INFRA: "the machine or the harness failed, and each status of the format blames the solution",
    Verdict.PROVEN: "its numerics are right and its time is not known; PASSED would need a latency",
}
# The recipe whose inputs are drawn as flashinfer-bench draws its random ones: standard normal.
RANDOM = "normal"


def evaluation(cell: Cell, row: Row, environments: Mapping[str, Found]) -> Evaluation:
    """Of one result; raises Unsayable where the format has no status for its verdict."""
    r = row.result
    status = STATUS.get(r.verdict)
    if status is None:
        raise Unsayable(NO_STATUS[r.verdict])
    over = speedup(cell, row) if status is Status.PASSED else None
    return Evaluation(
        status=status,
        environment=_environment(r, environments.get(r.environment)),
        timestamp=r.recorded_at,
        log=_log(row, over),
        correctness=_correctness(row) if status in (Status.PASSED, Status.INCORRECT_NUMERICAL) else None,
        performance=_performance(cell, row, over) if status is Status.PASSED else None,
    )


def _environment(r: Result, found: Found | None) -> Environment:
    libs = {"attnbench": r.identity.harness, "attnbench protocol": r.identity.protocol}
    if found is not None:
        more = {"cuda": found.cuda, "driver": found.driver, "python": found.python}
        libs |= found.libraries | {name: value for name, value in more.items() if value}
    return Environment(hardware=r.device or "unknown", libs=libs)


def _log(row: Row, over: Speedup | None) -> str:
    r = row.result
    if r.verdict is not Verdict.OK:
        return f"{r.verdict.value}: {r.reason}"
    if over is None:
        return "No human baseline was measured in this cell: no reference latency, no speedup."
    e, what = over.estimate, "95 % interval" if over.paired else "p10 to p90 spread"
    return (
        f"speedup_factor: over {over.baseline.contender}, the fastest human baseline of the cell, "
        f"{over.how}; {what} {e.low:.4f} to {e.high:.4f}."
    )


def _correctness(row: Row) -> Correctness:
    r = row.result
    checks = r.verification.checks if r.verification else ()
    told = _told(r, checks)
    return Correctness(
        max_absolute_error=_worst([c.error_max for c in told]),
        max_relative_error=_worst([c.tile_error for c in told]),
        extra={
            "max_relative_error_is": "worst RMS error of a tile of 64 rows over the RMS of that tile",
            "errors_over": "checks that failed" if r.verdict is not Verdict.OK else _scope(r, told),
            "verdict": r.verdict.value,
            "record": r.id,
            "line": row.line,
            "repeats_identical": r.verification.repeats_identical if r.verification else None,
            "inputs_untouched": r.verification.inputs_untouched if r.verification else None,
            "checks": [c.model_dump(mode="json") for c in checks],
        },
    )


def _worst(errors: Sequence[float]) -> float:
    """The largest; not a number where one is: that is what the format says of such an output, too."""
    return math.nan if any(map(math.isnan, errors)) else max(errors)


def _told(r: Result, checks: Sequence[Check]) -> Sequence[Check]:
    """The checks that the two error figures are about."""
    if r.verdict is not Verdict.OK:
        return [c for c in checks if not c.passed]
    own = [c for c in checks if c.workload == r.workload.key]
    return [c for c in own if c.recipe == RANDOM] or own or checks


def _scope(r: Result, told: Sequence[Check]) -> str:
    if any(c.workload != r.workload.key for c in told):
        return "all checks"
    return f"this workload, recipe {RANDOM}" if all(c.recipe == RANDOM for c in told) else "this workload"


def _performance(cell: Cell, row: Row, over: Speedup | None) -> Performance:
    best = best_baseline(cell)
    m, reference = row.measured, best.measured if best else None
    if m is None:
        raise Unsayable("it has no measurement")
    return Performance(
        latency_ms=m.device_time.median_ms,
        reference_latency_ms=reference.device_time.median_ms if reference else 0.0,
        speedup_factor=over.estimate.median if over else 0.0,
    )
