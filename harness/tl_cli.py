"""Owns the command line of `attnbench tl`: options and help. What a command does is imported when it runs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, ParamSpec

import typer

from harness import completion, tl_manual
from harness.exits import EXIT_INTERRUPTED, fail
from harness.options import FLAG, Json, TaskFolders
from harness.tl_options import Dtype, File, TargetName, TaskName, Tiles, size

app = typer.Typer(
    help="LLM-TL: check, run, lower and format programs of the language that models think in.\n\n"
    "FILE may be `-` for standard input. Which task a program is for, --task says, or a line `# task: NAME` "
    "at its head, or the name of its kernel. Without FILE, --task takes the task's reference program.\n\n"
    "docs/tl.md teaches it in ten minutes.",
    epilog=tl_manual.TL,
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
P = ParamSpec("P")


class ProgramLevel(StrEnum):
    """How complete a program is meant to be."""

    SKETCH = "sketch"
    CODE = "code"


def clean(command: Callable[P, None]) -> Callable[P, None]:
    """The command, leaving quietly when it is interrupted or its output is no longer read."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            fail("interrupted", EXIT_INTERRUPTED)

    return run


@app.command(epilog=tl_manual.CHECK)
@clean
def check(
    file: File = None,
    task: TaskName = None,
    task_folders: TaskFolders = None,
    level: Annotated[
        ProgramLevel,
        typer.Option(metavar="LEVEL", help="How complete it is meant to be: sketch or code."),
    ] = ProgramLevel.CODE,
    target: TargetName = None,
    dtype: Dtype = "fp16",
    notes: Annotated[
        bool, typer.Option("--notes", metavar=FLAG, help="Show notes too: what was read into it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say what is wrong with a program, where, and what to do.

    Runs nothing. With --target it also says what does not fit there.
    """
    from harness import tl_commands

    tl_commands.check(file, task, task_folders or [], level.value, target, dtype, notes, as_json)


@app.command(epilog=tl_manual.RUN)
@clean
def run(
    file: File = None,
    task: TaskName = None,
    task_folders: TaskFolders = None,
    workload: Annotated[
        str | None,
        typer.Option(metavar="SET:N", help="A workload of the task, or its key. Without it: smoke:0."),
    ] = None,
    batch: Annotated[int | None, size("Batch entries.")] = None,
    heads: Annotated[int | None, size("Query heads.")] = None,
    kv_heads: Annotated[int | None, size("Key and value heads.")] = None,
    seq_q: Annotated[int | None, size("Queries.")] = None,
    seq_k: Annotated[int | None, size("Keys.")] = None,
    dim: Annotated[int | None, size("Head dimension of queries and keys.")] = None,
    dim_v: Annotated[int | None, size("Head dimension of values.")] = None,
    dtype: Annotated[
        str | None,
        typer.Option(metavar="DTYPE", help="fp16, bf16, fp32 or fp64. Without it: the workload's."),
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option(metavar="NUMBER", help="Factor of the scores. Without it: the workload's."),
    ] = None,
    param: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A parameter of the task, such as window=64. Repeatable."),
    ] = None,
    tile: Tiles = None,
    recipe: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Recipe of the inputs: normal, large_logits, ... (docs/tasks.md has all)."
        ),
    ] = "normal",
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of the inputs.")] = 0,
    target: TargetName = None,
    as_json: Json = False,
) -> None:
    """Interpret a program on a CPU and compare it with the oracle.

    Counts what it moves and computes; with --target it says how long the hardware needs at least.
    """
    from harness import tl_run

    given = (batch, heads, kv_heads, seq_q, seq_k, dim, dim_v, dtype, scale, tuple(param or ()))
    sizes = tl_run.Sizes(*given)
    tl_run.run(file, task, task_folders or [], workload, sizes, tile or [], recipe, seed, target, as_json)


@app.command(epilog=tl_manual.LOWER)
@clean
def lower(
    file: File = None,
    task: TaskName = None,
    task_folders: TaskFolders = None,
    backend: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="triton, cuda (CuTe), gluon (Hopper) or numba.",
            autocompletion=completion.among("triton", "cuda", "gluon", "numba"),
        ),
    ] = "triton",
    target: TargetName = None,
    tile: Tiles = None,
    dtype: Dtype = "fp16",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write a candidate's folder there, and print nothing.")
    ] = None,
    compile_: Annotated[
        bool,
        typer.Option(
            "--compile",
            metavar=FLAG,
            help="Compile for sm_80, sm_89 and sm_90, or for --target, and say what it takes.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Turn a program into a kernel: print its source, or write a candidate for `attnbench eval`."""
    from harness import tl_commands

    given = (backend, target, tile or [], dtype, out, compile_, as_json)
    tl_commands.lower(file, task, task_folders or [], *given)


@app.command("format", epilog=tl_manual.FORMAT)
@clean
def format_(
    file: File = None,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Print the reference program of this task.",
            autocompletion=completion.tasks,
        ),
    ] = None,
    write: Annotated[bool, typer.Option("--write", metavar=FLAG, help="Change the file.")] = False,
    check: Annotated[
        bool, typer.Option("--check", metavar=FLAG, help="Only say whether it is canonical.")
    ] = False,
) -> None:
    """Print the canonical form of a program; comments stay."""
    from harness import tl_text

    tl_text.format_file(file, task, write, check)


@app.command(epilog=tl_manual.SPACE)
@clean
def space(
    target: Annotated[
        str,
        typer.Option(
            "--target",
            metavar="TARGET",
            help="What it is to fit on: h100, a100, l40s, ...",
            autocompletion=completion.targets,
        ),
    ],
    file: File = None,
    task: TaskName = None,
    task_folders: TaskFolders = None,
    dtype: Dtype = "fp16",
    as_json: Json = False,
) -> None:
    """Count the choices of tiles, warps and stages that fit on a target, and say why others do not."""
    from harness import tl_space

    tl_space.show(file, task, task_folders or [], target, dtype, as_json)


@app.command(epilog=tl_manual.MUTANTS)
@clean
def mutants(
    quick: Annotated[bool, typer.Option("--quick", metavar=FLAG, help="Two of each kind only.")] = False,
    as_json: Json = False,
) -> None:
    """Plant defects into correct programs and count what the checker finds. Takes minutes."""
    from harness import tl_mutants

    tl_mutants.mutants(quick, as_json)


@app.command(epilog=tl_manual.EXPLAIN)
@clean
def explain(
    code: Annotated[
        str, typer.Argument(metavar="CODE", help="Such as TL401.", autocompletion=completion.codes)
    ],
) -> None:
    """Say what a code of the checker means, with a wrong and a right example."""
    from harness import tl_text

    tl_text.explain(code)


@app.command(epilog=tl_manual.CODES)
@clean
def codes(as_json: Json = False) -> None:
    """List all codes of the checker."""
    from harness import tl_text

    tl_text.list_codes(as_json)


@app.command(epilog=tl_manual.TUNE)
@clean
def tune(
    out: Annotated[Path, typer.Option(metavar="DIR", help="The candidate's folder goes in there.")],
    file: File = None,
    task: TaskName = None,
    task_folders: TaskFolders = None,
    workloads: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SET",
            help="Workload set: smoke, paper, models. Repeatable. Without it: models.",
            autocompletion=completion.among(*completion.SETS),
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            metavar="TARGET",
            help="What this machine is. Without it: as its GPU says.",
            autocompletion=completion.targets,
        ),
    ] = None,
    dtype: Dtype = "fp16",
    backend: Annotated[
        str,
        typer.Option(
            "--backend",
            metavar="NAME",
            help="triton, cuda (CuTe) or gluon (Hopper).",
            autocompletion=completion.among("triton", "cuda", "gluon"),
        ),
    ] = "triton",
    everything: Annotated[
        bool,
        typer.Option(
            "--all", metavar=FLAG, help="Time all schedules of Hopper, not the few that a search picks."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Time choices of tiles and launches on this GPU, and write a candidate with the best per shape.

    Needs the GPU that the candidate is for. All choices are timed; of Hopper's schedules, which are hundreds,
    a search times a sixth or less.
    """
    from harness import tl_tune

    tl_tune.run(
        file,
        task,
        task_folders or [],
        target,
        workloads or ["models"],
        dtype,
        out,
        as_json,
        backend,
        everything,
    )
