"""Owns the judge's own clock: what an iteration takes as seen from outside, whatever its process says.

The judge times whole requests: bursts of iterations, and idle ones, in which the inputs change as often
and nothing is called. Load delays a request and never hastens one, so the least wall time of each kind is
kept, over all looks; only then is one taken from the other. The difference of two times of one
moment would be wrong in both directions, and every further look a chance for a false claim.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Protocol

BURST_MS = 20.0  # what a burst of the first look lasts; each further look halves it, so many times:
HALVINGS = 5  # down to what fits between two interruptions
FEWEST, MOST = 3, 200  # iterations in a burst
TIMES = 2  # bursts in a look
IDLE = 2  # idle requests before each burst

SHARE = 0.8  # of what the judge saw: a claim has cold caches, and is no shorter than that
CPU_SLACK_MS = 0.002  # the loop around the calls
GRAPH_SLACK_MS = 0.02  # a graph's launch
EAGER_SLACK_MS = 0.3  # a launch from Python


class Asked(Protocol):
    """A worker, as far as this clock is concerned."""

    def ask(self, op: str, args: dict[str, Any], *, limit_s: float) -> dict[str, Any]:
        """Send one request and wait for its answer."""


class JudgesClock:
    """What the judge saw of one kernel, over all looks; how many iterations it asks for is its own choice."""

    def __init__(
        self,
        worker: Asked,
        kernel: str,
        request_s: float,
        moves: Callable[[int], object] = lambda _: [],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`moves`: how the inputs change before each of so many iterations, as the worker is told it."""
        self._worker, self._kernel, self._request_s = worker, kernel, request_s
        self._moves, self._clock = moves, clock
        self._looks = 0
        self._idle: dict[int, float] = {}  # iterations -> least wall time without the calls, ms
        self._bursts: dict[int, float] = {}  # iterations -> least wall time, ms

    @property
    def slope_ms(self) -> float:
        """Time per iteration with warm caches, less what a request costs; surer with every look."""
        return max(0.0, min((wall - self._idle[n]) / n for n, wall in self._bursts.items()))

    @property
    def at_most_ms(self) -> float:
        """The same with what a request costs in it: at its best, an iteration takes no longer."""
        return min(wall / n for n, wall in self._bursts.items())

    def look(self) -> None:
        """Time a few bursts; shorter ones at each look, which fit between two interruptions."""
        lasting_ms = BURST_MS / 2 ** min(self._looks, HALVINGS)
        self._looks += 1
        self._wall_ms(FEWEST)  # threads that slept wake up
        n = FEWEST
        for _ in range(TIMES):
            n = self._burst(n, lasting_ms)

    def _burst(self, n: int, lasting_ms: float) -> int:
        """A burst of at least half that time, or of the most iterations; returns its iterations."""
        while True:
            for _ in range(IDLE):
                self._idle[n] = min(self._wall_ms(n, call=False), self._idle.get(n, math.inf))
            wall = self._wall_ms(n)
            spent = wall - self._idle[n]
            if n == MOST or spent >= lasting_ms / 2:
                self._bursts[n] = min(wall, self._bursts.get(n, math.inf))
                return n
            n = min(max(2 * n, int(n * lasting_ms / wall)), MOST)

    def _wall_ms(self, iterations: int, *, call: bool = True) -> float:
        args = {
            "kernel": self._kernel,
            "iterations": iterations,
            "moves": self._moves(iterations),
            "call": call,
        }
        begin = self._clock()
        self._worker.ask("spin", args, limit_s=self._request_s)
        return (self._clock() - begin) * 1e3


def contradicts(claimed_ms: float, seen_ms: float, slack_ms: float) -> bool:
    """Whether a claimed cold time is too short for what the judge saw warm."""
    return claimed_ms < SHARE * seen_ms - slack_ms
