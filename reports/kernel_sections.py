"""Owns the section about compiled CUDA kernels: what each takes of a multiprocessor, as the compiler says."""

from __future__ import annotations

import re

from harness.records import CompiledKernel
from reports import text
from reports.dataset import Dataset, Row
from reports.sections import Column, Entry, Section, Table

_SHAPE = re.compile(r"\bm\d+n\d+k\d+\b")
_COLUMNS = (
    Column("candidate"),
    Column("kernel"),
    Column("for"),
    Column("workloads", True),
    Column("registers", True),
    Column("spilled bytes", True),
    Column("shared memory", True),
    Column("blocks an SM", True),
    Column("occupancy", True),
    Column("tensor cores"),
)


def kernels_section(dataset: Dataset) -> Section | None:
    """Each kernel once; None where no result holds any."""
    found: dict[tuple[str, CompiledKernel], list[Row]] = {}
    for row in dataset.rows:
        for kernel in row.result.kernels:
            same = kernel.model_copy(update={"compile_s": 0.0})  # whenever it was compiled
            found.setdefault((row.contender, same), []).append(row)
    if not found:
        return None
    lines = tuple(_line(contender, kernel, rows) for (contender, kernel), rows in found.items())
    spilling = sum(1 for _, kernel in found if kernel.spill_bytes)
    notes = (
        "What ptxas says of the CUDA kernels, compiled by the harness for the target itself; candidates were "
        "not asked. Registers and spilled bytes are those of a thread; shared memory is that of a block, "
        "static and dynamic. Occupancy: resident warps over those that a multiprocessor could hold, and what "
        "stops it there.",
    )
    lead = (f"{text.number(len(found), 'kernel')}, {spilling} of them with spills.",)
    return Section("kernels", "Compiled kernels", notes, lead, (Table(_COLUMNS, lines),))


def _line(contender: str, kernel: CompiledKernel, rows: list[Row]) -> tuple[Entry, ...]:
    cores = ", ".join(dict.fromkeys(m[0] for name in kernel.tensor_core if (m := _SHAPE.search(name))))
    occupancy = "" if kernel.occupancy is None else f"{kernel.occupancy:.0%}, {kernel.limited_by}"
    return (
        Entry(contender),
        Entry(kernel.name),
        Entry(kernel.arch),
        Entry(str(len(rows))),
        Entry(str(kernel.registers)),
        Entry(str(kernel.spill_bytes), style="" if kernel.spill_bytes else "muted"),
        Entry(f"{kernel.shared_bytes:,}"),
        Entry("" if kernel.blocks is None else str(kernel.blocks)),
        Entry(occupancy),
        Entry(cores or "none", style="" if cores else "muted"),
    )
