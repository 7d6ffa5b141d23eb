"""Owns the command line: options in, typed errors out as sentences with an exit code. No logic of its own."""

from __future__ import annotations

import datetime
import json
import signal
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.bench import Bench, MachineError
from harness.build.manifest import CandidateError, Manifest, scan_candidates
from harness.console import Watcher, fail
from harness.doctor import findings
from harness.environment import harness_version
from harness.experiment import Experiment, ExperimentError, candidate_folders, make_plan, read_experiment
from harness.pipeline import evaluate
from harness.records import RunSummary
from harness.store import Store, StoreError
from harness.targets import TargetError, find_target
from harness.worker.protocol import WorkerError
from tasks import Task, TaskError, discover, find

EXIT_USAGE, EXIT_MACHINE, EXIT_STORE, EXIT_INTERRUPTED = 2, 3, 4, 130

app = typer.Typer(
    help="Benchmark and evaluation harness for attention kernels that language models write.\n\n"
    "Start with `attnbench doctor` to see what this machine can measure, `attnbench tasks` for what is "
    "measured, and `attnbench eval --candidates DIR` to verify, time and compare kernels of your own.\n\n"
    "Exit codes: 0 done, 2 wrong input, 3 this machine cannot, 4 the run's directory cannot be written, "
    "130 interrupted (everything recorded is kept; go on with --resume).",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
tasks_app = typer.Typer(
    help="The task suite: attention variants and their workloads.", invoke_without_command=True
)
app.add_typer(tasks_app, name="tasks")

TaskFolders = Annotated[
    list[Path] | None,
    typer.Option(
        "--tasks", metavar="DIR", help="A folder with task files of your own, beside the suite. Repeatable."
    ),
]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"attnbench {harness_version()}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False) -> None:
    """Say what this machine can measure, and what to install for the rest."""
    rows = findings()
    if as_json:
        typer.echo(json.dumps([row.__dict__ for row in rows], indent=1))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("", "what", "state", "what to do"):
        table.add_column(column, overflow="fold")
    for row in rows:
        mark = "[green]yes[/]" if row.usable else "[yellow]no[/]"
        table.add_row(mark, row.what, escape(row.state), escape(row.advice))
    Console(highlight=False).print(table)


@tasks_app.callback()
def tasks_list(context: typer.Context, folders: TaskFolders = None) -> None:
    """List the tasks, or show one: `attnbench tasks show NAME`."""
    if context.invoked_subcommand:
        return
    table = Table(box=None, pad_edge=False)
    for column in ("task", "title", "workload sets"):
        table.add_column(column)
    for task in _guarded(lambda: discover(*(folders or []))).values():
        sets = ", ".join(f"{name} ({len(w)})" for name, w in task.workloads.items())
        table.add_row(f"[bold]{task.name}[/]", task.title, sets)
    Console(highlight=False).print(table)


@tasks_app.command("show")
def tasks_show(name: str, folders: TaskFolders = None) -> None:
    """The mathematics, signature and workloads of one task."""
    task = _guarded(lambda: find(name, *(folders or [])))
    console = Console(highlight=False)
    console.print(
        f"[bold]{task.name}[/]  {escape(task.title)}\n\n{escape(task.description)}\n\n  {escape(task.math)}\n"
    )
    console.print(escape(task.signature) + "\n", soft_wrap=True)
    for tensor in task.tensors:
        console.print(f"  {tensor.name:<4} ({', '.join(tensor.axes)})  {tensor.role}  {escape(tensor.doc)}")
    for parameter in task.parameters:
        console.print(f"  {parameter.name}: {parameter.type}  {escape(parameter.doc)}")
    for name_, workloads in task.workloads.items():
        table = Table(title=f"\n{name_}", box=None, pad_edge=False, title_justify="left")
        for column in ("workload", "GFLOP", "MB", "label"):
            table.add_column(column, justify="left" if column in ("workload", "label") else "right")
        for w in workloads:
            table.add_row(w.key, f"{task.flops(w) / 1e9:.2f}", f"{task.bytes(w) / 1e6:.1f}", escape(w.label))
        console.print(table)


@app.command("eval")
def eval_(
    experiment: Annotated[
        str, typer.Argument(help="A shipped experiment (cpu, h100, a100, ...) or a .toml file of your own.")
    ] = "cpu",
    candidates: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="A candidate's folder, or a folder of such folders. Repeatable."),
    ] = None,
    task: Annotated[list[str] | None, typer.Option(help="Only this task. Repeatable.")] = None,
    task_folders: TaskFolders = None,
    workloads: Annotated[
        list[str] | None, typer.Option(help="Workload set: smoke, paper, models, hidden. Repeatable.")
    ] = None,
    dtype: Annotated[
        list[str] | None, typer.Option(help="Only this dtype: fp16, bf16, fp32. Repeatable.")
    ] = None,
    baseline: Annotated[list[str] | None, typer.Option(help="Only this human baseline. Repeatable.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The run's directory [runs/<target>-<time>].")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    seed: Annotated[int | None, typer.Option(help="Seed of the inputs [fresh].")] = None,
    time_cap: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Sampling time of a cell.")
    ] = None,
) -> None:
    """Verify, time and compare candidates and human baselines, and write the report."""
    if resume and out is None:
        fail("--resume needs --out DIR, the directory of the run to go on with", EXIT_USAGE)
    overrides: dict[str, Any] = {
        "tasks": task,
        "workloads": workloads,
        "dtypes": dtype,
        "baselines": baseline,
    }
    overrides = {key: value for key, value in overrides.items() if value}
    chosen, plan = _guarded(lambda: _planned(experiment, overrides, candidates, task_folders, seed, time_cap))
    target = find_target(chosen.target)
    run = out or Path("runs") / f"{target.name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    signal.signal(signal.SIGTERM, _terminated)
    console = Console(highlight=False)
    for reason in plan.unusable:
        console.print(f"[yellow]left out[/] {escape(reason)}")

    def go() -> RunSummary:
        with (
            Bench(chosen, target, task_folders=task_folders or []) as bench,
            Store(run, resume=resume) as store,
        ):
            store.add_experiment(_as_toml(chosen))
            if store.dropped:
                console.print("[yellow]the last line of the run was torn and is done again[/]")
            with Watcher(console) as watcher:
                return evaluate(plan, bench, store, watcher)

    try:
        summary = _guarded(go)
    except KeyboardInterrupt:
        fail(f"interrupted; what was recorded is kept. Go on with: --resume --out {run}", EXIT_INTERRUPTED)
    _print_report(run, console)
    share = summary.gpu_work_s / summary.wall_s if summary.wall_s else 0.0
    console.print(
        f"{summary.results} results in {summary.wall_s:.0f} s; {share:.0%} of it verifying or timing"
    )


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run's directory.")],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to write [the run's directory].")
    ] = None,
) -> None:
    """Write the report of a run: report.html, .md, .csv, .json, table.tex and plots."""
    if not (run / "results.jsonl").exists():
        fail(f"{run} holds no results.jsonl; give the directory of a run", EXIT_USAGE)
    _print_report(run, Console(highlight=False), out)


def _print_report(run: Path, console: Console, out: Path | None = None) -> None:
    from reports import render
    from reports.dataset import load_run
    from reports.tables import terminal_table

    written = _guarded(lambda: render(run, out))
    console.print(terminal_table(_guarded(lambda: load_run(run))))
    console.print("\nReport:")
    for path in written:
        console.print(f"  {path}", soft_wrap=True)


def _planned(
    experiment: str,
    overrides: dict[str, Any],
    candidates: list[Path] | None,
    folders: list[Path] | None,
    seed: int | None,
    time_cap: float | None,
) -> tuple[Experiment, Any]:
    chosen = read_experiment(experiment, overrides)
    changes: dict[str, Any] = {}
    if candidates:
        changes["candidates"] = tuple(str(c) for c in candidates)
    if seed is not None:
        changes["seed"] = seed
    if time_cap is not None:
        changes["sampling"] = chosen.sampling.model_copy(update={"time_cap_s": time_cap})
    chosen = chosen.model_copy(update=changes)
    known: dict[str, Task] = discover(*(folders or []))
    manifests: list[Manifest] = []
    for folder in candidate_folders(chosen, experiment):
        for found in scan_candidates(folder):
            if isinstance(found, CandidateError):
                raise found
            manifests.append(found)
    return chosen, make_plan(chosen, known, manifests)


def _as_toml(experiment: Experiment) -> str:
    """The experiment as run; JSON's scalars and arrays are TOML's."""
    lines, sections = [], []
    for key, value in experiment.model_dump(mode="json", exclude_none=True).items():
        if isinstance(value, dict):
            sections += ["", f"[{key}]", *(f"{k} = {json.dumps(v)}" for k, v in value.items())]
        else:
            lines.append(f"{key} = {json.dumps(value)}")
    return "\n".join([*lines, *sections]) + "\n"


def _terminated(_: int, __: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _guarded(action: Any) -> Any:
    """Run; every typed error becomes its sentence and its exit code."""
    try:
        return action()
    except (TaskError, TargetError, ExperimentError, CandidateError) as error:
        fail(str(error), EXIT_USAGE)
    except MachineError as error:
        fail(str(error), EXIT_MACHINE)
    except StoreError as error:
        fail(str(error), EXIT_STORE)
    except WorkerError as error:
        fail(f"a worker could not be started or was lost: {error}. See `attnbench doctor`.", EXIT_MACHINE)


def main() -> None:
    """The `attnbench` command."""
    app()


if __name__ == "__main__":
    main()
