"""Owns one measuring session: contenders interleaved in mirrored order, judged from outside.

Order of a round, for others O, duplicate D, candidate C and anchor A: O D C A | A C D O.
Each contender has one block before and one after the round's middle, so a linear drift of
the clock cancels in the ratio of block times. While one is timed, untrusted workers of
others are stopped. Before each iteration the inputs change.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from harness.measure.claims import claimed_record, claimed_times
from harness.measure.statistics import Interval, bootstrap_median, paired_ratios, precise_enough, quantiles
from harness.measure.telemetry import TelemetrySource
from harness.records import Block, KernelRecord, Ratio, Summary, Telemetry
from harness.worker.moves import Move, to_json
from harness.worker.process import Worker
from harness.worker.protocol import WorkerDied, WorkerError

Clock = Literal["kernel_records", "graph_events", "stream_events", "wall", "warm_wall"]


@dataclass
class ContenderFailed(Exception):
    """One contender's worker failed or answered nonsense in the middle of a session."""

    name: str
    error: WorkerError

    def __str__(self) -> str:
        return f"{self.name}: {self.error}"


@dataclass(frozen=True)
class Policy:
    """How long to sample. Precision is the half width of the 95 % interval of the median ratio."""

    half_width: float = 0.002
    block_ms: float = 6.0
    min_iterations: int = 2
    max_iterations: int = 40
    min_rounds: int = 10
    max_rounds: int = 80
    time_cap_s: float = 1.6
    far_rounds: int = 2  # all that a contender far behind gets; its time is not capped
    screen_rounds: int = 3  # all that one behind the front gets; its time is not capped
    near_rounds: int = 12  # all that a baseline near the front gets, beside the anchor
    near: float = 1.25  # times the anchor's time: still near the front
    far: float = 4.0  # times the anchor's time: not worth a whole block
    latency_calls: int = 15
    flush_ms: float = 0.1  # poison and flush beside each iteration, for planning block sizes
    request_s: float = 60.0
    cold: bool = True  # caches are flushed before each call


@dataclass
class Contender:
    """One that is timed: where it is loaded, and what its plan said."""

    name: str
    worker: Worker
    kernel: str
    estimate_ms: float
    captured: bool
    judged: bool = True  # a candidate or the duplicate: sampling goes on until its ratio is precise
    slots: int | None = None  # that it rotates over; None: all


@dataclass
class _Track:
    """What was sampled of one contender."""

    blocks: list[Block] = field(default_factory=list)
    events: list[list[float]] = field(default_factory=list)  # ms, by block
    spans: list[list[float] | None] = field(default_factory=list)  # ms by kernel records, by block
    kernels: list[list[tuple[str, float, float]]] = field(default_factory=list)


@dataclass(frozen=True)
class Sampled:
    """One contender's times at the end of a session."""

    clock: Clock
    device_time: Summary
    graph_time: Summary | None
    ratio: Ratio
    blocks: tuple[Block, ...]
    kernels: tuple[KernelRecord, ...]


class Session:
    """Samples contenders until the judged ones are precise or the time is up."""

    def __init__(
        self,
        contenders: Sequence[Contender],
        anchor: str,
        policy: Policy,
        telemetry: TelemetrySource,
        device_kind: Literal["cpu", "cuda"],
        slots: int,
        draw: Callable[[], tuple[Move, ...]] = tuple,
    ) -> None:
        """`draw` says how the inputs change before an iteration."""
        by_name = {c.name: c for c in contenders}
        self.anchor = by_name[anchor]
        # slowest outermost, the judged next to the anchor, the anchor in the middle
        rest = sorted((c for c in contenders if c.name != anchor), key=lambda c: (c.judged, -c.estimate_ms))
        self.order = [*rest, self.anchor]
        self.policy, self.telemetry, self.device_kind = policy, telemetry, device_kind
        self.tracks = {c.name: _Track() for c in self.order}
        self.rounds: dict[str, list[int]] = {c.name: [] for c in self.order}
        self.slots = slots
        self._draw = draw
        # How the inputs of a slot changed since they were filled, by worker (its contenders share slots),
        # and how many of those changes had been made when a contender was timed on it last.
        self._moves: dict[int, dict[int, list[Move]]] = {}
        self._seen: dict[str, dict[int, int]] = {}
        self.visited: dict[str, set[int]] = {}  # slots that hold a timed output of this phase, by contender
        self.revisited: dict[str, set[int]] = {}  # those that held one of the phase before as well
        self._before: dict[str, int] = {}  # blocks before this phase, by contender
        self._round = 0
        self._started = time.monotonic()
        self._sampled_s = 0.0
        self.stopped: Literal["precise", "time_cap", "rounds_cap"] = "rounds_cap"

    def sample(self, share: float) -> None:
        """Rounds until precise, or until `share` of time or rounds is used; kernel records throughout.

        The slots have just been filled.
        """
        self._moves = {id(w): defaultdict(list) for w in self._workers()}
        self._seen = {c.name: {} for c in self.order}
        earlier, self.visited = self.visited, {c.name: set() for c in self.order}
        self._before = {name: len(track.blocks) for name, track in self.tracks.items()}
        recording = self._start_records()
        logs: dict[int, list[tuple[str, int]]] = {id(w): [] for w in recording}
        self.stopped = "rounds_cap"
        while self._round < self.policy.max_rounds * share:  # so that a later phase has some too
            self._one_round(logs)
            if self._round >= self.policy.min_rounds * share and self._precise():
                self.stopped = "precise"
                break
            if self._sampled_s > self.policy.time_cap_s * share:
                self.stopped = "time_cap"
                break
        self.revisited = {name: slots & earlier.get(name, slots) for name, slots in self.visited.items()}
        self._stop_records(recording, logs)

    def moves(self, name: str, slot: int) -> list[Move]:
        """How a slot's inputs had changed since they were filled, when a contender was timed on it last."""
        worker = next(c.worker for c in self.order if c.name == name)
        return self._moves[id(worker)][slot][: self._seen[name][slot]]

    def _one_round(self, logs: dict[int, list[tuple[str, int]]]) -> None:
        running = [c for c in self.order if self._round < self._rounds_of(c)]
        for contender in [*running, *reversed(running)]:
            begin = time.monotonic()
            index = self._block(contender)
            if self._at_the_front(contender):
                self._sampled_s += time.monotonic() - begin
            if id(contender.worker) in logs:
                logs[id(contender.worker)].append((contender.name, index))
        for contender in running:
            self.rounds[contender.name].append(self._round)
        self._round += 1

    def _rounds_of(self, contender: Contender) -> int:
        """How many rounds a contender takes part in: the judged ones and the anchor in all."""
        if self._at_the_front(contender):
            return self.policy.max_rounds
        times = contender.estimate_ms / self.anchor.estimate_ms
        if times <= self.policy.near:
            return self.policy.near_rounds
        return self.policy.screen_rounds if times <= self.policy.far else self.policy.far_rounds

    def _at_the_front(self, contender: Contender) -> bool:
        return contender.judged or contender is self.anchor

    def _iterations(self, contender: Contender) -> int:
        if contender.estimate_ms > self.policy.far * self.anchor.estimate_ms:
            return 1
        wanted = self.policy.block_ms / (contender.estimate_ms + self.policy.flush_ms)
        return int(min(max(wanted, self.policy.min_iterations), self.policy.max_iterations))

    def _block(self, contender: Contender) -> int:
        track = self.tracks[contender.name]
        self._hush(contender.worker)
        started = time.monotonic() - self._started
        n = self._iterations(contender)
        start = (len(track.blocks) - self._before[contender.name]) * n  # each phase begins at slot 0
        moves = [self._draw() for _ in range(n)]
        told_moves = [to_json(m) for m in moves]
        args: dict[str, Any] = {
            "kernel": contender.kernel,
            "iterations": n,
            "start": start,
            "moves": told_moves,
        }
        if not self.policy.cold:
            args["cold"] = False
        try:
            nonce = contender.worker.post("block", args)
            telemetry = self.telemetry.sample() if self.device_kind == "cuda" else None
            told = contender.worker.wait(nonce, limit_s=self._block_limit(contender, n))
            samples = claimed_times(told, "samples_ms", n)
        except WorkerError as error:
            raise ContenderFailed(contender.name, error) from error
        for i in range(n):
            slot = (start + i) % (contender.slots or self.slots)
            changed = self._moves[id(contender.worker)][slot]
            changed += moves[i]
            self.visited[contender.name].add(slot)
            self._seen[contender.name][slot] = len(changed)
        track.events.append(samples)
        track.spans.append(None)
        track.kernels.append([])
        track.blocks.append(_block(self._round, started, samples, telemetry))
        return len(track.blocks) - 1

    def _block_limit(self, contender: Contender, iterations: int) -> float:
        return self.policy.request_s + 20 * iterations * contender.estimate_ms / 1e3

    def _hush(self, active: Worker) -> None:
        for contender in self.order:
            if contender.worker is not active and not contender.worker.trusted:
                contender.worker.stop()

    def _workers(self) -> list[Worker]:
        seen: dict[int, Worker] = {id(c.worker): c.worker for c in self.order}
        return list(seen.values())

    def _start_records(self) -> list[Worker]:
        return [w for w in self._workers() if self._ask(w, "start_records").get("available") is True]

    def _stop_records(self, workers: list[Worker], logs: dict[int, list[tuple[str, int]]]) -> None:
        kernels = {c.name: c.kernel for c in self.order}
        for worker in workers:
            blocks = self._ask(worker, "stop_records").get("blocks")
            told = blocks if isinstance(blocks, list) else []
            for (name, index), block in zip(logs[id(worker)], told, strict=False):
                track = self.tracks[name]
                try:
                    record = claimed_record(block)
                except WorkerDied as error:
                    raise ContenderFailed(name, error) from error
                if record.kernel == kernels[name] and len(record.spans_ms) == track.blocks[index].iterations:
                    track.spans[index], track.kernels[index] = record.spans_ms, record.kernels

    def _ask(self, worker: Worker, op: str) -> dict[str, Any]:
        """For all contenders of a worker at once; where it fails, the first of them is named."""
        try:
            return worker.ask(op, limit_s=60.0)
        except WorkerError as error:
            name = next(c.name for c in self.order if c.worker is worker)
            raise ContenderFailed(name, error) from error

    def abandon(self) -> None:
        """After ContenderFailed: end recording in the workers that still live."""
        for worker in self._workers():
            if worker.alive:
                with contextlib.suppress(WorkerError):
                    worker.ask("stop_records", limit_s=60.0)

    def _precise(self) -> bool:
        return all(
            precise_enough(self._interval(c.name, events=True)[0], self.policy.half_width)
            for c in self.order
            if c.judged
        )

    def _interval(self, name: str, *, events: bool) -> tuple[Interval, int]:
        common = [r for r in self.rounds[self.anchor.name] if r in set(self.rounds[name])]
        values = paired_ratios(
            [self._pair(name, r, events) for r in common],
            [self._pair(self.anchor.name, r, events) for r in common],
        )
        return bootstrap_median(values), len(common)

    def _pair(self, name: str, round_: int, events: bool) -> tuple[float, float]:
        track = self.tracks[name]
        first, second = (n for n, b in enumerate(track.blocks) if b.round == round_)
        return self._block_ms(track, first, events), self._block_ms(track, second, events)

    @staticmethod
    def _block_ms(track: _Track, index: int, events: bool) -> float:
        spans = track.spans[index]
        return quantiles(track.events[index] if events or spans is None else spans).median

    def result(self, name: str) -> Sampled:
        """What was sampled of one contender: by kernel records, where it and the anchor have them all."""
        track = self.tracks[name]
        recorded = all(s is not None for t in (track, self.tracks[self.anchor.name]) for s in t.spans)
        contender = next(c for c in self.order if c.name == name)
        clock: Clock = "stream_events"
        if self.device_kind == "cpu":
            clock = "wall" if self.policy.cold else "warm_wall"
        if self.device_kind == "cuda" and recorded:
            clock = "kernel_records"
        elif contender.captured:
            clock = "graph_events"
        samples = [x for block in track.events for x in block]
        device = [x for block in track.spans for x in block or []] if recorded else samples
        interval, pairs = self._interval(name, events=not recorded)
        return Sampled(
            clock=clock,
            device_time=summary(device),
            graph_time=summary(samples) if recorded and contender.captured else None,
            ratio=Ratio(
                anchor=self.anchor.name,
                median=interval.median,
                low=interval.low,
                high=interval.high,
                pairs=pairs,
                stopped=self.stopped if pairs == len(self.rounds[self.anchor.name]) else "screened",
            ),
            blocks=tuple(track.blocks),
            kernels=_kernels(track.kernels),
        )


def latency(contender: Contender, policy: Policy) -> Summary:
    """Eager call from Python, synchronised."""
    calls = int(min(max(100.0 / contender.estimate_ms, 3), policy.latency_calls))
    args = {"kernel": contender.kernel, "calls": calls}
    answer = contender.worker.ask("latency", args, limit_s=policy.request_s)
    return summary(claimed_times(answer, "samples_ms", calls))


def summary(samples: Sequence[float]) -> Summary:
    """Of times in ms."""
    q = quantiles(samples)
    return Summary(median_ms=q.median, p10_ms=q.p10, p90_ms=q.p90, samples=q.n)


def _block(round_: int, started_s: float, samples: list[float], telemetry: Telemetry | None) -> Block:
    return Block(
        round=round_,
        started_s=round(started_s, 4),
        iterations=len(samples),
        median_ms=round(quantiles(samples).median, 6),
        telemetry=telemetry,
    )


def _kernels(blocks: list[list[tuple[str, float, float]]]) -> tuple[KernelRecord, ...]:
    times: dict[str, list[tuple[float, float]]] = {}
    for block in blocks:
        for name, calls, ms in block:
            times.setdefault(name, []).append((calls, ms))
    return tuple(
        KernelRecord(
            name=name[:300], calls=round(calls[0][0]), time_ms=quantiles([ms for _, ms in calls]).median
        )
        for name, calls in times.items()
    )
