"""Owns the report of a target that is not at hand: what the compiler says of every CUDA kernel, no time."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tabulate import tabulate

from harness.build.manifest import Manifest
from harness.build.nvrtc import versions
from harness.experiment import Cell
from harness.presses import Press, Presses, machine_arch
from harness.records import CompiledKernel
from harness.targets import Target
from harness.worker.sandbox import Sandbox

NAME = "static"
HEADERS = (
    "kernel",
    "cells",
    "registers",
    "spills",
    "shared",
    "blocks",
    "occupancy",
    "tensor cores",
    "copies",
)


@dataclass
class Row:
    """One kernel of a candidate, and the cells that launch it so."""

    candidate: str
    sha256: str
    task: str
    kernel: CompiledKernel
    cells: list[str] = field(default_factory=list)


@dataclass
class Static:
    """What was compiled for a target, and what was not, with the reason."""

    target: Target
    rows: list[Row]
    problems: list[tuple[str, str, str]]  # candidate, cell, reason

    @property
    def spilling(self) -> list[Row]:
        return [row for row in self.rows if row.kernel.spill_bytes]

    @property
    def oversized(self) -> list[Row]:
        return [row for row in self.rows if row.kernel.blocks == 0]


def compile_all(
    target: Target,
    candidates: Sequence[Manifest],
    cells: Sequence[Cell],
    sandbox: Sandbox | None,
    moved: Callable[[int, int], None] = lambda done, total: None,
) -> Static:
    """Compile what every CUDA candidate launches on every cell, for the target's machine code.

    Which launches those are a candidate says itself: its code runs in the sandbox. `moved` is told how many
    of all pairs of candidate and cell are done.
    """
    mine = [m for m in candidates if m.backend == "cuda"]
    static = Static(target, [], [])
    rows: dict[tuple[str, CompiledKernel], Row] = {}
    with tempfile.TemporaryDirectory(prefix="attnbench-cuda-") as cache:
        presses = Presses(target, Path(cache), machine_arch(target), sandbox)
        try:
            for manifest in mine:
                presses.foresee(manifest, cells)
            pairs = [(m, c) for m in mine for c in cells if c.task.name in m.tasks]
            moved(0, len(pairs))
            for number, (manifest, cell) in enumerate(pairs, 1):
                press = presses.of(manifest, cell, None)
                _add(static, rows, manifest, cell, press or Press(problem="it was not compiled"))
                moved(number, len(pairs))
        finally:
            presses.close()
    static.rows = list(rows.values())
    return static


def _add(
    static: Static,
    rows: dict[tuple[str, CompiledKernel], Row],
    manifest: Manifest,
    cell: Cell,
    press: Press,
) -> None:
    if press.problem:
        static.problems.append((manifest.name, f"{cell.task.name} {cell.workload.key}", press.problem))
    for kernel in press.kernels:
        key = (manifest.sha256, kernel)
        if key not in rows:
            rows[key] = Row(manifest.name, manifest.sha256, cell.task.name, kernel)
        rows[key].cells.append(cell.workload.key)


def write(static: Static, run: Path) -> tuple[Path, Path]:
    """`static.json` and `static.md` in the run's directory."""
    record = {
        "target": static.target.name,
        "arch": machine_arch(static.target),
        "compiler": dict(versions()),
        "kernels": [
            {
                "candidate": row.candidate,
                "sha256": row.sha256,
                "task": row.task,
                "cells": row.cells,
                **row.kernel.model_dump(mode="json"),
            }
            for row in static.rows
        ],
        "problems": [dict(zip(("candidate", "cell", "reason"), p, strict=True)) for p in static.problems],
    }
    as_json, as_text = run / f"{NAME}.json", run / f"{NAME}.md"
    as_json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    as_text.write_text(markdown(static), encoding="utf-8")
    return as_json, as_text


def markdown(static: Static) -> str:
    """The report as text."""
    table = tabulate([_line(row) for row in static.rows], HEADERS, tablefmt="github")
    head = (
        f"# Static report for {static.target.title}\n\n"
        f"Compiled for {machine_arch(static.target)}; **nothing was run and nothing timed**. Registers and "
        "spilled bytes are those of a thread, shared memory that of a block, blocks those that a "
        "multiprocessor holds at once.\n\n"
    )
    tail = "".join(f"- {name}, {cell}: {reason}\n" for name, cell, reason in _brief(static.problems))
    return head + table + "\n" + (f"\n## Not compiled\n\n{tail}" if tail else "")


def _brief(problems: Sequence[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """One line a reason."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for name, cell, reason in problems:
        grouped.setdefault((name, reason.strip().splitlines()[0][:300] if reason.strip() else ""), []).append(
            cell
        )
    return [
        (name, cells[0] + (f" and {len(cells) - 1} more" if len(cells) > 1 else ""), reason)
        for (name, reason), cells in grouped.items()
    ]


def _line(row: Row) -> tuple[object, ...]:
    k = row.kernel
    occupancy = "-" if k.occupancy is None else f"{k.occupancy:.0%} ({k.limited_by})"
    cores = ", ".join(dict.fromkeys(map(_shape, k.tensor_core))) or "none"
    copies = ", ".join(dict.fromkeys(".".join(c.split(".")[:2]) for c in k.copies)) or "-"
    blocks = "-" if k.blocks is None else k.blocks
    return (
        f"{row.candidate}: {k.name}", len(row.cells), k.registers, k.spill_bytes, k.shared_bytes, blocks,
        occupancy, cores, copies,
    )  # fmt: skip


def _shape(instruction: str) -> str:
    """m16n8k16 f16, of an instruction's whole name."""
    parts = instruction.split(".")
    shape = next((p for p in parts if p.startswith("m") and "n" in p and "k" in p), instruction)
    dtypes = [p for p in parts if p in ("f16", "bf16", "tf32", "e4m3", "e5m2", "s8")]
    return " ".join([shape, *dict.fromkeys(dtypes)])


def show(static: Static, console: Console) -> None:
    """The report on a terminal: a line a kernel, then what was not compiled."""
    table = Table(box=None, pad_edge=False)
    for name in HEADERS[:-1]:
        table.add_column(name, overflow="fold")
    for row in static.rows:
        table.add_row(*(escape(str(value)) for value in _line(row)[:-1]))
    console.print(table)
    for name, cell, reason in _brief(static.problems):
        console.print(f"[red]not compiled[/] {escape(f'{name}, {cell}: {reason}')}", soft_wrap=True)
    kernels, spilling = len(static.rows), len(static.spilling)
    console.print(
        f"{kernels} kernels for {machine_arch(static.target)}: {spilling} with spills, "
        f"{len(static.oversized)} whose launch does not fit. Nothing was run, nothing timed."
    )
