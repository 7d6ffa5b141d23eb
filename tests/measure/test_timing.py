"""Kernel records become iterations, and a CPU's clock calls what it should when it should."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.measure.timing import (
    CPU_ESTIMATE_MS,
    MARKER,
    CpuClock,
    GpuClock,
    IterationRecord,
    Timed,
    iterations_of,
)

FLUSH = f"void at::native::vectorized_elementwise_kernel<4, at::native::{MARKER}, ...>"


def records(*iterations, markers=2):
    """A block as the profiler tells it: markers, the kernels of an iteration, ..., one closing marker."""
    kernels, now = [], 0
    for iteration in iterations:
        for _ in range(markers):
            kernels.append((now, 50, FLUSH))
            now += 60
        for name, duration, gap in iteration:
            kernels.append((now, duration, name))
            now += duration + gap
    return [*kernels, (now, 2, FLUSH)]


def test_what_lies_between_markers_is_an_iteration():
    found = iterations_of(records(*[[("scores", 100, 50), ("values", 50, 7)]] * 3))
    assert len(found) == 3
    assert all(f.span_ms == pytest.approx(200e-6) for f in found)
    assert found[0].kernels == (("scores", 100e-6), ("values", 50e-6))


def test_overlapping_kernels_count_once_and_gaps_count():
    kernels = [(0, 5, FLUSH), (10, 100, "a"), (50, 20, "b"), (200, 10, "c"), (300, 5, FLUSH)]
    assert iterations_of(kernels)[0].span_ms == 200e-6


def test_a_kernel_that_outlasts_a_later_one_ends_the_span():
    kernels = [(0, 5, FLUSH), (10, 500, "long"), (20, 30, "short"), (600, 5, FLUSH)]
    assert iterations_of(kernels)[0].span_ms == 500e-6


def test_an_iteration_without_an_end_is_not_reported():
    assert iterations_of([(0, 5, FLUSH), (10, 100, "a")]) == []


def test_markers_alone_are_no_iteration_and_kernels_without_a_marker_neither():
    assert iterations_of([]) == []
    assert iterations_of([(0, 5, FLUSH), (10, 5, FLUSH), (20, 5, FLUSH)]) == []
    assert iterations_of([(0, 100, "a"), (200, 100, "b")]) == []


COPY = "Memcpy DtoD (Device -> Device)"


def with_copies(*iterations, copies=3, between=()):
    """As a block is told whose inputs change: marker, copies, poison and flush, the iteration."""
    kernels, now = [], 0
    for iteration in iterations:
        for name in (FLUSH, *[COPY] * copies, *between, FLUSH, FLUSH, *iteration):
            kernels.append((now, 5, name))
            now += 10
    return [*kernels, (now, 2, FLUSH)]


def test_the_copies_that_change_the_inputs_are_no_iteration():
    found = iterations_of(with_copies(["a"], ["a", "b"]), [3, 3])
    assert [[name for name, _ in f.kernels] for f in found] == [["a"], ["a", "b"]]
    found = iterations_of(with_copies(["a"], ["b"], copies=0), [0, 0])
    assert [[name for name, _ in f.kernels] for f in found] == [["a"], ["b"]]


@pytest.mark.parametrize("late", [COPY, "late_work"])
def test_work_that_is_left_for_the_time_between_iterations_leaves_no_record(late):
    assert iterations_of(with_copies(["a"], ["a"], between=[late]), [3, 3]) == []


def test_a_kernel_that_only_copies_is_an_iteration():
    found = iterations_of(with_copies([COPY] * 3, [COPY]), [3, 3])
    assert [len(f.kernels) for f in found] == [3, 1]


def test_a_kernel_with_a_marker_of_its_own_gives_too_many_iterations_to_pass_for_a_block():
    one = [("a", 10, 1), (FLUSH, 10, 1), ("b", 10, 1)]
    assert len(iterations_of(records(one, one))) == 4


@given(
    st.lists(
        st.lists(
            st.tuples(st.sampled_from(["a", "b"]), st.integers(1, 10**6), st.integers(0, 10**4)),
            min_size=1,
            max_size=5,
        ),
        max_size=20,
    ),
    st.integers(1, 4),
)
def test_blocks_come_apart_as_they_were_put_together(iterations, markers):
    found = iterations_of(records(*iterations, markers=markers))
    assert [[name for name, _ in f.kernels] for f in found] == [[n for n, _, _ in i] for i in iterations]
    for record, iteration in zip(found, iterations, strict=True):
        assert isinstance(record, IterationRecord)
        busy = sum(duration for _, duration, _ in iteration)
        gaps = sum(gap for _, _, gap in iteration[:-1])
        assert record.span_ms == pytest.approx((busy + gaps) / 1e6)


class Ticking:
    """Time that passes only while the kernel runs: `cost_ms` for each call in turn, the last for good."""

    def __init__(self, monkeypatch, *costs_ms):
        self.now_ns, self.costs_ms, self.slots = 0, list(costs_ms), []
        monkeypatch.setattr("harness.measure.timing.time.perf_counter_ns", lambda: self.now_ns)

    def __call__(self, slot):
        self.slots.append(slot)
        cost = self.costs_ms.pop(0) if len(self.costs_ms) > 1 else self.costs_ms[0]
        self.now_ns += int(cost * 1e6)


def test_the_cpu_clock_rotates_slots_and_poisons_each_before_it_is_timed():
    log = []
    timed = Timed(lambda slot: log.append(("call", slot)), slots=3)
    samples = CpuClock().block(timed, 5, start=2, fresh=lambda n, slot: log.append(("poison", slot)))
    assert log[0] == ("call", 2)  # untimed: threads that slept wake up
    assert log[1:] == [(what, slot) for slot in (2, 0, 1, 2, 0) for what in ("poison", "call")]
    assert len(samples) == 5
    assert all(s > 0 for s in samples)


def test_neither_poison_nor_the_first_call_of_a_block_is_timed(monkeypatch):
    kernel = Ticking(monkeypatch, 70.0, 2.0)

    def fresh(n, slot):
        kernel.now_ns += 10**9

    assert CpuClock().block(Timed(kernel, slots=2), 3, 0, fresh) == [2.0, 2.0, 2.0]


def test_caches_are_flushed_before_every_timed_call():
    clock, seen = CpuClock(), []
    clock._flush.fill_(-1.0)
    timed = Timed(lambda slot: seen.append((clock._flush[0].item(), clock._flush[-1].item())), slots=1)
    clock.block(timed, 3, 0, lambda n, slot: None)
    assert seen[1:] == [(0.0, 0.0), (1.0, 1.0), (2.0, 2.0)]


def test_the_estimate_is_the_least_of_several_calls_after_a_first(monkeypatch):
    kernel, timed = Ticking(monkeypatch, 900.0, 30.0, 20.0, 25.0), Timed(lambda slot: None, slots=2)
    timed.call = kernel
    CpuClock().plan(timed)
    assert timed.estimate_ms == 30.0  # one call more: the first was slow
    kernel = Ticking(monkeypatch, 40.0, 30.0, 20.0, 25.0)
    timed.call = kernel
    CpuClock().plan(timed)
    assert timed.estimate_ms == 20.0
    assert len(kernel.slots) <= 1 + CPU_ESTIMATE_MS / 20.0
    assert not timed.captured


def test_latency_and_spin_call_as_often_as_asked_on_rotating_slots(monkeypatch):
    kernel = Ticking(monkeypatch, 1.0, 2.0, 3.0)
    timed = Timed(kernel, slots=2)
    assert CpuClock().latency(timed, 3) == [1.0, 2.0, 3.0]
    CpuClock().spin(timed, 4)
    assert kernel.slots == [0, 1, 0, 0, 1, 0, 1]


class Graph:
    def __init__(self, log, calls):
        self.log, self.calls = log, calls

    def replay(self):
        self.log.append(self.calls)


def test_a_burst_of_captured_calls_is_one_graph_and_others_are_called_one_by_one(monkeypatch):
    """On a machine that took 0.04 ms a launch, an honest kernel of 0.048 ms looked like one of 0.094."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    log: list[object] = []
    clock = GpuClock.__new__(GpuClock)
    monkeypatch.setattr(clock, "_captured", lambda timed, slots: Graph(log, tuple(slots)), raising=False)
    timed = Timed(log.append, 4, graphs=[Graph(log, (n,)) for n in range(4)])
    clock.chain(timed, 3)
    clock.chain(timed, 3)
    assert log == [(0, 1, 2)]  # once, before the inputs are fresh
    clock.spin(timed, 3)
    assert log[1:] == [(0, 1, 2)]
    clock.spin(timed, 2)
    assert log[2:] == [(0,), (1,)]
    eager = Timed(log.append, 4)
    clock.chain(eager, 3)
    clock.spin(eager, 3)
    assert log[4:] == [0, 1, 2]
