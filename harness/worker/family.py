"""Owns the processes that a worker has become: all of them counted, frozen and ended, whatever they fork."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_TELLS_CHILDREN = Path("/proc/thread-self/children").exists()  # a matter of the kernel's configuration
FREEZE_S = 2.0  # a process that forks faster than it is stopped is killed


@dataclass(frozen=True)
class Usage:
    """What processes take of the machine at one moment."""

    processes: int
    memory_bytes: int  # of their own and shared, without files


def members(root: int) -> list[int]:
    """`root` and all that descend from it; an orphan in a sandbox descends from its first process."""
    children: Callable[[int], list[int]] = _told_children if _TELLS_CHILDREN else _scanned().__getitem__
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        waiting += children(pid)
    return found


def _told_children(pid: int) -> list[int]:
    found: list[int] = []
    for file in thread_files([pid], "children"):
        with contextlib.suppress(OSError, ValueError):
            found += map(int, file.read_text().split())
    return found


def _scanned() -> defaultdict[int, list[int]]:
    """Parent -> children, of every process that is seen from here."""
    found = defaultdict(list)
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            with contextlib.suppress(OSError, ValueError, IndexError):
                parent = int(Path(entry.path, "stat").read_text().rpartition(")")[2].split()[1])
                found[parent].append(int(entry.name))
    return found


def usage(pids: Iterable[int]) -> Usage:
    """Of those that still live."""
    count = memory = 0
    for pid in pids:
        with contextlib.suppress(OSError, ValueError, IndexError):
            status = Path(f"/proc/{pid}/status").read_text()
            count += 1
            memory += sum(_kilobytes(status, name) << 10 for name in ("RssAnon", "RssShmem"))
    return Usage(count, memory)


def busy(pids: Iterable[int]) -> bool:
    """Whether any of their threads runs, or would if a processor were free."""
    for thread in thread_files(pids, "stat"):
        with contextlib.suppress(OSError, IndexError):
            if thread.read_text().rpartition(")")[2].split()[0] in ("R", "D"):
                return True
    return False


def thread_files(pids: Iterable[int], file: str) -> Iterator[Path]:
    """A file of that name of each of their threads."""
    for pid in pids:
        with contextlib.suppress(OSError):  # it may end while it is looked at
            yield from list(Path(f"/proc/{pid}/task").glob(f"*/{file}"))


def freeze(root: int) -> list[int]:
    """Stop every member, those too that are forked meanwhile; returns them."""
    deadline = time.monotonic() + FREEZE_S
    while True:
        found = members(root)
        running = [pid for pid in found if _state(pid) not in ("T", "t", "Z", "X", "")]
        if not running or time.monotonic() > deadline:
            return found
        for pid in running:
            _signal(pid, signal.SIGSTOP)
        time.sleep(0)


def thaw(root: int) -> None:
    """Let every member go on."""
    for pid in members(root):
        _signal(pid, signal.SIGCONT)


def end(root: int) -> None:
    """Kill every member.

    With the first process of a namespace the kernel ends all in it at once, however fast they fork: in a
    sandbox that is `root`'s child. Whoever is left is stopped first, since a stopped parent cannot fork.
    """
    for pid in _children_of(root):
        if _is_init(pid):
            _signal(pid, signal.SIGKILL)
    for pid in reversed(freeze(root)):
        _signal(pid, signal.SIGKILL)


def _children_of(pid: int) -> list[int]:
    return _told_children(pid) if _TELLS_CHILDREN else _scanned()[pid]


def _is_init(pid: int) -> bool:
    """Whether a process is the first of its namespace."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("NSpid:"):
                return len(line.split()) > 2 and line.split()[-1] == "1"
    return False


def gone(pids: Iterable[int], within_s: float) -> bool:
    """Whether all have ended; the kernel takes a moment to bury them."""
    deadline = time.monotonic() + within_s
    left = list(pids)
    while left := [pid for pid in left if _state(pid) not in ("Z", "X", "")]:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


def _state(pid: int) -> str:
    """One letter, as ps shows it; "" for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def _signal(pid: int, which: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, which)


def _kilobytes(status: str, name: str) -> int:
    at = status.find(name + ":")
    return int(status[at:].split(maxsplit=2)[1]) if at >= 0 else 0
