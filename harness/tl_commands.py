"""Owns what `attnbench tl` does with a program and its task: checks it, lowers it, sizes its space."""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from rich.markup import escape

from harness.commands import guarded
from harness.exits import EXIT_FOUND, EXIT_STORE, EXIT_USAGE, fail
from harness.targets import Target, find_target
from harness.tl import ir
from harness.tl.check import Report
from harness.tl.check import check as check_program
from harness.tl.lower.backends import COMPILED
from harness.tl.lower.backends import lower as lower_program
from harness.tl.lower.lowered import Lowered, LowerError
from harness.tl.schedule import Schedule
from harness.tl_text import Source, as_records, print_findings, read, reference, shown, stdout, without_place
from tasks import Task, TaskError, discover, find
from tasks.spec import DTYPES, Workload

Level = Literal["sketch", "code"]
_NAMED = re.compile(r"^[ \t]*(?:#|//)[ \t]*task:[ \t]*(\w+)", re.MULTILINE | re.IGNORECASE)
_KERNEL = re.compile(r"^[ \t]*kernel[ \t]+(\w+)", re.MULTILINE | re.IGNORECASE)
_HEADER_LINES = 10  # where `# task: NAME` is looked for


def program_of(path: Path | None, task_name: str | None, folders: Sequence[Path]) -> tuple[Source, Task]:
    """The program and the task it is for, by the rules of the command line; ends the command without."""
    if path is None and task_name is None:
        fail("give a file with a program, or --task NAME for the reference program of a task", EXIT_USAGE)
    if path is None:
        task = guarded(lambda: find(str(task_name), *folders))
        return reference(task.name), task
    source = read(path)
    named = task_name or task_in(source.text, guarded(lambda: discover(*folders)))
    if named is None:
        fail(
            f"{source.name} does not say which task it is for: add --task NAME, or the line `# task: NAME`. "
            "See: attnbench tasks",
            EXIT_USAGE,
        )
    return source, guarded(lambda: find(named, *folders))


def task_in(text: str, known: Mapping[str, Task]) -> str | None:
    """The task that a text names: in a comment at its head, or as its kernel."""
    written = _NAMED.search("\n".join(text.splitlines()[:_HEADER_LINES]))
    if written:
        return written[1]
    return next((k[1] for k in _KERNEL.finditer(text) if k[1] in known), None)


def target_of(name: str | None) -> Target | None:
    """The target by name; ends the command where there is none."""
    return None if name is None else guarded(lambda: find_target(name))


def dtype_of(name: str) -> str:
    """The dtype, if there is one of that name."""
    if name not in DTYPES:
        fail(f"unknown dtype {name!r}; choose one of {', '.join(DTYPES)}", EXIT_USAGE)
    return name


def tiles_of(texts: Sequence[str], known: Mapping[str, Sequence[int | str]]) -> dict[str, int]:
    """What `--tile BM=64,BN=32` says; ends the command for a name that the program does not have."""
    choice: dict[str, int] = {}
    for part in (part.strip() for text in texts for part in text.split(",")):
        name, equals, value = (word.strip() for word in part.partition("="))
        if not equals or not value.isascii() or not value.isdigit() or int(value) < 1 or len(value) > 6:
            fail(f"--tile {part!r}: write NAME=NUMBER, such as BM=64", EXIT_USAGE)
        if name not in known:
            near = difflib.get_close_matches(name.upper(), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has: {', '.join(known) or 'none'}"
            fail(f"--tile {part!r}: the program has no tile parameter {name}; {hint}", EXIT_USAGE)
        choice[name] = int(value)
    return choice


def workload_of(task: Task, named: str | None, default: str = "smoke:0") -> Workload:
    """A workload by `SET:NUMBER`, `SET` (its first) or its key; ends the command where there is none."""
    word = named or default
    group, _, number = word.partition(":")
    if group in task.workloads:
        members = task.workloads[group]
        if (number or "0").isdecimal() and int(number or 0) < len(members):
            return members[int(number or 0)]
        last = f"{group}:{len(members) - 1}"
        fail(f"set {group!r} of {task.name} has the workloads {group}:0 to {last}", EXIT_USAGE)
    everything = [w for members in task.workloads.values() for w in members]
    found = next((w for w in everything if w.key == word), None)
    if found is None:
        fail(
            f"{task.name} has no workload {word!r}; write SET:NUMBER with one of the sets "
            f"{', '.join(task.workloads)}, or a key that `attnbench tasks show {task.name}` prints",
            EXIT_USAGE,
        )
    return found


def checked(
    source: Source, task: Task, target: Target | None, as_json: bool, dtype: str = "fp16"
) -> ir.Program:
    """The resolved program; where it has errors, they are shown and the command ends."""
    report = check_program(source.text, task, target=target, dtype=dtype)
    if report.program is None:
        _show_report(source, task, report, False, as_json)
        sys.exit(EXIT_FOUND)
    return report.program


# --- check ------------------------------------------------------------------------------------------


def check(
    path: Path | None,
    task_name: str | None,
    folders: Sequence[Path],
    level: Level,
    target_name: str | None,
    dtype: str,
    notes: bool,
    as_json: bool,
) -> None:
    """Say what is wrong with a program; exit code 1 where there is an error."""
    target = target_of(target_name)
    source, task = program_of(path, task_name, folders)
    report = check_program(source.text, task, level=level, target=target, dtype=dtype_of(dtype))
    _show_report(source, task, report, notes, as_json)
    if not report.ok:
        sys.exit(EXIT_FOUND)


def _show_report(source: Source, task: Task, report: Report, notes: bool, as_json: bool) -> None:
    if as_json:
        findings = as_records(report.findings)
        record = {"file": source.name, "task": task.name, "ok": report.ok, "findings": findings}
        print(json.dumps(record, indent=1))
    else:
        print_findings(source, report.findings, notes, stdout())


# --- lower ------------------------------------------------------------------------------------------


def lower(
    path: Path | None,
    task_name: str | None,
    folders: Sequence[Path],
    backend: str,
    target_name: str | None,
    tiles: Sequence[str],
    dtype: str,
    out: Path | None,
    compile_: bool,
    as_json: bool,
) -> None:
    """Print or write the kernel that a program becomes, or what a compiler makes of it."""
    if backend not in COMPILED:
        fail(f"unknown backend {backend!r}; choose one of {', '.join(COMPILED)}", EXIT_USAGE)
    if compile_ and backend == "numba":
        fail("--compile compiles for GPUs, without one: take the triton or the cuda backend", EXIT_USAGE)
    target = target_of(target_name)
    source, task = program_of(path, task_name, folders)
    program = checked(source, task, target, as_json, dtype_of(dtype))
    lowered = _lowered(source, program, task, backend, target, tiles, as_json)
    if out is not None:
        _write(lowered, out)
    if compile_:
        from harness.tl_compile import show

        show(lowered, task, workload_to_compile(task, dtype), target, as_json)
    elif as_json:
        record = {"name": lowered.name, "backend": lowered.backend, "choice": dict(lowered.choice)}
        made = {"files": dict(lowered.files)} if out is None else {"folder": str(out)}
        print(json.dumps(record | made, indent=1))
    elif out is None:
        sys.stdout.write(lowered.files["kernel.cu" if backend == "cuda" else "attention.py"])
    else:
        folder = escape(str(out))
        on = "cpu" if backend == "numba" else target_name or "TARGET"
        stdout().print(f"wrote {folder}; verify and time it with: attnbench eval {on} --candidates {folder}")


def _lowered(
    source: Source,
    program: ir.Program,
    task: Task,
    backend: str,
    target: Target | None,
    tiles: Sequence[str],
    as_json: bool,
) -> Lowered:
    known: dict[str, Sequence[int | str]] = dict(program.parameters)
    if backend == "triton":
        known |= {"warps": (), "stages": (), **dict(program.schedule)}
    elif backend == "cuda":
        known |= {"warps": (), "stages": (), "optimize": ()}
    elif backend == "gluon":
        known |= dict.fromkeys(Schedule().choice, ())
    choice = tiles_of(tiles, known)
    try:
        return lower_program(program, task, backend, target, choice)
    except LowerError as error:
        message = without_place(str(error), error.pos, error.statement, error.fix)
        if as_json:
            place = {"line": error.pos.line, "column": error.pos.column}
            print(json.dumps({"error": message, "fix": error.fix, **place}, indent=1))
        else:
            stdout().print(shown(source, error.pos, f"error for {backend}", message, error.fix))
        sys.exit(EXIT_FOUND)


def _write(lowered: Lowered, out: Path) -> None:
    try:
        held = {p.name for p in out.iterdir()} if out.is_dir() else set()
        strange = sorted(held - set(lowered.files))
        if strange:
            fail(f"{out} holds {strange[0]}; give --out a new folder, or one written by this", EXIT_USAGE)
        lowered.write(out)
    except OSError as error:
        fail(f"cannot write {out}: {error.strerror or error}", EXIT_STORE)


def workload_to_compile(task: Task, dtype: str) -> Workload:
    """A small shape with the head dimensions that the task is measured on."""
    small = task.workloads["smoke"][0]
    measured = next((w[0] for name, w in task.workloads.items() if name in ("models", "paper") and w), small)
    try:
        return small.with_(dim=measured.dim, dim_v=measured.dim_v, dtype=dtype)
    except TaskError as error:
        fail(str(error), EXIT_USAGE)
