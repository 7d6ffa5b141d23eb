"""Owns watching what an untrusted worker takes of the machine: past its caps, all of it is killed."""

from __future__ import annotations

import threading

from harness.worker.caps import GIB, Caps
from harness.worker.family import end, members, usage

EVERY_S = 0.1  # memory fills at some GB/s: what is taken in that time must fit beside the cap


class Watch:
    """A thread that looks at a process and all it has become; `over` says what was too much, once it was."""

    def __init__(self, pid: int, caps: Caps) -> None:
        self.over = ""
        self._pid, self._caps = pid, caps
        self._closed = threading.Event()
        threading.Thread(target=self._go, name=f"watch-{pid}", daemon=True).start()

    def _go(self) -> None:
        while not self._closed.wait(EVERY_S):
            try:
                found = usage(members(self._pid))
            except OSError:  # of a process that ended while it was looked at
                continue
            if found.processes == 0:
                return
            self.over = excess(found.processes, found.memory_bytes, self._caps)
            if self.over:
                end(self._pid)
                return

    def close(self) -> None:
        """Look no more."""
        self._closed.set()


def excess(processes: int, memory_bytes: int, caps: Caps) -> str:
    """What of the caps is exceeded, in words; "" where nothing is."""
    if processes > caps.processes:
        return f"{processes} processes, and {caps.processes} are allowed"
    if memory_bytes > caps.memory_bytes:
        return f"{memory_bytes / GIB:.1f} GiB of host memory, and {caps.memory_bytes / GIB:.1f} are allowed"
    return ""
