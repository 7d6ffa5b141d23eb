"""Owns `attnbench tl run`: interprets a program on seeded inputs, and says how far it is from the oracle."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

import torch
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from harness.commands import guarded
from harness.exits import EXIT_FOUND, EXIT_USAGE, fail
from harness.measure.roofline import compute_floor_ms, memory_floor_ms
from harness.targets import Target
from harness.tl import ir
from harness.tl.counts import Counts
from harness.tl.evaluate import evaluate
from harness.tl.interpret import InterpretError, interpret
from harness.tl.parse import parse_leniently
from harness.tl.problem import scalars
from harness.tl.resolve import resolve_leniently
from harness.tl_commands import dtype_of, program_of, target_of, tiles_of, workload_of
from harness.tl_text import Source, as_records, print_findings, shown, stdout, without_place
from harness.verify.inputs import make_inputs
from harness.verify.tolerance import Comparison, ToleranceError, expect
from tasks.spec import Task, Workload

_SLOW = 1 << 27  # scores from which on a warning is due: some ten seconds
_MOST_SCORES = 1 << 33
_MOST_ELEMENTS = 1 << 24  # of one tile; all blocks that run together have one each


@dataclass(frozen=True)
class Sizes:
    """What the options change of a workload; None leaves it as it is."""

    batch: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    seq_q: int | None = None
    seq_k: int | None = None
    dim: int | None = None
    dim_v: int | None = None
    dtype: str | None = None
    scale: float | None = None
    parameters: tuple[str, ...] = ()

    def of(self, task: Task, workload: Workload) -> Workload:
        """The workload with these sizes; what was equal to a changed size and is not given follows it."""
        given = {k: v for k, v in asdict(self).items() if v is not None and k != "parameters"}
        for size, other in (("heads", "kv_heads"), ("seq_q", "seq_k"), ("dim", "dim_v")):
            if size in given and other not in given and getattr(workload, size) == getattr(workload, other):
                given[other] = given[size]
        if self.dtype is not None:
            dtype_of(self.dtype)
        return guarded(lambda: workload.with_(**given, parameters=self._parameters(task, workload)))

    def _parameters(self, task: Task, workload: Workload) -> tuple[tuple[str, int | float], ...]:
        values = workload.params
        kinds = {p.name: p.type for p in task.parameters}
        for text in self.parameters:
            name, _, value = (word.strip() for word in text.partition("="))
            if name not in kinds:
                known = ", ".join(kinds) or "none"
                fail(f"--param {text!r}: {task.name} has the parameters: {known}", EXIT_USAGE)
            try:
                values[name] = int(value) if kinds[name] == "int" else float(value)
            except ValueError:
                fail(f"--param {text!r}: write {name}=VALUE with {kinds[name]} VALUE", EXIT_USAGE)
        return tuple(values.items())


@dataclass(frozen=True)
class Worst:
    """The element that is furthest off."""

    batch: int
    head: int
    row: int
    col: int
    got: float
    expected: float


def run(
    path: Path | None,
    task_name: str | None,
    folders: Sequence[Path],
    workload_name: str | None,
    sizes: Sizes,
    tiles: Sequence[str],
    recipe: str,
    seed: int,
    target_name: str | None,
    as_json: bool,
) -> None:
    """Interpret the program and compare; exit code 1 where it cannot run or disagrees."""
    target = target_of(target_name)
    source, task = program_of(path, task_name, folders)
    workload = sizes.of(task, workload_of(task, workload_name))
    program = _resolved(source, task, as_json)
    choice = tiles_of(tiles, dict(program.parameters))
    _reasonable(program, workload, choice)
    inputs = guarded(lambda: make_inputs(task, workload, recipe, seed, "cpu"))
    try:
        outcome = interpret(program, task, workload, inputs, choice)
    except InterpretError as error:
        _stopped(source, error, as_json)
    try:
        expectation = expect(task, workload, inputs)
        comparison = expectation.compare(outcome.outputs)
    except ToleranceError as error:
        fail(str(error), EXIT_USAGE)
    worst = None
    for name, expected in expectation.outputs.items():
        worst = worst or _worst(outcome.outputs[name], expected.reference)
    choice = {**program.defaults, **choice}
    if as_json:
        _print_record(task, workload, choice, comparison, worst, outcome.counts, target)
    else:
        _print(source, task, workload, choice, comparison, worst)
        _print_counts(task, workload, outcome.counts, target)
    if not comparison.passed:
        sys.exit(EXIT_FOUND)


def _reasonable(program: ir.Program, workload: Workload, choice: Mapping[str, int]) -> None:
    """Refuse what no CPU interprets in reasonable time and memory; warn of what takes long."""
    scores = workload.batch * workload.heads * workload.seq_q * workload.seq_k
    if scores > _MOST_SCORES:
        fail(f"{scores:,} scores are too many to interpret; --seq-q, --heads make it less", EXIT_USAGE)
    if scores > _SLOW:
        print(f"attnbench: {scores:,} scores to interpret; --seq-q, --heads make it less", file=sys.stderr)
    sizes = {**scalars(workload), **program.defaults, **choice}
    for tile in (tile for kernel in program.kernels for tile in kernel.tiles):
        try:
            elements = evaluate(tile.shape[0], sizes) * evaluate(tile.shape[1], sizes)
        except (KeyError, ValueError, ZeroDivisionError):
            continue  # the interpreter says what is wrong with it
        if elements > _MOST_ELEMENTS:
            fail(f"tile {tile.name} would hold {elements:,} elements; choose smaller tiles", EXIT_USAGE)


def _resolved(source: Source, task: Task, as_json: bool) -> ir.Program:
    """What the text says, right or wrong: only what has no meaning at all is refused."""
    tree, unread = parse_leniently(source.text)
    resolution = resolve_leniently(tree, task)
    if resolution.program is not None and not unread:
        return resolution.program
    findings = sorted({*unread, *resolution.findings}, key=lambda f: (f.pos.line, f.pos.column, f.code))
    if as_json:
        print(json.dumps({"file": source.name, "ran": False, "findings": as_records(findings)}, indent=1))
    else:
        print_findings(source, findings, False, stdout())
    sys.exit(EXIT_FOUND)


def _stopped(source: Source, error: InterpretError, as_json: bool) -> NoReturn:
    message = without_place(str(error), error.pos, error.statement)
    if as_json:
        record = {"file": source.name, "ran": False, "error": message, "line": error.pos.line}
        print(json.dumps(record, indent=1))
    else:
        stdout().print(shown(source, error.pos, "error when run", message))
    sys.exit(EXIT_FOUND)


def _worst(out: Tensor, reference: Tensor) -> Worst | None:
    """None where the output's axes are not (batch, seq_q, heads, channels)."""
    if out.shape != reference.shape:
        return None
    off = (out.double() - reference.double()).abs().nan_to_num(math.inf, math.inf)
    flat = int(off.argmax())
    batch, row, head, col = (int(n) for n in torch.unravel_index(torch.tensor(flat), off.shape))
    return Worst(
        batch, head, row, col, float(out[batch, row, head, col]), float(reference[batch, row, head, col])
    )


def _print(
    source: Source,
    task: Task,
    workload: Workload,
    choice: Mapping[str, int],
    comparison: Comparison,
    worst: Worst | None,
) -> None:
    console = stdout()
    tiles = ", ".join(f"{name} = {value}" for name, value in choice.items())
    console.print(f"{escape(source.name)}: {task.name} {workload.key}" + (f" with {tiles}" if tiles else ""))
    verdict = "[green]right[/]" if comparison.passed else "[bold red]wrong[/]"
    largest, allowed = comparison.error_max, comparison.error_allowed
    console.print(f"{verdict}: largest error {largest:.3g}, {allowed:.3g} is allowed")
    if worst is not None:
        console.print(
            f"  worst at b {worst.batch}, h {worst.head}, row {worst.row}, col {worst.col}: "
            f"{worst.got:.6g}, expected {worst.expected:.6g}"
        )
    if not comparison.passed:
        if worst is None or not comparison.note.startswith("an element is off"):
            console.print(f"  {escape(comparison.note)}")
        console.print(f"  what may be the cause: attnbench tl check {escape(source.name)} --task {task.name}")


def _print_counts(task: Task, workload: Workload, counts: Counts, target: Target | None) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    useful = task.flops(workload) / counts.gemm_flops if counts.gemm_flops else 0.0
    once = f"{task.bytes(workload):,} in and out if each tensor is moved once"
    table.add_row("GEMM FLOPs", f"{counts.gemm_flops:,}", f"{useful:.0%} on pairs that the mask allows")
    table.add_row("exponentials", f"{counts.exponentials:,}", "")
    table.add_row("bytes read from global", f"{counts.global_bytes_read:,}", once)
    table.add_row("bytes written to global", f"{counts.global_bytes_written:,}", "")
    table.add_row("bytes written to shared", f"{counts.shared_bytes:,}", "")
    for what, ms in _bounds(task, workload, counts, target).items():
        time = "no figure" if ms is None else f"{ms * 1e3:,.2f} us"
        table.add_row(what, time, target.title if target else "")
    console = stdout()
    console.width = max(console.width, 120)
    console.print(table)


def _bounds(task: Task, workload: Workload, counts: Counts, target: Target | None) -> dict[str, float | None]:
    """Milliseconds that the target's peaks allow, by what bounds them; a kernel takes longer."""
    if target is None:
        return {}
    moved = counts.global_bytes_read + counts.global_bytes_written
    return {
        "at the peak of GEMMs": compute_floor_ms(counts.gemm_flops, target, workload.dtype),
        "moving each tensor once": memory_floor_ms(task.bytes(workload), target),
        "moving all of it, no L2": memory_floor_ms(moved, target),
    }


def _print_record(
    task: Task,
    workload: Workload,
    choice: Mapping[str, int],
    comparison: Comparison,
    worst: Worst | None,
    counts: Counts,
    target: Target | None,
) -> None:
    record = {
        "task": task.name,
        "workload": workload.key,
        "choice": dict(choice),
        "passed": comparison.passed,
        "error_max": comparison.error_max if math.isfinite(comparison.error_max) else None,
        "error_allowed": comparison.error_allowed,
        "note": comparison.note,
        "worst": {k: v if math.isfinite(v) else str(v) for k, v in asdict(worst).items()} if worst else None,
        "counts": asdict(counts),
        "bounds_ms": _bounds(task, workload, counts, target),
    }
    print(json.dumps(record, indent=1))
