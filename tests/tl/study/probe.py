"""Owns what one kernel's time consists of: machine code, what is fixed for a tile and what a round takes, ncu's view."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.tl.lower.gluon import lower_gluon
from harness.tl.lower.gluon_aot import compile_for_hopper
from tasks import Workload
from tests.tl.study.cells import Cell, cell, chosen, widened
from tests.tl.study.device import Device
from tests.tl.study.figures import line, middle
from tests.tl.study.machine_code import disassembled, loops
from tests.tl.study.record import Deadline, Entry, Record

EXTRA_ROUNDS = (1, 2, 4, 8, 16)
ROUNDS = 20
SHOWN = 14  # instructions of a loop
NCU_LIMIT_S = 120.0
SECTIONS = (
    "SpeedOfLight", "ComputeWorkloadAnalysis", "MemoryWorkloadAnalysis", "WarpStateStats", "SchedulerStats",
    "LaunchStats", "Occupancy", "SourceCounters",
)  # fmt: skip
KEPT = (
    "pipe_tensor", "pipe_xu", "inst_issued", "issue_active", "issue_slots", "stalled", "pcsamp", "lts__t_sector_hit",
    "lts__throughput", "dram__throughput", "gpu__time_duration", "registers_per_thread", "sm__cycles_elapsed",
)  # fmt: skip


def probe(
    device: Device, record: Record, names: Sequence[str], deadline: Deadline, dtype: str = "fp16",
    tuned: Path | None = None,
) -> None:  # fmt: skip
    """Every cell that the record lacks, until the deadline. What a tool cannot say is said with the reason."""
    for name in names:
        if f"{name} {dtype}" in record.cells:
            continue
        if deadline.over:
            print(f"{name}: no time left")
            continue
        c = cell(name, dtype)
        choice = chosen(c, tuned)
        entry: Entry = {
            "choice": choice,
            "machine_code": _told(_machine_code, c, choice),
            "time": _told(_time, device, c, choice),
            "ncu": _told(_ncu, device, c, tuned),
        }
        record.put(f"{name} {dtype}", entry)
        print(_line(name, entry), flush=True)


def _told(part: Callable[..., Entry], *given: Any) -> Entry:
    """What the part found, or what kept it from that."""
    try:
        return part(*given)
    except FileNotFoundError as error:
        return {"missing": str(error.filename or error)}
    except Exception as error:  # the other parts go on
        return {"missing": f"{type(error).__name__}: {error}"[:300]}


def _machine_code(c: Cell, choice: Mapping[str, int]) -> Entry:
    (kernel,) = compile_for_hopper(lower_gluon(c.program, c.task, choice=choice), c.task, c.workload)
    found: Entry = {
        "registers": kernel.registers, "spill_bytes": kernel.spill_bytes, "shared_bytes": kernel.shared_bytes,
    }  # fmt: skip
    listing = disassembled(kernel.cubin)
    if listing is None:
        return found | {"loops": [], "missing": "nvdisasm"}
    return found | {
        "loops": [
            {"instructions": x.opcodes.total(), "opcodes": dict(x.opcodes.most_common(SHOWN))}
            for x in loops(listing)
        ]
    }


def _time(device: Device, c: Cell, choice: Mapping[str, int]) -> Entry:
    """Microseconds that a tile takes beside its rounds, and a round, of a multiprocessor that has tiles all along.

    More keys are more rounds of the same tiles: the line through the times begins at what is fixed.
    """
    columns, rows = choice["BN"], choice["BM"]
    shapes = widened(c.workload, columns, EXTRA_ROUNDS, c.task.causal)
    with device.bench(c.task, c.program, {c.dims: [choice]}) as bench:
        bench.ready((w, choice) for w in shapes.values())
        found = {}
        for n, w in shapes.items():
            times = bench.samples_ms(w, {"it": choice}, ROUNDS)["it"]
            found[n] = middle(times)
    w, processors = c.workload, int(device.about().get("processors", 132))
    tiles = -(-w.seq_q // rows) * w.batch * w.heads
    points = [
        (mean_rounds(shapes[n], rows, columns, c.task.causal), 1e3 * ms * processors / tiles)
        for n, ms in found.items()
    ]
    fixed, each = line(points)
    whole = mean_rounds(w, rows, columns, c.task.causal)
    return {
        "ms_by_extra_rounds": {str(n): round(ms, 5) for n, ms in found.items()},
        "tiles": tiles,
        "rounds_a_tile": round(whole, 2),
        "fixed_us_a_tile": round(fixed, 3),
        "us_a_round": round(each, 4),
        "fixed_share": round(fixed / (fixed + each * whole), 4),
    }


def mean_rounds(w: Workload, rows: int, columns: int, causal: bool) -> float:
    """Rounds of a tile, on average; those of a causal one end at its last row."""
    every = -(-w.seq_k // columns)
    if not causal:
        return float(every)
    tiles = range(-(-w.seq_q // rows))
    return sum(min(every, -(-((i + 1) * rows + w.seq_k - w.seq_q) // columns)) for i in tiles) / len(tiles)


def _ncu(device: Device, c: Cell, tuned: Path | None) -> Entry:
    """All that Nsight Compute says of one launch with a cold cache, clocks as they are."""
    words = [
        "ncu", "--clock-control", "none", "--csv", "--page", "raw", "--kernel-name", f"{c.program.kernels[0].name}_kernel",
        "--launch-skip", "2", "--launch-count", "1", *(w for s in SECTIONS for w in ("--section", s)),
        sys.executable, "-m", "tests.tl.hopper_study", "once", "--cells", c.name, "--dtype", c.workload.dtype,
        *(("--tuned", str(tuned)) if tuned else ()),
    ]  # fmt: skip
    code, text = device.run(words, NCU_LIMIT_S)
    found = metrics(text)
    if not found:
        return {"missing": f"ncu ended with {code}: {text.strip()[-300:]}"}
    return {"metrics": {n: v for n, v in found.items() if any(part in n for part in KEPT)}}


def metrics(text: str) -> dict[str, str]:
    """By metric: value and unit, of the first kernel in what ncu prints as raw CSV; nothing where there is none."""
    table = [row for row in csv.reader(io.StringIO(text)) if len(row) > 10]
    if len(table) < 3:
        return {}
    names, units, values = table[0], table[1], table[2]
    return {n: f"{v} {u}".strip() for n, u, v in zip(names, units, values, strict=False) if n and v}


def _line(name: str, entry: Entry) -> str:
    code, time, seen = entry["machine_code"], entry["time"], entry["ncu"]
    parts = [
        f"{code['registers']} registers, {code['spill_bytes']} bytes spilled"
        if "registers" in code
        else "no code",
        f"{time['fixed_us_a_tile']} us a tile and {time['us_a_round']} a round"
        if "tiles" in time
        else "no times",
        f"{len(seen['metrics'])} metrics" if "metrics" in seen else f"no ncu: {seen['missing'][:60]}",
    ]
    return f"{name:20} {'; '.join(parts)}"
