"""Owns what the operating system tells of a burst on a CPU beside how long it took: who ran, who had to wait.

Also how much others ran: on a machine that others use, nobody is convicted by a clock.

Waiting for a processor that others have is no work, and a busy machine has much of it: each request wakes the
worker, each answer the judge. It is taken off, but never so much that less is left than the processor time of
worker and judge together. So no work hides in it: what is left is all that passed, or no less than what the
work takes. A thread that begins and ends meanwhile would take its times with it; where any began, nothing is
taken off.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness.worker.family import thread_files

CROWD = 0.25  # of a processor
TICK_MS = 1e3 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Spell:
    """Of a thread so far, in ms."""

    ran_ms: float
    waited_ms: float = 0.0  # ready to run, while others did


@dataclass(frozen=True)
class Sight:
    """Of one moment."""

    threads: Mapping[int, Spell] = field(default_factory=dict)  # the worker's
    own: Spell = Spell(0.0)  # the judge's
    ran_ms: float = 0.0  # processor time of the worker's processes, with that of threads which have ended
    begun: int | None = None  # processes and threads that ever began on this machine; None: not told
    judge_ms: float = 0.0  # processor time of the judge's process
    busy_ms: float = 0.0  # of the processors that the judge may use, by whomever, in steps of TICK_MS


def spells(pids: Iterable[int]) -> dict[int, Spell]:
    """Of each thread of these processes."""
    found = {}
    for thread in thread_files(pids, "schedstat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            found[int(thread.parent.name)] = _spell(thread)
    return found


def sight_of(pids: Iterable[int]) -> Sight:
    """What is told of a worker's processes, and of the thread that asks."""
    pids = list(pids)
    try:
        ran_ms = sum(time.clock_gettime(_clock_of(pid)) for pid in pids) * 1e3
        own = Spell(time.thread_time() * 1e3, _spell(Path("/proc/thread-self/schedstat")).waited_ms)
        begun, busy_ms = _machine()
    except (OSError, ValueError, IndexError):
        return Sight(spells(pids))
    return Sight(spells(pids), own, ran_ms, begun, time.process_time() * 1e3, busy_ms)


def busiest_ms(before: Sight, after: Sight) -> float:
    """Processor time that the worker's busiest thread used meanwhile: so much time has passed at least."""
    return max((ran for ran, _ in _spent(before, after)), default=0.0)


def kept_waiting_ms(wall_ms: float, before: Sight, after: Sight) -> float:
    """How much of the time that passed was spent waiting for processors; 0 where that cannot be told."""
    if (
        before.begun is None
        or before.begun != after.begun
        or not before.threads.keys() <= after.threads.keys()
    ):
        return 0.0
    ran = after.ran_ms - before.ran_ms + after.own.ran_ms - before.own.ran_ms
    waited = after.own.waited_ms - before.own.waited_ms + sum(ms for _, ms in _spent(before, after))
    return max(0.0, min(waited, wall_ms - ran))


def crowded(wall_ms: float, before: Sight, after: Sight) -> float:
    """Processors that others kept busy meanwhile, where that is too many for a clock to convict; else 0.

    A step of the machine's clock for each processor may be theirs by mistake.
    """
    if before.begun is None or after.begun is None or wall_ms <= 0:
        return 0.0
    ours = after.ran_ms - before.ran_ms + after.judge_ms - before.judge_ms
    others = after.busy_ms - before.busy_ms - ours - TICK_MS * len(_processors())
    return others / wall_ms if others > CROWD * wall_ms else 0.0


def _spent(before: Sight, after: Sight) -> list[tuple[float, float]]:
    """Of each thread meanwhile: how long it ran, and how long it waited."""
    nothing = Spell(0.0)
    both = [(before.threads.get(thread, nothing), spell) for thread, spell in after.threads.items()]
    return [(now.ran_ms - then.ran_ms, now.waited_ms - then.waited_ms) for then, now in both]


def _spell(file: Path) -> Spell:
    ran, waited = file.read_text().split()[:2]
    return Spell(int(ran) / 1e6, int(waited) / 1e6)


def _clock_of(pid: int) -> int:
    """The clock of a process's processor time: the kernel's own encoding, see clock_getcpuclockid(3)."""
    return (~pid << 3) | 2


def _processors() -> set[int]:
    return os.sched_getaffinity(0)


def _machine() -> tuple[int, float]:
    """Processes and threads that ever began, and for how long usable processors have been busy, in ms."""
    begun, busy, mine = 0, 0.0, _processors()
    for line in Path("/proc/stat").read_text().splitlines():
        if line.startswith("processes "):
            begun = int(line.split()[1])
        elif (match := re.match(r"cpu(\d+) (.*)", line)) and int(match[1]) in mine:
            user, nice, system, _idle, _waiting, irq, softirq, stolen = map(int, match[2].split()[:8])
            busy += (user + nice + system + irq + softirq + stolen) * TICK_MS
    if not begun or not busy:
        raise ValueError("/proc/stat tells too little")
    return begun, busy
