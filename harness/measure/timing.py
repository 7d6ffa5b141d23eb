"""Owns taking times inside a worker: blocks of iterations on rotating slots, and nothing else.

What a worker says is a claim; the judge bounds it from outside (see session.py). Facts
behind the constants: without a graph, event timing counts Python's launch overhead; a
replay under events reads 3-4 us more than the kernel records (CUPTI through Kineto) on
an H100, so records are the device time and events the cross-check. Iterations are told
apart in the records by a marker: a float64 fill, which is also the L2 flush. Between two markers lie
either the copies that change the inputs, of which the number is known, or an iteration.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch._C._autograd import DeviceType

MARKER = "FillFunctor<double>"
COPY = "Memcpy DtoD"
FLUSH_FACTOR = 3  # times the L2
GRAPH_LIMIT_MS = 40.0  # slower calls gain nothing from a graph and their pools eat memory
CPU_FLUSH_BYTES = 64 << 20
CPU_ESTIMATE_MS = 100.0  # spent on an estimate: first calls on a CPU are far off

SlotCall = Callable[[int], object]  # call the kernel on a slot
# Make a slot ready for the n-th iteration: inputs changed, outputs poisoned.
Fresh = Callable[[int, int], None]


@dataclass
class Timed:
    """One contender inside the worker: how to call it on a slot, and its captured graphs."""

    call: SlotCall
    slots: int
    capture: bool = True
    graphs: list[Any] = field(default_factory=list)
    chains: dict[int, Any] = field(default_factory=dict)  # calls -> one graph of them all, each on a slot
    estimate_ms: float = 0.0
    capture_error: str = ""

    @property
    def captured(self) -> bool:
        return bool(self.graphs)


@dataclass(frozen=True)
class IterationRecord:
    """One iteration by the kernel records: time from first start to last end, kernels by name."""

    span_ms: float
    kernels: tuple[tuple[str, float], ...]  # name, ms


class Clock(Protocol):
    """How a device is timed."""

    def plan(self, timed: Timed) -> None:
        """Warm up, estimate, capture where that is possible."""

    def block(
        self, timed: Timed, iterations: int, start: int, fresh: Fresh, cold: bool = True
    ) -> list[float]:
        """Milliseconds of each iteration; iteration n runs on slot (start + n) % slots.

        Without `cold`, which only a CPU's clock may do, caches keep what the call before left in them.
        """

    def chain(self, timed: Timed, calls: int) -> None:
        """Make ready what a spin of so many iterations needs."""

    def spin(self, timed: Timed, iterations: int) -> None:
        """Iterations back to back, no flush, device-wide synchronise at the end."""

    def latency(self, timed: Timed, calls: int) -> list[float]:
        """Milliseconds of eager calls, each synchronised."""


class CpuClock:
    """Wall time, as a rule with the caches flushed before each iteration."""

    def __init__(self) -> None:
        self._flush = torch.zeros(CPU_FLUSH_BYTES // 8, dtype=torch.float64)

    def plan(self, timed: Timed) -> None:
        timed.estimate_ms = self.latency(timed, 1)[0]
        calls = int(min(max(CPU_ESTIMATE_MS / timed.estimate_ms, 1), 10))
        timed.estimate_ms = min(self.latency(timed, calls))

    def block(
        self, timed: Timed, iterations: int, start: int, fresh: Fresh, cold: bool = True
    ) -> list[float]:
        samples = []
        timed.call(start % timed.slots)  # threads that slept while others were timed wake up
        for n in range(iterations):
            slot = (start + n) % timed.slots
            fresh(n, slot)
            if cold:
                self._flush.fill_(float(n))
            begin = time.perf_counter_ns()
            timed.call(slot)
            samples.append((time.perf_counter_ns() - begin) / 1e6)
        return samples

    def chain(self, timed: Timed, calls: int) -> None:
        pass

    def spin(self, timed: Timed, iterations: int) -> None:
        for n in range(iterations):
            timed.call(n % timed.slots)

    def latency(self, timed: Timed, calls: int) -> list[float]:
        samples = []
        for n in range(calls):
            begin = time.perf_counter_ns()
            timed.call(n % timed.slots)
            samples.append((time.perf_counter_ns() - begin) / 1e6)
        return samples


class GpuClock:
    """CUDA events around graph replays, kernel records beside them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        l2 = torch.cuda.get_device_properties(device).L2_cache_size
        self._flush = torch.zeros(FLUSH_FACTOR * l2 // 8, dtype=torch.float64, device=device)
        self._profiler: Any = None
        self._reset_persisting = _persisting_l2_reset()

    def plan(self, timed: Timed) -> None:
        for slot in range(timed.slots):
            timed.call(slot)
        torch.cuda.synchronize()
        timed.estimate_ms = self._once_ms(timed)
        timed.graphs, timed.chains = [], {}
        if not timed.capture or timed.estimate_ms > GRAPH_LIMIT_MS:
            return
        try:
            for slot in range(timed.slots):
                timed.graphs.append(self._captured(timed, [slot]))
            torch.cuda.synchronize()
            timed.estimate_ms = min(self._once_ms(timed) for _ in range(5))
        except RuntimeError as error:
            timed.graphs = []
            timed.capture_error = str(error).splitlines()[0][:200]
            torch.cuda.synchronize()

    def _captured(self, timed: Timed, slots: Iterable[int]) -> Any:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for slot in slots:
                timed.call(slot)
        return graph

    def _once_ms(self, timed: Timed) -> float:
        begin, end = _event(), _event()
        begin.record()
        self._run(timed, 0)
        end.record()
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end))

    def _run(self, timed: Timed, slot: int) -> None:
        if timed.graphs:
            timed.graphs[slot].replay()
        else:
            timed.call(slot)

    def block(
        self, timed: Timed, iterations: int, start: int, fresh: Fresh, cold: bool = True
    ) -> list[float]:
        assert cold  # the flush is what tells iterations apart in the records
        events = [(_event(), _event()) for _ in range(iterations)]
        torch.cuda.synchronize()
        for n, (begin, end) in enumerate(events):
            slot = (start + n) % timed.slots
            self._flush[:8].fill_(0.0)  # a marker: what changes the inputs is no part of an iteration
            fresh(n, slot)
            self._reset_persisting()
            self._flush.fill_(float(n))
            begin.record()
            self._run(timed, slot)
            end.record()
        self._flush[:8].fill_(0.0)  # closes the last iteration in the records
        torch.cuda.synchronize()
        return [float(begin.elapsed_time(end)) for begin, end in events]

    def chain(self, timed: Timed, calls: int) -> None:
        """Capture the calls in one graph: launched one by one, short ones would wait for their launches."""
        if timed.graphs and calls not in timed.chains:
            graph = timed.chains[calls] = self._captured(timed, [n % timed.slots for n in range(calls)])
            graph.replay()  # the first one takes the graph to the device
            torch.cuda.synchronize()

    def spin(self, timed: Timed, iterations: int) -> None:
        if iterations in timed.chains:
            timed.chains[iterations].replay()
        else:
            for n in range(iterations):
                self._run(timed, n % timed.slots)
        torch.cuda.synchronize()

    def latency(self, timed: Timed, calls: int) -> list[float]:
        samples = []
        for n in range(calls):
            torch.cuda.synchronize()
            begin = time.perf_counter_ns()
            timed.call(n % timed.slots)
            torch.cuda.synchronize()
            samples.append((time.perf_counter_ns() - begin) / 1e6)
        return samples

    def start_records(self) -> None:
        """Begin collecting kernel records."""
        torch.cuda.synchronize()
        self._profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
        self._profiler.start()

    def stop_records(self, copies: Sequence[int] = ()) -> list[IterationRecord]:
        """End collecting: one record for each iteration of each block since the start, in order.

        `copies`: before each iteration in order, copies of memory that changed its inputs.
        """
        torch.cuda.synchronize()
        self._profiler.stop()
        results = self._profiler.profiler.kineto_results
        kernels = sorted(
            (e.start_ns(), e.duration_ns(), e.name())
            for e in results.events()
            if e.device_type() == DeviceType.CUDA and e.duration_ns() > 0
        )
        self._profiler = None
        return iterations_of(kernels, copies)


def iterations_of(kernels: list[tuple[int, int, str]], copies: Sequence[int] = ()) -> list[IterationRecord]:
    """Split records (start ns, duration ns, name) in time order into iterations at the markers.

    Poison and flush are markers in a row; what lies between two rows of markers is one iteration, or the
    copies before one. A marker of the next iteration closes the one before. Where the copies are not as
    many as there must be, something else ran beside them: then no record can be believed, and there is none.
    """
    expected = iter([n for count in copies for n in ((count, 0) if count else (0,))])
    found: list[IterationRecord] = []
    for group in _groups(kernels):
        count = next(expected, 0)
        if count == 0:
            found.append(_iteration(group))
        elif len(group) != count or any(COPY not in name for _, _, name in group):
            return []
    return found


def _groups(kernels: list[tuple[int, int, str]]) -> Iterator[list[tuple[int, int, str]]]:
    """What lies between two rows of markers; what no marker closes is left out."""
    current: list[tuple[int, int, str]] = []
    for kernel in kernels:
        if MARKER not in kernel[2]:
            current.append(kernel)
            continue
        if current:
            yield current
        current = []


def _iteration(kernels: list[tuple[int, int, str]]) -> IterationRecord:
    begin = min(start for start, _, _ in kernels)
    end = max(start + duration for start, duration, _ in kernels)
    return IterationRecord((end - begin) / 1e6, tuple((name, ns / 1e6) for _, ns, name in kernels))


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _persisting_l2_reset() -> Callable[[], object]:
    """cuCtxResetPersistingL2Cache, or nothing where the driver lacks it."""
    try:
        reset = ctypes.CDLL("libcuda.so.1").cuCtxResetPersistingL2Cache
    except (OSError, AttributeError):
        return lambda: None
    reset.argtypes, reset.restype = [], ctypes.c_int
    return reset


def cpu_threads() -> int:
    """Threads a timed CPU kernel may use: every core this process may run on."""
    return len(os.sched_getaffinity(0))
