"""What only a GPU can show: kernel records, graphs, and the two clocks side by side."""

import time
from statistics import median

import pytest
import torch

from harness.measure.timing import GpuClock, Timed

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


@pytest.fixture
def timed():
    a, b = (torch.randn(2048, 2048, device="cuda", dtype=torch.float16) for _ in range(2))
    outs = [torch.empty_like(a) for _ in range(2)]
    return Timed(lambda slot: torch.mm(a, b, out=outs[slot]), 2), outs


def test_records_and_events_agree_and_iterations_are_told_apart(timed):
    timed, outs = timed
    clock = GpuClock(torch.device("cuda", 0))
    clock.plan(timed)
    assert timed.captured, timed.capture_error
    poisoned = []

    def fresh(n, slot):
        poisoned.append(slot)
        outs[slot].view(torch.float64).fill_(float("nan"))

    clock.start_records()
    events = clock.block(timed, 20, 1, fresh)
    records = clock.stop_records()
    assert len(records) == len(events) == 20
    assert poisoned[:4] == [1, 0, 1, 0]
    # The first event of a block may hold a cold start of the device (0.11 ms seen): medians.
    span, event = median(r.span_ms for r in records), median(events)
    assert 0 < span < event < span + 0.05
    assert not outs[0].isnan().any()


@pytest.mark.parametrize("capture", [True, False])
def test_every_kernel_of_a_call_is_in_its_iteration(capture):
    x = torch.randn(1 << 22, device="cuda")
    y = torch.empty_like(x)

    def call(slot):
        torch.mul(x, 2.0, out=y)
        torch.sin(y, out=y)
        torch.cumsum(y, 0, out=y)

    timed = Timed(call, 1, capture)
    clock = GpuClock(torch.device("cuda", 0))
    clock.plan(timed)
    assert timed.captured == capture
    clock.start_records()
    for start in range(3):  # blocks follow each other in the records
        clock.block(timed, 4, start, lambda n, slot: None)
    records = clock.stop_records()
    assert len(records) == 12
    names = {tuple(name for name, _ in record.kernels) for record in records}
    assert len(names) == 1
    assert len(names.pop()) >= 3
    assert all(record.span_ms >= max(ms for _, ms in record.kernels) for record in records)


def test_spinning_and_latency_leave_nothing_running(timed):
    timed, outs = timed
    clock = GpuClock(torch.device("cuda", 0))
    clock.plan(timed)
    clock.spin(timed, 50)
    assert torch.cuda.current_stream().query()
    assert len(clock.latency(timed, 3)) == 3
    assert torch.cuda.current_stream().query()
    assert not any(out.isnan().any() for out in outs)


def test_a_chain_does_every_call_in_its_turn_and_no_call_waits_for_a_launch():
    marks = [torch.zeros(8, device="cuda") for _ in range(16)]
    count = torch.zeros(1, device="cuda")

    def call(slot):
        count.add_(1.0)
        marks[slot].copy_(count.expand(8))

    timed = Timed(call, len(marks))
    clock = GpuClock(torch.device("cuda", 0))
    clock.plan(timed)
    for calls in (3, 16, 3):
        clock.chain(timed, calls)
        count.zero_()
        for mark in marks:
            mark.fill_(-1.0)
        torch.cuda.synchronize()
        clock.spin(timed, calls)
        assert [int(m[0]) for m in marks] == [*range(1, calls + 1), *[-1] * (16 - calls)]
    assert sorted(timed.chains) == [3, 16]

    def least_ms():
        found = []
        for _ in range(50):
            begin = time.perf_counter()
            clock.spin(timed, 16)
            found.append((time.perf_counter() - begin) * 1e3)
        return min(found)

    chained = least_ms()
    timed.chains.clear()
    assert chained < least_ms()


def test_what_cannot_be_captured_is_timed_on_the_stream():
    x = torch.randn(1024, 1024, device="cuda")
    timed = Timed(lambda slot: (x @ x).sum().item(), 1)
    clock = GpuClock(torch.device("cuda", 0))
    clock.plan(timed)
    assert not timed.captured
    assert timed.capture_error
    clock.chain(timed, 2)
    assert not timed.chains
    assert all(ms > 0 for ms in clock.block(timed, 3, 0, lambda n, slot: None))
