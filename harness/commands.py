"""Owns what the commands do: typed errors become sentences with an exit code; the work is elsewhere."""

from __future__ import annotations

import datetime
import json
import signal
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

from rich.console import Console
from rich.markup import escape

from baselines import find_baseline
from harness.bench import Bench, MachineError, can_stand_in
from harness.build.manifest import CandidateError, Manifest, scan_candidates
from harness.console import Watcher
from harness.exits import EXIT_INTERRUPTED, EXIT_MACHINE, EXIT_STORE, EXIT_USAGE, fail
from harness.experiment import (
    Experiment,
    ExperimentError,
    Plan,
    experiment_of,
    located,
    make_plan,
    read_experiment,
)
from harness.generation import Made
from harness.generation_commands import (
    MODEL_ERRORS,
    Unfinished,
    make_kernels,
    prepare,
    progress_object,
    stop_unfinished,
)
from harness.merge import Merged, merge
from harness.pipeline import evaluate as run_plan
from harness.progress import Bar, output
from harness.runs import RunSummary
from harness.store import Store, StoreError
from harness.targets import TargetError, find_target
from harness.worker.protocol import WorkerError
from harness.worker.sandbox import NoSandbox, Sandbox, find_sandbox
from tasks import Task, TaskError, discover

T = TypeVar("T")


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
    as_json: bool = False,
) -> None:
    """Run an experiment into its directory and print the report; as JSON: one object for a script.

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
    prepared = guarded(lambda: prepare(experiment, known, source, fresh=not resume))
    kernels = plan.candidates or plan.ended or experiment.models or experiment.programs
    sandbox = guarded(lambda: confinement(no_sandbox)) if kernels else None
    run = out or Path("runs") / f"{target.name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    signal.signal(signal.SIGTERM, _terminated)
    console = output(as_json)
    if kernels and sandbox is None:
        console.print("[yellow]no sandbox[/] kernels run with your rights; every record says so")
    for reason in plan.unusable:
        console.print(f"[yellow]left out[/] {escape(reason)}")

    def go() -> RunSummary:
        with (
            Store(run, resume=resume) as store,
            Bench(experiment, target, task_folders=task_folders, sandbox=sandbox, stand_in=stand_in) as bench,
        ):
            store.add_experiment(as_toml(experiment), meaning_of)
            if store.dropped:
                console.print("[yellow]the last line of the run was torn and is done again[/]")
            for line in absent(plan.baselines):
                console.print(f"[yellow]note[/] {escape(line)}", soft_wrap=True)
            whole = make_kernels(experiment, plan, known, prepared, store, bench, console, partial)
            with Watcher(console) as watcher:
                return run_plan(whole, bench, store, watcher)

    try:
        summary = guarded(go)
        _print_report(run, console, None, as_json)
    except Unfinished as unfinished:
        stop_unfinished(unfinished, run, "eval", console, as_json)
    except KeyboardInterrupt:
        fail(f"interrupted; what was recorded is kept. Go on with: --resume --out {run}", EXIT_INTERRUPTED)
    share = summary.gpu_work_s / summary.wall_s if summary.wall_s else 0.0
    console.print(
        f"{summary.results} results in {summary.wall_s:.0f} s; {share:.0%} of it verifying or timing"
    )


def absent(baselines: Sequence[str]) -> list[str]:
    """Of baselines whose library is not to be had here: said before hours are spent without them."""
    found = [(name, find_baseline(name).library()) for name in baselines]
    return [
        f"{name} takes no part: {library.missing} ({library.install}). "
        "Ratios will be to the best of the other baselines"
        for name, library in found
        if not library.usable
    ]


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


def generate(
    source: str,
    overrides: dict[str, Any],
    task_folders: Sequence[Path],
    out: Path | None,
    resume: bool,
    as_json: bool = False,
) -> None:
    """The part of `evaluate` that needs no device: ask models as far as they get without one."""
    experiment, plan, known = guarded(lambda: planned(source, overrides, task_folders, None))
    prepared = guarded(lambda: prepare(experiment, known, source, fresh=not resume))
    run = out or Path("runs") / f"{experiment.target}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    signal.signal(signal.SIGTERM, _terminated)
    console = output(as_json)

    def go() -> None:
        with Store(run, resume=resume) as store:
            store.add_experiment(as_toml(experiment), meaning_of)
            make_kernels(experiment, plan, known, prepared, store, None, console)

    try:
        guarded(go)
    except Unfinished as unfinished:
        stop_unfinished(unfinished, run, "generate", console, as_json)
    except KeyboardInterrupt:
        fail(f"interrupted; what was recorded is kept. Go on with: --resume --out {run}", EXIT_INTERRUPTED)
    if as_json:
        print(json.dumps(progress_object(run, Made(), len(prepared.wanted.trials)), indent=1))
    console.print(
        f"every trial of a model has ended; next: attnbench eval {source} --out {run} --resume",
        soft_wrap=True,
    )


def merge_runs(source: str, parts: Sequence[Path], out: Path, as_json: bool = False) -> None:
    """One run of several that did a part of an experiment each."""

    def go() -> Merged:
        experiment = read_experiment(source)
        with Bar(output(as_json=True), "merging") as bar:
            return merge(parts, experiment, as_toml(experiment), out, bar.moved)

    merged = guarded(go)
    if as_json:
        print(json.dumps({"run": str(out), **asdict(merged)}, indent=1))
        return
    print(
        f"{merged.results} results, {merged.stories} trials of models and {merged.answers} answers in {out}\n"
        f"  attnbench eval {source} --out {out} --resume     measures what is missing\n"
        f"  attnbench report {out}"
    )


def report(run: Path, out: Path | None, as_json: bool = False) -> None:
    """Write and print the report of a run; ends the command where nothing is recorded in it."""
    from reports import RunError, load_run

    try:
        dataset = load_run(run)
    except RunError as error:
        fail(str(error), EXIT_USAGE)
    except OSError as error:
        fail(f"cannot read {error.filename or run}: {error.strerror or error}", EXIT_STORE)
    if not (dataset.rows or dataset.endings):
        unread = f"; {len(dataset.skipped)} lines of it cannot be read" if dataset.skipped else ""
        fail(
            f"{run} holds no result yet{unread}. See attnbench verify {run}, or go on with the run: "
            f"attnbench eval EXPERIMENT --out {run} --resume",
            EXIT_USAGE,
        )
    _print_report(run, output(as_json), out, as_json)


def _print_report(run: Path, console: Console, out: Path | None, as_json: bool) -> None:
    from reports import RunError, load_run, render, terminal_table
    from reports.digest import as_object, digest
    from reports.surroundings import warnings

    try:
        written = render(run, out)
        dataset = load_run(run)
    except RunError as error:
        fail(str(error), EXIT_USAGE)
    except OSError as error:
        fail(f"cannot write the report: {error}. Try: attnbench report {run} --out DIR", EXIT_STORE)
    if as_json:
        pages = [path for path in written if path.suffix != ".svg"]
        print(json.dumps(as_object(digest(dataset), pages), indent=1))
        return
    console.print(terminal_table(dataset))
    for line in warnings(dataset):
        console.print(f"[yellow]note[/] {escape(line)}", soft_wrap=True)
    console.print("\nReport:")
    for path in written:
        if path.suffix != ".svg":
            console.print(f"  {path}", soft_wrap=True)


def planned(
    source: str, overrides: dict[str, Any], task_folders: Sequence[Path], time_cap: float | None
) -> tuple[Experiment, Plan, dict[str, Task]]:
    """The experiment with its options, what it means, and every task; raises typed errors."""
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


def meaning_of(text: str) -> object:
    """The experiment that a file of a run asks for, defaults filled in; the text where it is none."""
    try:
        return experiment_of(tomllib.loads(text), "experiment")
    except (tomllib.TOMLDecodeError, ExperimentError):
        return text


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
