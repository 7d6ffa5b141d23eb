"""Owns what the commands do: typed errors become sentences with an exit code; the work is elsewhere."""

from __future__ import annotations

import datetime
import json
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.bench import Bench, MachineError, can_stand_in
from harness.build.manifest import CandidateError, Manifest, scan_candidates
from harness.console import Watcher
from harness.doctor import findings
from harness.exits import EXIT_FOUND, EXIT_INTERRUPTED, EXIT_MACHINE, EXIT_STORE, EXIT_USAGE, fail
from harness.experiment import (
    Experiment,
    ExperimentError,
    Plan,
    experiment_of,
    located,
    make_plan,
    read_experiment,
)
from harness.generation_commands import MODEL_ERRORS, Unfinished, make_kernels, prepare, stop_unfinished
from harness.merge import Merged, merge
from harness.pipeline import evaluate as run_plan
from harness.runs import RunSummary
from harness.store import Store, StoreError
from harness.targets import TargetError, find_target
from harness.worker.protocol import WorkerError
from harness.worker.sandbox import NoSandbox, Sandbox, find_sandbox
from tasks import Task, TaskError, discover, find

T = TypeVar("T")


def doctor(as_json: bool) -> None:
    """Print the diagnosis of this machine."""
    rows = findings()
    if as_json:
        print(json.dumps([row.__dict__ for row in rows], indent=1))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("", "what", "state", "what to do"):
        table.add_column(column, overflow="fold")
    for row in rows:
        mark = "[green]yes[/]" if row.usable else "[yellow]no[/]"
        table.add_row(mark, row.what, escape(row.state), escape(row.advice))
    Console(highlight=False).print(table)


def list_tasks(folders: Sequence[Path]) -> None:
    """Print the tasks with their sets."""
    table = Table(box=None, pad_edge=False)
    for column in ("task", "title", "workload sets"):
        table.add_column(column)
    for task in guarded(lambda: discover(*folders)).values():
        sets = ", ".join(f"{name} ({len(w)})" for name, w in task.workloads.items())
        table.add_row(f"[bold]{task.name}[/]", task.title, sets)
    Console(highlight=False).print(table)


def show_task(name: str, folders: Sequence[Path]) -> None:
    """Print one task."""
    task = guarded(lambda: find(name, *folders))
    console = Console(highlight=False)
    console.print(f"[bold]{task.name}[/]  {escape(task.title)}\n\n{escape(task.description)}\n")
    console.print(f"  {escape(task.math)}\n\n{escape(task.signature)}\n", soft_wrap=True)
    for tensor in task.tensors:
        console.print(f"  {tensor.name:<4} ({', '.join(tensor.axes)})  {tensor.role}  {escape(tensor.doc)}")
    for parameter in task.parameters:
        console.print(f"  {parameter.name}: {parameter.type}  {escape(parameter.doc)}")
    for set_name, workloads in task.workloads.items():
        table = Table(title=f"\n{set_name}", box=None, pad_edge=False, title_justify="left")
        for column in ("workload", "GFLOP", "MB", "label"):
            table.add_column(column, justify="left" if column in ("workload", "label") else "right")
        for w in workloads:
            table.add_row(w.key, f"{task.flops(w) / 1e9:.2f}", f"{task.bytes(w) / 1e6:.1f}", escape(w.label))
        console.print(table)


def evaluate(
    source: str,
    overrides: dict[str, Any],
    task_folders: Sequence[Path],
    time_cap: float | None,
    out: Path | None,
    resume: bool,
    partial: bool = False,
    prove_on: str | None = None,
    no_sandbox: bool = False,
) -> None:
    """Run an experiment into its directory and print the report.

    `prove_on`: the GPU at hand, which proves the numerics of the target's CUDA kernels in its place.
    """
    experiment, plan, known = guarded(lambda: planned(source, overrides, task_folders, time_cap))
    target = find_target(experiment.target)
    stand_in = guarded(lambda: find_target(prove_on)) if prove_on else None
    if stand_in is not None:
        if not can_stand_in(stand_in, target):
            fail(
                f"--prove-on {stand_in.name}: it runs no PTX of {target.name}; take a GPU that is as new",
                EXIT_USAGE,
            )
        experiment, plan = _to_be_proven(experiment, plan)
    prepared = guarded(lambda: prepare(experiment, known, source))
    kernels = plan.candidates or plan.ended or experiment.models or experiment.programs
    sandbox = guarded(lambda: confinement(no_sandbox)) if kernels else None
    run = out or Path("runs") / f"{target.name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    signal.signal(signal.SIGTERM, _terminated)
    console = Console(highlight=False)
    if kernels and sandbox is None:
        console.print("[yellow]no sandbox[/] kernels run with your rights; every record says so")
    for reason in plan.unusable:
        console.print(f"[yellow]left out[/] {escape(reason)}")

    def go() -> RunSummary:
        with (
            Store(run, resume=resume) as store,
            Bench(experiment, target, task_folders=task_folders, sandbox=sandbox, stand_in=stand_in) as bench,
        ):
            store.add_experiment(as_toml(experiment))
            if store.dropped:
                console.print("[yellow]the last line of the run was torn and is done again[/]")
            whole = make_kernels(experiment, plan, known, prepared, store, bench, console, partial)
            with Watcher(console) as watcher:
                return run_plan(whole, bench, store, watcher)

    try:
        summary = guarded(go)
        _print_report(run, console)
    except Unfinished as unfinished:
        stop_unfinished(unfinished, run, "eval", console)
    except KeyboardInterrupt:
        fail(f"interrupted; what was recorded is kept. Go on with: --resume --out {run}", EXIT_INTERRUPTED)
    share = summary.gpu_work_s / summary.wall_s if summary.wall_s else 0.0
    console.print(
        f"{summary.results} results in {summary.wall_s:.0f} s; {share:.0%} of it verifying or timing"
    )


def _to_be_proven(experiment: Experiment, plan: Plan) -> tuple[Experiment, Plan]:
    """What another GPU can prove: CUDA kernels, whose PTX it runs. Libraries and Triton would run its own."""
    left_out = tuple(
        f"{m.name}: {m.backend} would be compiled for the GPU at hand"
        for m in plan.candidates
        if m.backend != "cuda"
    )
    candidates = tuple(m for m in plan.candidates if m.backend == "cuda")
    plan = replace(plan, baselines=(), candidates=candidates, unusable=(*plan.unusable, *left_out))
    untimed = experiment.refine.model_copy(
        update={"rounds": 0, "search": False}
    )  # a time would be another GPU's
    update = {"backends": ("cuda",), "baselines": (), "refine": untimed}
    return experiment.model_copy(update=update), plan


def confinement(no_sandbox: bool) -> Sandbox | None:
    """The sandbox in which code of others runs; None only where the user said so. Raises MachineError."""
    if no_sandbox:
        return None
    try:
        return find_sandbox()
    except NoSandbox as error:
        raise MachineError(
            f"kernels are code of others, and here is no sandbox for them: {error}. "
            "To run them with your own rights, where you trust them: --no-sandbox"
        ) from error


def compile_only(
    source: str,
    overrides: dict[str, Any],
    task_folders: Sequence[Path],
    out: Path | None,
    no_sandbox: bool = False,
) -> None:
    """Compile an experiment's CUDA kernels for its target, on any machine; report what the compiler says."""
    from harness import static_report
    from harness.build.nvrtc import CompilerMissing, include_folders
    from harness.programs import program_candidates

    experiment, plan, known = guarded(lambda: planned(source, overrides, task_folders, None))
    target = find_target(experiment.target)
    if not target.is_gpu:
        fail(f"--compile-only is for GPUs; {target.name} is none", EXIT_USAGE)
    try:
        include_folders()
    except CompilerMissing as error:
        fail(str(error), EXIT_MACHINE)
    sandbox = guarded(lambda: confinement(no_sandbox))
    console = Console(highlight=False)
    run = out or Path("runs") / f"{target.name}-static-{datetime.datetime.now():%Y%m%d-%H%M%S}"

    def go() -> static_report.Static:
        with Store(run, resume=False) as store:
            store.add_experiment(as_toml(experiment))
            programs, refused = program_candidates(experiment, known, store, source)
            for line in (*plan.unusable, *refused):
                console.print(f"[yellow]left out[/] {escape(line)}", soft_wrap=True)
            candidates = [*plan.candidates, *programs]
            for manifest in [m for m in candidates if m.backend != "cuda"]:
                why = f"{manifest.name}: {manifest.backend} is compiled where it runs"
                console.print(f"[yellow]left out[/] {escape(why)}", soft_wrap=True)
            return static_report.compile_all(target, candidates, plan.cells, sandbox)

    static = guarded(go)
    written = static_report.write(static, run)
    static_report.show(static, console)
    for path in written:
        console.print(f"  {path}", soft_wrap=True)
    if static.problems:
        raise SystemExit(EXIT_FOUND)


def generate(
    source: str, overrides: dict[str, Any], task_folders: Sequence[Path], out: Path | None, resume: bool
) -> None:
    """The part of `evaluate` that needs no device: ask models as far as they get without one."""
    experiment, plan, known = guarded(lambda: planned(source, overrides, task_folders, None))
    prepared = guarded(lambda: prepare(experiment, known, source))
    run = out or Path("runs") / f"{experiment.target}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    signal.signal(signal.SIGTERM, _terminated)
    console = Console(highlight=False)

    def go() -> None:
        with Store(run, resume=resume) as store:
            store.add_experiment(as_toml(experiment))
            make_kernels(experiment, plan, known, prepared, store, None, console)

    try:
        guarded(go)
    except Unfinished as unfinished:
        stop_unfinished(unfinished, run, "generate", console)
    except KeyboardInterrupt:
        fail(f"interrupted; what was recorded is kept. Go on with: --resume --out {run}", EXIT_INTERRUPTED)
    console.print(f"every trial of a model has ended; next: attnbench eval {source} --out {run} --resume")


def merge_runs(source: str, parts: Sequence[Path], out: Path) -> None:
    """One run of several that did a part of an experiment each."""

    def go() -> Merged:
        experiment = read_experiment(source)
        return merge(parts, experiment, as_toml(experiment), out)

    merged = guarded(go)
    print(
        f"{merged.results} results, {merged.stories} trials of models and {merged.answers} answers in {out}\n"
        f"  attnbench eval {source} --out {out} --resume     measures what is missing\n"
        f"  attnbench report {out}"
    )


def report(run: Path, out: Path | None) -> None:
    """Write and print the report of a run."""
    _print_report(run, Console(highlight=False), out)


def _print_report(run: Path, console: Console, out: Path | None = None) -> None:
    from reports import RunError, load_run, render, terminal_table

    try:
        written = render(run, out)
        console.print(terminal_table(load_run(run)))
    except RunError as error:
        fail(str(error), EXIT_USAGE)
    except OSError as error:
        fail(f"cannot write the report: {error}. Try: attnbench report {run} --out DIR", EXIT_STORE)
    console.print("\nReport:")
    for path in written:
        if path.suffix != ".svg":
            console.print(f"  {path}", soft_wrap=True)


def planned(
    source: str, overrides: dict[str, Any], task_folders: Sequence[Path], time_cap: float | None
) -> tuple[Experiment, Plan, dict[str, Task]]:
    experiment = read_experiment(source, overrides)
    if time_cap is not None:
        data = experiment.model_dump()
        data["sampling"]["time_cap_s"] = time_cap
        experiment = experiment_of(data, "--time-cap")
    known = discover(*task_folders)
    manifests: list[Manifest] = []
    for name in experiment.candidates:
        for found in scan_candidates(located(name, source)):
            if isinstance(found, CandidateError):
                raise found
            manifests.append(found)
    return experiment, make_plan(experiment, known, manifests), known


def as_toml(experiment: Experiment) -> str:
    """The experiment as run; JSON's scalars and arrays are TOML's. What is empty is left out."""
    return "\n".join(_toml_lines(experiment.model_dump(mode="json", exclude_none=True), "")).strip() + "\n"


def _toml_lines(section: dict[str, Any], name: str) -> list[str]:
    flat = [f"{k} = {json.dumps(v)}" for k, v in section.items() if not isinstance(v, dict)]
    head = ["", f"[{name}]"] if name and flat else []
    nested = [
        line
        for k, v in section.items()
        if isinstance(v, dict)
        for line in _toml_lines(v, f"{name}.{k}" if name else k)
    ]
    return [*head, *flat, *nested]


def _terminated(_: int, __: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def guarded(action: Callable[[], T]) -> T:
    """Run; every typed error becomes its sentence and its exit code."""
    try:
        return action()
    except (TaskError, TargetError, ExperimentError, CandidateError, *MODEL_ERRORS) as error:
        fail(str(error), EXIT_USAGE)
    except MachineError as error:
        fail(str(error), EXIT_MACHINE)
    except StoreError as error:
        fail(str(error), EXIT_STORE)
    except WorkerError as error:
        fail(f"a worker could not be started or was lost: {error}. See `attnbench doctor`.", EXIT_MACHINE)
