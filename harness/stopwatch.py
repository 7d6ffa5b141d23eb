"""Owns the short timings that go back to a model, and the search of a program's tiles.

They rank versions of one kernel; what is published is timed again by the protocol.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median

from harness.bench import Bench
from harness.build.manifest import Manifest
from harness.experiment import Cell
from harness.generate.method import Brief
from harness.measure.claims import claimed_times
from harness.measure.roofline import Roofline
from harness.tl.check import check
from harness.tl.lower.lowered import Lowered
from harness.verdicts import Verdict
from harness.verify.exam import Question, Rejected
from harness.worker.protocol import WorkerError
from tasks.spec import Workload

MOST_CELLS = 3
ITERATIONS = 20


def timed_workloads(brief: Brief) -> tuple[Workload, ...]:
    """A few that stand for all: the first, the middle and the last by work."""
    ordered = sorted(brief.workloads, key=brief.task.flops)
    picks = {0, len(ordered) // 2, len(ordered) - 1}
    return tuple(ordered[n] for n in sorted(picks))[:MOST_CELLS]


def time_kernel(
    manifest: Manifest, brief: Brief, bench: Bench, best: Mapping[str, str]
) -> tuple[str, float | None]:
    """What is told of the kernel's times, and the geomean of its TFLOP/s; None if it cannot be timed."""
    lines, rates = [], []
    try:
        for workload in timed_workloads(brief):
            cell = Cell(brief.task, workload)
            time_ms, spills = _time(manifest, cell, bench)
            roofline = Roofline.of(cell.task, workload, bench.target)
            peak = roofline.percent_of_peak(time_ms)
            share = f", {peak:.0f} % of the dense peak" if peak is not None else ""
            tiles = f"; best tiles found: {best[workload.key]}" if workload.key in best else ""
            rates.append(roofline.tflops(time_ms))
            lines.append(
                f"{workload.key}: {time_ms:.3g} ms, {rates[-1]:.3g} TFLOP/s{share}{tiles}"
                + (f"; the compiler reports {spills}" if spills else "")
            )
    except Rejected as rejected:
        return f"{rejected.verdict}: {rejected.reason}", None
    except WorkerError as error:
        return f"it could not be timed: {error}", None
    finally:
        bench.rest(manifest)
    return "\n".join(lines), math.exp(sum(map(math.log, rates)) / len(rates))


def _time(manifest: Manifest, cell: Cell, bench: Bench) -> tuple[float, str]:
    """Median milliseconds of a call, and what the compiler says of the kernels that ran."""
    entry = manifest.entry(cell.task.name)
    exam = bench.exam(cell.task, cell.workload, [Question("normal", bench.fresh_seed())])
    worker = bench.seat(manifest, entry).worker
    exam.admit(worker, 2)
    exam.fill(worker, [(0, 0), (1, 0)])
    exam.prepare(worker, entry)
    exam.run(worker, entry, 0, first=True)
    seen = exam.mark(worker, entry, 0, 0)
    if not seen.passed:
        raise Rejected(Verdict.WRONG_NUMERICS, f"{cell.workload.key}: {seen.note}")
    limit = bench.limits.first(worker)
    begun = time.monotonic()
    told = worker.ask("plan", {"kernel": entry}, limit_s=limit)
    waited_ms = (time.monotonic() - begun) * 1e3
    (estimate,) = claimed_times({"estimate": [told.get("estimate_ms")]}, "estimate", 1)
    iterations = max(3, min(ITERATIONS, int(1000 / max(min(estimate, waited_ms), 1e-3))))
    moves: list[list[object]] = [[]] * iterations  # a rough time to rank by: the inputs may stay as they are
    args = {"kernel": entry, "iterations": iterations, "start": 0, "moves": moves}
    answer = worker.ask("block", args, limit_s=limit)
    times = claimed_times(answer, "samples_ms", iterations)
    report = worker.ask("compiled", {}, limit_s=bench.limits.call_s)
    bench.release([worker])
    return median(times), str(report.get("text", ""))[:300]


def tile_search(program: str, brief: Brief, scratch: Path) -> tuple[Lowered | None, dict[str, str]]:
    """The program compiled with the best tiles found for the cells told of, and those tiles by cell."""
    from harness.tuning import tune

    report = check(program, brief.task, target=brief.target, dtype=brief.workloads[0].dtype)
    if report.program is None:
        return None, {}
    tuned, lowered = tune(
        report.program, brief.task, brief.target, brief.workloads, scratch, None, brief.backend
    )
    best: dict[str, str] = {}
    for workload in brief.workloads:
        mine = [t for t in tuned.timings if t.cell == workload.key and t.time_ms is not None]
        if mine:
            fastest = min(mine, key=lambda t: t.time_ms or math.inf)
            best[workload.key] = " ".join(f"{k}={v}" for k, v in fastest.choice.items())
    return (lowered, best) if tuned.rows else (None, best)
