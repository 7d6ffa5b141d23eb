"""Owns what growing maxima cost: each way to rescale, on a workload's own inputs and where maxima grow in every round."""

from __future__ import annotations

from collections.abc import Sequence

from harness.tl.lower.gluon_choices import complete
from harness.tl.schedule import RESCALES
from tests.tl.study.cells import Cell, cell, chosen
from tests.tl.study.device import Choice, Device
from tests.tl.study.record import Deadline, Record

ROUNDS = 40
GROWTH = (
    8.0  # of the greatest score from a tile of keys to the next: above the 5.5 that a rare rescaling lets go
)
OWN, GROWING = "own", "growing"
CELLS = ("mha:2k:128", "mha:2k:64", "mha_causal:2k:128", "mha_causal:2k:64", "mha:16k:128", "mha:16k:64")


def maxima(
    device: Device, record: Record, names: Sequence[str], deadline: Deadline, dtype: str = "fp16",
    rounds: int = ROUNDS,
) -> None:  # fmt: skip
    """Every cell that the record lacks, until the deadline; of both inputs the samples by rescale."""
    for c in (cell(name, dtype) for name in names if f"{name} {dtype}" not in record.cells):
        if deadline.over:
            print(f"{c.name}: no time left")
            continue
        ways = _ways(c)
        with device.bench(c.task, c.program, {c.dims: list(ways.values())}) as bench:
            bench.ready((c.workload, choice) for choice in ways.values())
            problems = {n: why for n, choice in ways.items() if (why := bench.wrong(c.workload, choice))}
            able = {n: choice for n, choice in ways.items() if n not in problems}
            samples = {}
            for inputs, step in ((OWN, 0.0), (GROWING, -GROWTH / ways["0"]["BN"])):
                times = bench.samples_ms(c.workload, able, rounds, step)
                samples[inputs] = {n: [round(t, 5) for t in own] for n, own in times.items()}
        choices = {n: dict(choice) for n, choice in ways.items()}
        record.put(f"{c.name} {dtype}", {"choices": choices, "problems": problems, "samples_ms": samples})
        print(f"{c.name}: {', '.join(able) or 'none'} timed", flush=True)


def _ways(c: Cell) -> dict[str, Choice]:
    """The chosen schedule with each way to rescale."""
    base = chosen(c)
    return {str(n): complete(c.program, {**base, "rescale": n}) for n in RESCALES}
