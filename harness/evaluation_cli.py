"""Owns the command line of `attnbench eval` and `report`: options and help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from harness import completion
from harness.exits import EXIT_INTERRUPTED, EXIT_MACHINE, EXIT_PENDING, EXIT_STORE, EXIT_USAGE, fail
from harness.manual import foot
from harness.options import (
    FLAG,
    Experiment,
    JsonResult,
    Methods,
    Models,
    Out,
    Resume,
    Run,
    Samples,
    TaskFolders,
    TaskNames,
)
from harness.targets import TARGETS

eval_foot = foot(
    "attnbench eval cpu --candidates my_kernels",
    "attnbench eval h100 --task mha_causal --workloads paper --baseline cudnn",
    "attnbench eval h100 --model anthropic:MODEL --samples 3",
    "attnbench eval h100 --out runs/NAME --resume",
    "attnbench eval t4 --compile-only           # no GPU needed",
    then="open report/report.html in the run's directory; docs/run-and-report.md explains its figures.",
    codes=(EXIT_USAGE, EXIT_MACHINE, EXIT_STORE, EXIT_PENDING, EXIT_INTERRUPTED),
    found="with --compile-only, a kernel does not compile",
)
report_foot = foot(
    "attnbench report runs/NAME",
    "attnbench report runs/NAME --out my_report",
    "attnbench report runs/NAME --json",
    then="open report.html; docs/run-and-report.md explains its figures.",
    codes=(EXIT_USAGE, EXIT_STORE),
)


def eval_(
    experiment: Experiment = "cpu",
    candidates: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="A candidate's folder, or a folder of such folders. Repeatable."),
    ] = None,
    task: TaskNames = None,
    task_folders: TaskFolders = None,
    workloads: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SET",
            help="Workload set: smoke, paper, models, hidden. Repeatable.",
            autocompletion=completion.among(*completion.SETS),
        ),
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DTYPE",
            help="Only this dtype: fp16, bf16, fp32, fp64. Repeatable.",
            autocompletion=completion.among(*completion.DTYPES),
        ),
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Only this human baseline; `attnbench doctor` lists them. Repeatable.",
            autocompletion=completion.among(*completion.BASELINES),
        ),
    ] = None,
    model: Models = None,
    method: Methods = None,
    samples: Samples = None,
    out: Out = None,
    resume: Resume = False,
    partial: Annotated[
        bool,
        typer.Option(
            "--partial",
            metavar=FLAG,
            help="Measure what models have finished, though other trials wait for answers.",
        ),
    ] = False,
    compile_only: Annotated[
        bool,
        typer.Option(
            "--compile-only",
            metavar=FLAG,
            help="Compile the CUDA kernels for the target and report what they take of it; run nothing. "
            "Needs no GPU.",
        ),
    ] = False,
    prove_on: Annotated[
        str | None,
        typer.Option(
            "--prove-on",
            metavar="TARGET",
            help="The GPU at hand. It proves the numerics of the target's PTX, and times nothing.",
            autocompletion=completion.targets,
        ),
    ] = None,
    no_sandbox: Annotated[
        bool,
        typer.Option(
            "--no-sandbox",
            metavar=FLAG,
            help="Run kernels with your own rights, where no sandbox is to be had; every record says so.",
        ),
    ] = False,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Seed of the inputs. Without it: a fresh one.")
    ] = None,
    time_cap: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Most sampling time of a cell.")
    ] = None,
    as_json: JsonResult = False,
) -> None:
    """Make, verify, time and compare kernels beside human baselines, and write the report.

    An option replaces what the experiment says. Each result is on disk before the next one begins, so a run
    that stops anywhere goes on with --resume. A GPU's experiment needs that GPU, unless --compile-only or
    --prove-on is given; cpu needs nothing.
    """
    if compile_only and (prove_on or resume):
        fail("--compile-only runs nothing: leave out --prove-on and --resume", EXIT_USAGE)
    if resume and out is None:
        fail("--resume needs --out DIR, the directory of the run to go on with", EXIT_USAGE)
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
        from harness import commands, compile_command

        given = {key: value for key, value in overrides.items() if value or value == 0}
        if compile_only:
            compile_command.compile_only(experiment, given, task_folders or [], out, no_sandbox, as_json)
            return
        commands.evaluate(
            experiment,
            given,
            task_folders or [],
            time_cap,
            out,
            resume,
            partial,
            prove_on,
            no_sandbox,
            as_json,
        )
    except KeyboardInterrupt:  # before the run began, or after it ended
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


def report(
    run: Run,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to write. Without it: report/ in the run.")
    ] = None,
    as_json: JsonResult = False,
) -> None:
    """Write the report of a run: report.html, .md, .csv, .json, table.tex and plots.

    Made from the records alone, so it may be written again at any time, of an unfinished run too. Measures
    nothing.
    """
    if not (run / "results.jsonl").exists():
        fail(
            f"{run} holds no results.jsonl; give the directory of a run, as `attnbench eval` printed it",
            EXIT_USAGE,
        )
    from harness import commands

    commands.report(run, out, as_json)
