"""Owns the command line: options and help. What a command does is in `commands`, imported when one runs.

Keeping torch out of here lets `--help` and a wrong machine answer in a fraction of a second.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.exits import EXIT_INTERRUPTED, EXIT_MACHINE, EXIT_USAGE, fail
from harness.gate_cli import app as gate_app
from harness.generation_cli import answers_app, show
from harness.targets import TARGETS
from harness.tl_cli import app as tl_app

app = typer.Typer(
    help="Benchmark and evaluation harness for attention kernels that language models write.\n\n"
    "Start with `attnbench doctor` to see what this machine can measure, `attnbench tasks` for what is "
    "measured, and `attnbench eval --candidates DIR` to verify, time and compare kernels of your own.\n\n"
    "Exit codes: 0 done, 1 an LLM-TL program is wrong (`attnbench tl`), a run was changed after it was "
    "recorded (`attnbench verify`) or a kernel is slower or missing (`attnbench gate`), 2 wrong input, "
    "3 this machine cannot, 4 the run's directory cannot be written, 5 the gate cannot compare, 6 the gate "
    "has no reference yet, 75 questions wait for answers from outside, "
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
app.add_typer(tl_app, name="tl")
app.add_typer(answers_app, name="answers")
app.add_typer(gate_app, name="gate")
app.command()(show)

Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        metavar="PROVIDER:NAME",
        help="A model that writes kernels: openai:NAME, anthropic:NAME, deferred:NAME, or "
        "'A -> B' where B translates. Repeatable.",
    ),
]
Methods = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        help="Only this method: vanilla, vanilla-cot, tl, tl-one-stage, tl-unguided, tl-compiled. "
        "Repeatable.",
    ),
]
Samples = Annotated[int | None, typer.Option(min=1, help="Independent attempts of each method and model.")]
Out = Annotated[Path | None, typer.Option(metavar="DIR", help="The run's directory [runs/<target>-<time>].")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")]

TaskFolders = Annotated[
    list[Path] | None,
    typer.Option(
        "--tasks", metavar="DIR", help="A folder with task files of your own, beside the suite. Repeatable."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="For scripts.")]


def _version(asked: bool) -> None:
    if asked:
        try:
            typer.echo(f"attnbench {importlib.metadata.version('attnbench')}")
        except importlib.metadata.PackageNotFoundError:
            typer.echo("attnbench, from a checkout that is not installed")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this machine can measure, and what to install for the rest."""
    from harness import commands

    commands.doctor(as_json)


@tasks_app.callback()
def tasks_list(context: typer.Context, folders: TaskFolders = None) -> None:
    """List the tasks, or show one: `attnbench tasks show NAME`."""
    from harness import commands

    if context.invoked_subcommand is None:
        commands.list_tasks(folders or [])


@tasks_app.command("show")
def tasks_show(name: str, folders: TaskFolders = None) -> None:
    """The mathematics, signature and workloads of one task."""
    from harness import commands

    commands.show_task(name, folders or [])


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
    model: Models = None,
    method: Methods = None,
    samples: Samples = None,
    out: Out = None,
    resume: Resume = False,
    partial: Annotated[
        bool,
        typer.Option(
            "--partial", help="Measure what models have finished, though other trials wait for answers."
        ),
    ] = False,
    compile_only: Annotated[
        bool,
        typer.Option(
            "--compile-only",
            help="Compile the CUDA kernels for the target and report what they take of it; needs no GPU.",
        ),
    ] = False,
    prove_on: Annotated[
        str | None,
        typer.Option(
            "--prove-on",
            metavar="TARGET",
            help="The GPU at hand: it proves the target's PTX, and times nothing.",
        ),
    ] = None,
    no_sandbox: Annotated[
        bool,
        typer.Option(
            "--no-sandbox",
            help="Run kernels with your own rights, where no sandbox is to be had; every record says so.",
        ),
    ] = False,
    seed: Annotated[int | None, typer.Option(help="Seed of the inputs [fresh].")] = None,
    time_cap: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Sampling time of a cell.")
    ] = None,
) -> None:
    """Make, verify, time and compare kernels beside human baselines, and write the report."""
    if resume and out is None:
        fail("--resume needs --out DIR, the directory of the run to go on with", EXIT_USAGE)
    if compile_only and (prove_on or resume):
        fail("--compile-only runs nothing: leave out --prove-on and --resume", EXIT_USAGE)
    if not compile_only:
        _require_gpu_for(experiment)
    overrides: dict[str, Any] = {
        "tasks": task,
        "workloads": workloads,
        "dtypes": dtype,
        "baselines": baseline,
        "candidates": [str(folder) for folder in candidates or []],
        "models": model,
        "methods": method,
        "samples": samples,
        "seed": seed,
    }
    try:
        from harness import commands

        given = {key: value for key, value in overrides.items() if value or value == 0}
        if compile_only:
            commands.compile_only(experiment, given, task_folders or [], out, no_sandbox)
            return
        commands.evaluate(
            experiment, given, task_folders or [], time_cap, out, resume, partial, prove_on, no_sandbox
        )
    except KeyboardInterrupt:  # before the run began, or after it ended
        fail("interrupted", EXIT_INTERRUPTED)


@app.command()
def generate(
    experiment: Annotated[
        str, typer.Argument(help="A shipped experiment (cpu, h100, a100, ...) or a .toml file of your own.")
    ] = "cpu",
    task: Annotated[list[str] | None, typer.Option(help="Only this task. Repeatable.")] = None,
    task_folders: TaskFolders = None,
    model: Models = None,
    method: Methods = None,
    samples: Samples = None,
    out: Out = None,
    resume: Resume = False,
) -> None:
    """Ask models as far as that needs no device: where the keys and the network are, say.

    What needs the target's device waits in the run's directory, for `eval --resume` on a machine that has it.
    """
    if resume and out is None:
        fail("--resume needs --out DIR, the directory of the run to go on with", EXIT_USAGE)
    overrides: dict[str, Any] = {"tasks": task, "models": model, "methods": method, "samples": samples}
    try:
        from harness import commands

        given = {key: value for key, value in overrides.items() if value}
        commands.generate(experiment, given, task_folders or [], out, resume)
    except KeyboardInterrupt:
        fail("interrupted", EXIT_INTERRUPTED)


def _require_gpu_for(experiment: str) -> None:
    """Say at once what cannot work: a GPU's experiment on a machine that shows no GPU at all."""
    target = TARGETS.get(experiment)
    shown = any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()
    if target is not None and target.is_gpu and not shown:
        fail(
            f"this machine shows no NVIDIA GPU, and {experiment} needs {target.title}. "
            "What fits here: nox -s eval-cpu (or: attnbench eval cpu), or the compiler's word alone: "
            f"attnbench eval {experiment} --compile-only",
            EXIT_MACHINE,
        )


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run's directory.")],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to write [report/ in the run's directory].")
    ] = None,
) -> None:
    """Write the report of a run: report.html, .md, .csv, .json, table.tex and plots."""
    if not (run / "results.jsonl").exists():
        fail(f"{run} holds no results.jsonl; give the directory of a run", EXIT_USAGE)
    from harness import commands

    commands.report(run, out)


@app.command()
def merge(
    experiment: Annotated[str, typer.Argument(help="The whole experiment, by name or as a .toml file.")],
    parts: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Runs of parts of it.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The new run's directory.")],
) -> None:
    """Make one run of runs that did a part of an experiment each, by --task, --method or --model."""
    from harness import commands

    commands.merge_runs(experiment, parts, out)


@app.command()
def verify(
    run: Annotated[Path, typer.Argument(help="A run's directory.")],
    as_json: Json = False,
) -> None:
    """Recompute the hashes of a run and follow its links: was a record edited, dropped or moved?

    Checks the seal and the place of each result, its identity, its environment, the sources of each kernel,
    each question to a model, and the way from a result to what the model was asked.

    There is no secret key in it: who rewrites a whole run with new hashes is not noticed. Only a second run
    tells.
    """
    from harness import audit_command

    audit_command.verify(run, as_json)


def main() -> None:
    """The `attnbench` command."""
    app()


if __name__ == "__main__":
    main()
