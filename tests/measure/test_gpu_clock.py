"""What only a GPU can show: kernel records, graphs, and the two clocks side by side."""

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

    def poison(slot):
        poisoned.append(slot)
        outs[slot].view(torch.float64).fill_(float("nan"))

    clock.start_records()
    events = clock.block(timed, 20, 1, poison)
    records = clock.stop_records()
    assert len(records) == len(events) == 20
    assert poisoned[:4] == [1, 0, 1, 0]
    # The first event of a block may hold a cold start of the device (0.11 ms seen): medians.
    span, event = median(r.span_ms for r in records), median(events)
    assert 0 < span < event < span + 0.05
    assert not outs[0].isnan().any()


def test_what_cannot_be_captured_is_timed_on_the_stream():
    x = torch.randn(1024, 1024, device="cuda")
    timed = Timed(lambda slot: (x @ x).sum().item(), 1)
    clock = GpuClock(torch.device("cuda", 0))
    clock.plan(timed)
    assert not timed.captured
    assert timed.capture_error
    assert all(ms > 0 for ms in clock.block(timed, 3, 0, lambda slot: None))
