"""Owns seeing, on a CPU, whether a kernel's work goes on after its calls have returned.

A call that leaves its work to a thread or a process returns at once, and nothing that is timed around it
shows the work. But the operating system knows whether a thread runs or would if it could: after an honest
answer all of the worker's wait. How long it is busy after one call is taken off, since a library's threads
may spin for a while.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from harness.measure.judge import MOST, JudgesClock

LATE_MS = 20.0  # longer than a library's threads and Python's own chores vary
LOOKS = 3  # the least of them counts: load delays the work of others, and never makes any
BURST_MS = 100.0
FEWEST = 8
STEP_S, QUIET_STEPS = 0.002, 4  # idle for so many steps: it has ended
LONGEST_S = 0.5  # longer is late enough


class Watched(Protocol):
    """A worker, as far as this is concerned."""

    def ask(self, op: str, args: dict[str, Any], *, limit_s: float) -> dict[str, Any]:
        """Send one request and wait for its answer."""

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
    """For how long the worker was busy after it had answered for many calls, beyond what one call leaves."""
    each_ms = max(judge.slope_ms, BURST_MS / MOST)
    many = int(min(max(BURST_MS / each_ms, FEWEST), MOST))
    least = float("inf")
    for _ in range(LOOKS):
        tails = []
        for calls in (1, many):
            args = {"kernel": kernel, "iterations": calls, "moves": [], "call": True}
            worker.ask("spin", args, limit_s=request_s)
            tails.append(_busy_ms(worker, clock, sleep))
        least = min(least, tails[1] - tails[0])
        if least <= LATE_MS:
            break
    return max(0.0, least)


def _busy_ms(worker: Watched, clock: Callable[[], float], sleep: Callable[[float], None]) -> float:
    began = last_busy = clock()
    quiet = 0
    while quiet < QUIET_STEPS and last_busy - began < LONGEST_S:
        if worker.busy():
            last_busy, quiet = clock(), 0
        else:
            quiet += 1
        sleep(STEP_S)
    return (last_busy - began) * 1e3
