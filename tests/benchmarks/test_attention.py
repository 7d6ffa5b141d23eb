"""Kernels and human baselines as benchmarks: `pytest tests/benchmarks/test_attention.py --gate gate-cpu`.

The time is measured by the harness, in sandboxed workers, beside the anchor and in turns with it. So
pytest-benchmark is given a timer of our own, which shows what was measured: wall time on a CPU, on a GPU the
device time between two events around a graph's replay. `attnbench gate` compares what is saved.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import pytest

from tests.benchmarks.conftest import UNTIMED, gate_run


class MeasuredTime:
    """A timer that stands still, and goes on by one measured block with every step."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self._blocks_ms: deque[float] = deque()

    def __call__(self) -> float:
        return self._now_s

    def load(self, blocks_ms: Iterable[float]) -> None:
        self._blocks_ms = deque(blocks_ms)

    def step(self) -> None:
        self._now_s += self._blocks_ms.popleft() / 1e3

    def __repr__(self) -> str:
        return "attnbench"


TIMER = MeasuredTime()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "wanted" in metafunc.fixturenames:
        run = gate_run(metafunc.config)
        if run is None:
            reason = "kernels are timed with --gate EXPERIMENT; see docs/gate.md"
            metafunc.parametrize("wanted", [pytest.param(None, marks=pytest.mark.skip(reason=reason))])
        else:
            metafunc.parametrize("wanted", run.wanted, ids=[w.id for w in run.wanted])


@pytest.mark.benchmark(timer=TIMER)
def test_attention(benchmark, wanted, pytestconfig):
    from harness.bench import MachineError
    from harness.store import StoreError
    from harness.worker.protocol import WorkerError
    from reports.gate.saved import EXTRA

    run = gate_run(pytestconfig)
    try:
        measured = run.measured[wanted.id]
    except (MachineError, WorkerError) as error:
        pytest.exit(str(error), 3)
    except StoreError as error:
        pytest.exit(str(error), 4)
    if measured.case is None:
        untimed = pytestconfig.stash.setdefault(UNTIMED, {})
        untimed.setdefault(measured.kind, {})[wanted.id] = measured.reason
        (pytest.skip if measured.kind == "skipped" else pytest.fail)(f"{wanted.id}: {measured.reason}")
    benchmark.group = f"{wanted.task}/{wanted.workload}"
    benchmark.extra_info[EXTRA] = measured.case.model_dump(mode="json")
    TIMER.load(block.median_ms for block in measured.blocks)
    benchmark.pedantic(TIMER.step, rounds=len(measured.blocks))
