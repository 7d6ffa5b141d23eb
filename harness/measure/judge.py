"""Owns the judge's own clock: what a call takes as seen from outside, whatever its process says.

The judge times bursts: calls on inputs that are new to the kernel, each on a slot of its own, and the
outputs in its hand. On a GPU one graph holds a burst's calls where graphs can hold them, so that no call
waits for its launch. Whatever a worker does not do in time, it does before the output is there, or the output
is wrong. Idle bursts fetch as many outputs and call nothing. Load delays a burst and never hastens one, so
the least wall time of each kind is kept, over all looks; only then is one taken from the other. The
difference of two times of one moment would be wrong in both directions, and every further look a chance for
a false claim.

Where the worker's own processor is what works, on a CPU, its time is a second witness: a call lasts no
shorter than the busiest of its threads was running, and load hardly changes that. And there what worker and
judge had to wait for a processor is taken off (`sight.py`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from harness.measure.sight import Sight, busiest_ms, kept_waiting_ms

BURST_MS = 20.0  # what a burst of the first look lasts; each further look halves it, so many times:
HALVINGS = 5  # down to what fits between two interruptions
FEWEST = 3  # calls in a burst, where there are as many slots
TIMES = 2  # bursts in a look
IDLE = 2  # idle bursts before each

SHARE = 0.8  # of what the judge saw: a claim has cold caches, and is no shorter than that
CPU_SLACK_MS = 0.002  # the loop around the calls
GAP_MS = 0.002  # between two calls of a graph
LAUNCH_MS = 0.08  # of a burst's one graph, and waking up after it
EAGER_SLACK_MS = 5.0  # a call's launches from Python, on a slow machine


class Burst(Protocol):
    """What the judge has done, as far as this clock is concerned."""

    def fresh(self, calls: int) -> None:
        """Give every slot inputs that the kernel has not seen; make ready for so many calls."""

    def run(self, calls: int, *, call: bool) -> None:
        """Fetch the outputs of so many slots, after a call on each where `call`."""


@dataclass
class Least:
    """The least times of bursts by their number of calls, with calls and without, in ms."""

    idle: dict[int, float] = field(default_factory=dict)
    busy: dict[int, float] = field(default_factory=dict)

    @property
    def slope_ms(self) -> float:
        """Of a call, less what asking and fetching costs; surer with every look."""
        return max(0.0, min((ms - self._idle_ms(n)) / n for n, ms in self.busy.items()))

    def _idle_ms(self, n: int) -> float:
        """What so many fetches take without a call, at most.

        Of a number that only the first looks had, each sample may have been late. But more fetches take no
        less, and so many times as many take no more than so many times as long.
        """
        return min(ms * max(1.0, n / m) for m, ms in self.idle.items())

    def keep(self, n: int, ms: float, *, call: bool) -> None:
        kept = self.busy if call else self.idle
        kept[n] = min(ms, kept.get(n, math.inf))


class JudgesClock:
    """What the judge saw of one kernel, over all looks; how many calls a burst has is its own choice."""

    def __init__(
        self,
        burst: Burst,
        most: int,
        clock: Callable[[], float] = time.perf_counter,
        sight: Callable[[], Sight] = Sight,
    ) -> None:
        """`most`: slots, of which a burst visits none twice. `sight`: what is told of the worker's
        processes, where they are what works."""
        self._burst, self._most, self._clock, self._sight = burst, most, clock, sight
        self._looks = 0
        self._wall, self._processor = Least(), Least()

    @property
    def slope_ms(self) -> float:
        """Time of a call with warm caches, at least, less what asking and fetching costs."""
        return max(self._wall.slope_ms, self._processor.slope_ms)

    @property
    def at_most_ms(self) -> float:
        """The same with those costs in it: at its best, a call takes no longer."""
        return min(wall / n for n, wall in self._wall.busy.items())

    def look(self) -> None:
        """Time a few bursts; shorter ones at each look, which fit between two interruptions."""
        lasting_ms = BURST_MS / 2 ** min(self._looks, HALVINGS)
        self._looks += 1
        n = min(FEWEST, self._most)
        self._burst_ms(n, call=True)  # threads that slept wake up
        for _ in range(TIMES):
            n = self._timed(n, lasting_ms)

    def _timed(self, n: int, lasting_ms: float) -> int:
        """A burst of at least half that time, or over all slots; returns its calls."""
        while True:
            for _ in range(IDLE):
                self._keep(n, call=False)
            wall = self._keep(n, call=True, enough_ms=lasting_ms / 2)
            if n == self._most or wall - self._wall.idle[n] >= lasting_ms / 2:
                return n
            n = min(max(2 * n, int(n * lasting_ms / wall)), self._most)

    def _keep(self, n: int, *, call: bool, enough_ms: float = 0.0) -> float:
        """One burst; returns its time. One with calls counts only where it lasted long enough."""
        wall, busiest = self._burst_ms(n, call=call)
        if not call or n == self._most or wall - self._wall.idle[n] >= enough_ms:
            self._wall.keep(n, wall, call=call)
            self._processor.keep(n, busiest, call=call)
        return wall

    def _burst_ms(self, calls: int, *, call: bool) -> tuple[float, float]:
        """Wall time less what was waiting for a processor, and processor time of the busiest thread."""
        self._burst.fresh(calls)
        before = self._sight()
        begin = self._clock()
        self._burst.run(calls, call=call)
        wall = (self._clock() - begin) * 1e3
        after = self._sight()
        return wall - kept_waiting_ms(wall, before, after), busiest_ms(before, after)


def graph_slack_ms(calls: int) -> float:
    """What a call may seem longer than it is, of so many that one graph holds."""
    return GAP_MS + LAUNCH_MS / calls


def contradicts(claimed_ms: float, seen_ms: float, slack_ms: float) -> bool:
    """Whether a claimed cold time is too short for what the judge saw warm."""
    return claimed_ms < SHARE * seen_ms - slack_ms
