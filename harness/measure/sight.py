"""Owns what the operating system tells of a burst on a CPU beside how long it took: who ran, who had to wait.

Waiting for a processor that others have is no work, and a busy machine has much of it: each request wakes the
worker, each answer the judge. It is taken off, but never so much that less is left than the processor time of
worker and judge together. So no work hides in it: what is left is all that passed, or no less than what the
work takes. A thread that begins and ends meanwhile would take its times with it; where any began, nothing is
taken off.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness.worker.family import thread_files


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
        begun = _begun()
    except (OSError, ValueError, IndexError):
        return Sight(spells(pids))
    return Sight(spells(pids), own, ran_ms, begun)


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


def _begun() -> int:
    for line in Path("/proc/stat").read_text().splitlines():
        if line.startswith("processes "):
            return int(line.split()[1])
    raise ValueError("no number of processes in /proc/stat")
