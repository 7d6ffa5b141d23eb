"""Owns TL905 and TL906: whether a block's roles come to an end and lose nothing, by replaying a few tiles."""

from __future__ import annotations

from collections.abc import Mapping

from harness.tl import ir, syntax
from harness.tl.channels import Kind, channels
from harness.tl.checks.capacity import choices
from harness.tl.checks.schedule import keys_of
from harness.tl.diagnostics import Finding, finding
from harness.tl.evaluate import evaluate
from harness.tl.problem import TaskLike, all_workloads, scalars
from harness.tl.protocol import protocol
from harness.tl.replay import Fate, replay
from harness.tl.roles import row_extent
from harness.tl.schedule import Schedule
from harness.tl.syntax import Pos

_MOST = 4  # schedules of a set that are replayed; each takes about 30 ms
_CODE = {Fate.DEADLOCK: "TL905", Fate.UNEVEN: "TL905", Fate.OVERWRITTEN: "TL906", Fate.STALE: "TL906"}


def check_channels(program: ir.Program, task: TaskLike, tree: syntax.Program) -> list[Finding]:
    """What goes wrong between the roles, of the schedules that the program's line spans.

    Of each number of consumers, with and without overlap and turns, the one with fewest stages is
    replayed: more places let no role wait that would not wait before.
    """
    given = keys_of(tree)
    pos = next((given[k][0] for k in ("consumers", "producer", "pingpong") if k in given), Pos(1, 1))
    tried: dict[tuple[int, int, int], Schedule] = {}
    for schedule in Schedule.every(program):
        key = (schedule.consumers, schedule.overlap, schedule.pingpong if schedule.consumers > 1 else 0)
        known = tried.get(key)
        if known is None or (schedule.stages, -schedule.persistent) < (known.stages, -known.persistent):
            tried[key] = schedule
    found = []
    for schedule in list(tried.values())[:_MOST]:
        for kernel in program.kernels:
            fault = None
            try:
                few = tiles_to_replay(kernel, program, task, schedule)
                fault = replay(protocol(kernel, schedule, few)) if few else None
            except (KeyError, ArithmeticError, ValueError, TypeError):
                continue  # bounds that only the interpreter can compute
            if fault is not None:
                overlap = " and overlap" if schedule.overlap else ""
                with_ = f"{schedule.consumers} consumers, stages {schedule.stages}{overlap}"
                found.append(finding(_CODE[fault.fate], pos, f"with {with_}: {fault.message}"))
    return list({f.code: f for f in reversed(found)}.values())


def tiles_to_replay(
    kernel: ir.Kernel, program: ir.Program, task: TaskLike, schedule: Schedule
) -> list[Mapping[str, object]]:
    """The first, the last and again the first tile of a short sequence; none where no choice has its rows."""
    extent = row_extent(kernel)
    workload = all_workloads(task)[0]
    if extent is None:
        return []
    values: dict[str, object] = {**scalars(workload)}
    fitting = [c for c in choices(program, ()) if evaluate(extent, {**values, **c}) == schedule.rows]
    if not fitting:
        return []
    largest = max(fitting, key=lambda c: sum(c.values()))
    values.update(largest)
    rings = [c.tile for c in channels(kernel, schedule) if c.kind is Kind.RING and c.tile is not None]
    keys = max((int(evaluate(t.shape[0], values)) for t in rings), default=schedule.rows)
    length = 2 * max(schedule.rows, keys) + keys
    values |= {"seq_q": length, "seq_k": length} | {axis.name: 0 for axis in kernel.grid}
    axis = next((a for a in kernel.grid if a.role == "rows"), None)
    if axis is None:
        return [values] * 3
    last = int(evaluate(axis.extent, values)) - 1
    return [values | {axis.name: i} for i in (0, last, 0)]
