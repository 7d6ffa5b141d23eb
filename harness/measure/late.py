"""Owns seeing, on a CPU, whether a kernel's work goes on after its calls have returned.

A call that leaves its work to a thread or a process returns at once, and what is timed around it shows none
of the work. But the operating system counts the processor time of every thread: after an honest answer all
of the worker's wait. What it uses after one call is taken off, since a library's threads may spin for a
while. Processor time, not the time that passes: on a busy machine threads wait for their turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from harness.measure.judge import JudgesClock

LATE_MS = 20.0  # longer than a library's threads and Python's own chores vary
LOOKS = 6  # the least of them counts: load delays the work of others, and never makes any
BURST_MS = 100.0
FEWEST, MOST = 8, 200  # calls
STEP_S, QUIET_STEPS = 0.002, 4  # idle for so many steps: it has ended
IDLE_MS = 0.02  # of processor time in a step: a thread that sleeps whenever it is looked at uses more
LONGEST_S = 0.5  # longer is late enough


class Watched(Protocol):
    """A worker, as far as this is concerned."""

    def ask(self, op: str, args: dict[str, Any], *, limit_s: float) -> dict[str, Any]:
        """Send one request and wait for its answer."""

    def cpu_ms(self) -> float:
        """Processor time that its processes have used so far."""

    def busy(self) -> bool:
        """Whether any thread of its processes runs, or would if a processor were free."""


def late_work_ms(
    worker: Watched,
    kernel: str,
    judge: JudgesClock,
    request_s: float = 60.0,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> float:
    """Processor time that the worker used after it had answered for many calls, beyond what one call leaves.

    One that never rests, though nothing was asked of it, is late without end.
    """
    worker.ask("spin", {"kernel": kernel, "iterations": 0}, limit_s=request_s)
    used_ms, rested = _tail(worker, clock, sleep)
    if not rested and used_ms > LATE_MS:
        return used_ms
    each_ms = max(judge.slope_ms, BURST_MS / MOST)
    many = int(min(max(BURST_MS / each_ms, FEWEST), MOST))
    least = float("inf")
    for _ in range(LOOKS):
        tails = []
        for calls in (1, many):
            args = {"kernel": kernel, "iterations": calls}
            worker.ask("spin", args, limit_s=request_s)
            tails.append(_tail(worker, clock, sleep)[0])
        least = min(least, tails[1] - tails[0])
        if least <= LATE_MS:
            break
    return max(0.0, least)


def _tail(worker: Watched, clock: Callable[[], float], sleep: Callable[[float], None]) -> tuple[float, bool]:
    """Processor time used until the worker rests, in ms, and whether it does."""
    began, before, quiet = clock(), worker.cpu_ms(), 0
    used = before
    while quiet < QUIET_STEPS and clock() - began < LONGEST_S:
        sleep(STEP_S)
        earlier, used = used, worker.cpu_ms()
        quiet = 0 if worker.busy() or used - earlier > IDLE_MS else quiet + 1
    return used - before, quiet == QUIET_STEPS
