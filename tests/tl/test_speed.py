"""How long the language's own steps take; `nox -s bench` prints them, `nox -s tests` only bounds them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

import harness.tl
from harness.targets import TARGETS
from harness.tl.check import check
from harness.tl.interpret import interpret
from harness.tl.lower.numba import lower_numba
from harness.tl.lower.triton import lower_triton
from harness.tl.parse import parse
from harness.tl.resolve import resolve
from harness.tl.space import pruned, space
from harness.verify.inputs import make_inputs
from tasks import find

REFERENCE = (Path(harness.tl.__file__).parent / "corpus" / "reference" / "mha_causal.tl").read_text()
TASK = find("mha_causal")


def fastest(function, rounds=20):
    """The least CPU time of a call, in seconds: what other processes do on this machine does not count."""
    function()
    times = []
    for _ in range(rounds):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


# A fixed piece of Python takes this long on the core on which parsing and checking took 6.6 ms. The bounds of
# single milliseconds are for such a core; shared ones were seen to be 1.6 to 3 times as slow from hour to hour.
YARDSTICK_S = 0.0033


def yardstick():
    counts = {}
    for n in range(20_000):
        key = ("k", n & 255)
        counts[key] = counts.get(key, 0) + len(str(n))


def on_an_unhurried_core(function, rounds=20):
    """The least CPU time of a call, in seconds, as that core would take it: both are timed in turn."""
    function()
    took = {yardstick: [], function: []}
    for _ in range(rounds):
        for each, times in took.items():
            start = time.process_time()
            each()
            times.append(time.process_time() - start)
    return min(took[function]) * min(1.0, YARDSTICK_S / min(took[yardstick]))


@pytest.mark.parametrize("target", [None, "h100"])
def test_parsing_and_checking_a_program(benchmark, target):
    def parse_and_check():
        return check(REFERENCE, TASK, target=TARGETS[target] if target else None)

    assert benchmark(parse_and_check).ok
    assert on_an_unhurried_core(parse_and_check) < 0.010


def test_a_space_of_500_points(benchmark):
    sets = "Tile BM in {16, 32, 64, 96, 128, 192, 256}, BN in {16, 32, 48, 64, 96, 128}"
    schedule = "Schedule warps in {4, 8, 16}, stages in {1, 2, 3, 4}"
    lines = REFERENCE.split("\n")
    text = "\n".join(
        sets if x.startswith("Tile") else schedule if x.startswith("Schedule") else x for x in lines
    )
    program = resolve(parse(text), TASK)
    assert len(list(space(program))) >= 500

    def prune():
        return pruned(program, TASK, TARGETS["a100"], dims=(128, 128))

    result = benchmark(prune)
    assert result.kept and result.dropped
    assert fastest(prune, 5) < 1


def test_interpreting_two_heads(benchmark):
    workload = TASK.workloads["smoke"][0].with_(
        batch=1, heads=2, kv_heads=2, seq_q=256, seq_k=256, dim=64, dim_v=64
    )
    inputs = make_inputs(TASK, workload, "normal", 0, torch.device("cpu"))
    program = resolve(parse(REFERENCE), TASK)

    def run():
        return interpret(program, TASK, workload, inputs)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that wait for each other count as CPU time too
    try:
        benchmark(run)
        assert fastest(run, 3) < 1
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("lower", [lower_triton, lower_numba], ids=["triton", "numba"])
def test_lowering_a_program(benchmark, lower):
    program = resolve(parse(REFERENCE), TASK)

    def run():
        return lower(program, TASK)

    assert benchmark(run).files["attention.py"]
    assert on_an_unhurried_core(run) < 0.020
