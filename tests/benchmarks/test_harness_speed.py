"""How long the harness's own steps take; `nox -s bench` prints them, `nox -s tests` only runs them."""

import socket

import numpy as np
import pytest
import torch

from harness.measure.statistics import bootstrap_median
from harness.measure.timing import MARKER, iterations_of
from harness.verify.inputs import make_inputs
from harness.verify.tolerance import expect
from harness.worker.protocol import receive, send
from tasks import find


def test_a_request_and_its_answer(benchmark):
    ours, theirs = socket.socketpair()

    def round_trip():
        send(ours, {"op": "block", "args": {"iterations": 10}, "nonce": "0" * 32})
        request = receive(theirs)
        send(theirs, {"nonce": request["nonce"], "ok": True, "value": {"samples_ms": [1.0] * 10}})
        return receive(ours)

    assert benchmark(round_trip)["ok"]


def test_the_interval_of_a_stopping_rule(benchmark):
    values = np.random.default_rng(0).normal(1.0, 0.003, 50)
    interval = benchmark(bootstrap_median, values)
    assert interval.low < 1.0 < interval.high


def test_kernel_records_of_a_session(benchmark):
    kernels = []
    for n in range(2000):
        kernels += [
            (10 * n, 1, f"poison {MARKER}"),
            (10 * n + 2, 1, f"flush {MARKER}"),
            (10 * n + 4, 3, "kernel"),
        ]
    kernels.append((10**9, 1, MARKER))
    assert len(benchmark(iterations_of, kernels)) == 2000


@pytest.mark.parametrize("step", ["expect", "compare"])
def test_judging_a_small_workload(benchmark, step):
    task = find("mha_causal")
    workload = task.workloads["smoke"][0]
    inputs = make_inputs(task, workload, "normal", 0, torch.device("cpu"))
    expectation = expect(task, workload, inputs)
    out = torch.zeros(1, 512, 4, 64)
    if step == "expect":
        benchmark(expect, task, workload, inputs)
    else:
        assert not benchmark(lambda: expectation.compare({"out": out})).passed
