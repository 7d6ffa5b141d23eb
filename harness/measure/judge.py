"""Owns the judge's own clock: what a call takes as seen from outside, whatever its process says.

The judge times bursts: calls on inputs that are new to the kernel, each on a slot of its own, and the
outputs in its hand. Whatever a worker does not do in time, it does before the output is there, or the output
is wrong. Idle bursts fetch as many outputs and call nothing. Load delays a burst and never hastens one, so
the least wall time of each kind is kept, over all looks; only then is one taken from the other. The
difference of two times of one moment would be wrong in both directions, and every further look a chance for
a false claim.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Protocol

BURST_MS = 20.0  # what a burst of the first look lasts; each further look halves it, so many times:
HALVINGS = 5  # down to what fits between two interruptions
FEWEST = 3  # calls in a burst, where there are as many slots
TIMES = 2  # bursts in a look
IDLE = 2  # idle bursts before each

SHARE = 0.8  # of what the judge saw: a claim has cold caches, and is no shorter than that
CPU_SLACK_MS = 0.002  # the loop around the calls
GRAPH_SLACK_MS = 0.02  # a graph's launch
EAGER_SLACK_MS = 0.3  # a launch from Python


class Burst(Protocol):
    """What the judge has done, as far as this clock is concerned."""

    def fresh(self) -> None:
        """Give every slot inputs that the kernel has not seen."""

    def run(self, calls: int, *, call: bool) -> None:
        """Fetch the outputs of so many slots, after a call on each where `call`."""


class JudgesClock:
    """What the judge saw of one kernel, over all looks; how many calls a burst has is its own choice."""

    def __init__(self, burst: Burst, most: int, clock: Callable[[], float] = time.perf_counter) -> None:
        """`most`: slots, of which a burst visits none twice."""
        self._burst, self._most, self._clock = burst, most, clock
        self._looks = 0
        self._idle: dict[int, float] = {}  # calls -> least wall time without them, ms
        self._busy: dict[int, float] = {}  # calls -> least wall time, ms

    @property
    def slope_ms(self) -> float:
        """Time of a call with warm caches, less what asking and fetching costs; surer with every look."""
        return max(0.0, min((wall - self._idle_ms(n)) / n for n, wall in self._busy.items()))

    def _idle_ms(self, n: int) -> float:
        """What so many fetches take without a call, at most.

        Of a number that only the first looks had, each sample may have been late. But more fetches take no
        less, and so many times as many take no more than so many times as long.
        """
        return min(wall * max(1.0, n / m) for m, wall in self._idle.items())

    @property
    def at_most_ms(self) -> float:
        """The same with those costs in it: at its best, a call takes no longer."""
        return min(wall / n for n, wall in self._busy.items())

    def look(self) -> None:
        """Time a few bursts; shorter ones at each look, which fit between two interruptions."""
        lasting_ms = BURST_MS / 2 ** min(self._looks, HALVINGS)
        self._looks += 1
        n = min(FEWEST, self._most)
        self._wall_ms(n, call=True)  # threads that slept wake up
        for _ in range(TIMES):
            n = self._timed(n, lasting_ms)

    def _timed(self, n: int, lasting_ms: float) -> int:
        """A burst of at least half that time, or over all slots; returns its calls."""
        while True:
            for _ in range(IDLE):
                self._idle[n] = min(self._wall_ms(n, call=False), self._idle.get(n, math.inf))
            wall = self._wall_ms(n, call=True)
            spent = wall - self._idle[n]
            if n == self._most or spent >= lasting_ms / 2:
                self._busy[n] = min(wall, self._busy.get(n, math.inf))
                return n
            n = min(max(2 * n, int(n * lasting_ms / wall)), self._most)

    def _wall_ms(self, calls: int, *, call: bool) -> float:
        self._burst.fresh()
        begin = self._clock()
        self._burst.run(calls, call=call)
        return (self._clock() - begin) * 1e3


def contradicts(claimed_ms: float, seen_ms: float, slack_ms: float) -> bool:
    """Whether a claimed cold time is too short for what the judge saw warm."""
    return claimed_ms < SHARE * seen_ms - slack_ms
