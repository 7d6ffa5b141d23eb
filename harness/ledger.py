"""Owns where the wall time of a run goes: exclusive seconds by stage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

# Stages in which the device verifies or times; the rest is overhead.
WORKING = frozenset({"oracle", "verify", "timing"})


class Ledger:
    """Seconds by stage; an inner stage's time is not counted in the outer one."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._stack: list[str] = ["other"]
        self._since = time.monotonic()
        self.started = self._since

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time spent inside counts as `name`."""
        self._settle()
        self._stack.append(name)
        try:
            yield
        finally:
            self._settle()
            self._stack.pop()

    def _settle(self) -> None:
        now = time.monotonic()
        current = self._stack[-1]
        self.seconds[current] = self.seconds.get(current, 0.0) + now - self._since
        self._since = now

    def totals(self) -> tuple[float, dict[str, float], float]:
        """Wall seconds, seconds by stage, and seconds in which the device worked."""
        self._settle()
        rounded = {name: round(s, 3) for name, s in sorted(self.seconds.items(), key=lambda x: -x[1])}
        working = sum(s for name, s in rounded.items() if name in WORKING)
        return round(self._since - self.started, 3), rounded, round(working, 3)
