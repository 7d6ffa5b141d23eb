"""Owns what `attnbench tl tune` does: searches a program's tiles by measuring, and writes the candidate."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.commands import guarded
from harness.exits import EXIT_FOUND, EXIT_MACHINE, EXIT_STORE, EXIT_USAGE, fail
from harness.progress import Bar, output
from harness.targets import Target, find_target, target_of_device
from harness.tl.check import check
from harness.tl.lower.lowered import Lowered, LowerError
from harness.tl_commands import dtype_of, program_of
from harness.tl_text import print_findings
from harness.tuning import TUNABLE, Tuned, choices, tune
from tasks import Task, Workload

_RECORD = "tuning.json"
_SHOWN = 4  # choices of a cell in the table


def run(
    path: Path | None, task_name: str | None, folders: Sequence[Path], target_name: str | None,
    sets: Sequence[str], dtype: str, out: Path, as_json: bool, backend: str = "triton",
    everything: bool = False,
) -> None:  # fmt: skip
    """Search the choices that fit on every workload of the sets; ends the command where it cannot.

    Of Hopper's schedules a search times 15 % or less, unless `everything`; of other choices all are timed.
    """
    if backend not in TUNABLE:
        fail(f"no choices of {backend} are searched; choose one of {', '.join(TUNABLE)}", EXIT_USAGE)
    source, task = program_of(path, task_name, folders)
    report = check(source.text, task, dtype=dtype_of(dtype))
    if report.program is None:
        print_findings(source, report.findings, False, Console(stderr=True, highlight=False))
        fail("a program with errors cannot be tuned", EXIT_FOUND)
    target = _target(target_name)
    every = guarded(lambda: [w for name in sets for w in task.workload_set(name)])
    workloads = [w for w in dict.fromkeys(every) if w.dtype == dtype]
    if not workloads:
        fail(
            f"no workload of {task.name} in {', '.join(sets)} has dtype {dtype}; see: attnbench tasks",
            EXIT_USAGE,
        )
    program = report.program
    if not any(choices(program, task, target, w, backend) for w in workloads):
        fail(f"no choice of the program's tiles fits on {target.name}; see: attnbench tl space", EXIT_FOUND)
    try:
        with tempfile.TemporaryDirectory() as scratch, Bar(output(as_json=True), "tuning") as bar:
            tuned, lowered = tune(
                program, task, target, workloads, Path(scratch), None, backend, bar.moved, everything
            )
    except LowerError as error:
        fail(str(error), EXIT_FOUND)
    folder = _write(tuned, lowered, out)
    if as_json:
        print(json.dumps({"candidate": str(folder), "rows": [asdict(r) for r in tuned.rows]}, indent=1))
        return
    _show(tuned, task, workloads)
    for cell, budget in tuned.searches.items():
        share = f"{100 * budget.evaluations / budget.size:.0f} %"
        print(
            f"{cell}: {budget.evaluations} timings of {budget.size} choices ({share}), {budget.seconds:.1f} s"
        )
    if tuned.stopped:
        print(f"ended early: {tuned.stopped}")
    print(f"{tuned.kernels} kernels compiled in {tuned.compile_s:.0f} s")
    print(
        f"\n{len(tuned.timings)} timings on {tuned.device} in {tuned.wall_s:.0f} s, all in {folder / _RECORD}"
    )
    print(f"Next: attnbench eval {target.name} --task {task.name} --candidates {folder}")


def _target(name: str | None) -> Target:
    if not torch.cuda.is_available():
        advice = "`attnbench tl lower` takes default tiles"
        fail(f"tuning measures, and there is no NVIDIA GPU here; {advice}", EXIT_MACHINE)
    device = torch.cuda.get_device_name()
    here = target_of_device(device)
    wanted = guarded(lambda: find_target(name)) if name else here
    if wanted is None:
        fail(f"{device} is no target this project knows; name the nearest with --target", EXIT_MACHINE)
    if here is not None and wanted.name != here.name:
        fail(f"this machine is a {here.name}, no {wanted.name}: choices are measured here", EXIT_MACHINE)
    return wanted


def _write(tuned: Tuned, lowered: Lowered, out: Path) -> Path:
    """Under a name of its own: the program with default choices may be in the same run."""
    name = f"{lowered.name}_tuned"
    manifest = lowered.files["candidate.toml"].replace(f'"{lowered.name}"', f'"{name}"', 1)
    folder = out / name
    try:
        replace(lowered, name=name, files={**lowered.files, "candidate.toml": manifest}).write(folder)
        tuned.write(folder / _RECORD)
    except OSError as error:
        fail(f"{folder}: {error.strerror or error}", EXIT_STORE)
    return folder


def _show(tuned: Tuned, task: Task, workloads: Sequence[Workload]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("workload", "TFLOP/s", "best choice", "next", "failed"):
        table.add_column(column, overflow="fold")
    for w in workloads:
        mine = [t for t in tuned.timings if t.cell == w.key]
        timed = sorted((t for t in mine if t.time_ms), key=lambda t: t.time_ms or 0.0)
        speeds = [f"{task.flops(w) / (t.time_ms or 1.0) / 1e9:.0f}" for t in timed[:_SHOWN]]
        names = [" ".join(f"{k}={v}" for k, v in t.choice.items()) for t in timed[:1]]
        best = (*(speeds[:1] or ["-"]), *(names or ["-"]))
        table.add_row(escape(w.key), *best, " ".join(speeds[1:]), str(len(mine) - len(timed)))
    Console(highlight=False).print(table)
