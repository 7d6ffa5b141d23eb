"""Owns the command line of `attnbench tl`: options and help. What a command does is imported when it runs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, ParamSpec

import typer

from harness.exits import EXIT_INTERRUPTED, fail

app = typer.Typer(
    help="LLM-TL: check, run, lower and format programs of the language that models think in.\n\n"
    "FILE may be `-` for standard input. Which task a program is for, --task says, or a line `# task: NAME` "
    "at its head, or the name of its kernel. Without FILE, --task takes the task's reference program.\n\n"
    "Exit codes: 0 fine, 1 the program has errors or computes something else, 2 wrong input.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
P = ParamSpec("P")


class ProgramLevel(StrEnum):
    """How complete a program is meant to be."""

    SKETCH = "sketch"
    CODE = "code"


File = Annotated[Path | None, typer.Argument(metavar="FILE", help="A program; - is standard input.")]
TaskName = Annotated[str | None, typer.Option("--task", help="The task it is for.")]
TaskFolders = Annotated[
    list[Path] | None, typer.Option("--tasks", metavar="DIR", help="Task files of your own. Repeatable.")
]
TargetName = Annotated[str | None, typer.Option("--target", help="What it is to run on: h100, a100, ...")]
Tiles = Annotated[
    list[str] | None,
    typer.Option("--tile", metavar="BM=64", help="A tile parameter. Repeatable, or with commas."),
]
Dtype = Annotated[str, typer.Option(help="dtype of the operands.")]
Json = Annotated[bool, typer.Option("--json", help="For scripts.")]
Size = Annotated[int | None, typer.Option(min=1)]


def clean(command: Callable[P, None]) -> Callable[P, None]:
    """The command, leaving quietly when it is interrupted or its output is no longer read."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            fail("interrupted", EXIT_INTERRUPTED)

    return run


@app.command()
@clean
def check(
    file: File = None,
    task: TaskName = None,
    task_folders: TaskFolders = None,
    level: Annotated[ProgramLevel, typer.Option(help="What it is to be complete for.")] = ProgramLevel.CODE,
    target: TargetName = None,
    dtype: Dtype = "fp16",
    notes: Annotated[bool, typer.Option("--notes", help="Show notes too: what was read into it.")] = False,
    as_json: Json = False,
) -> None:
    """Say what is wrong with a program, where, and what to do. With --target: what does not fit there."""
    from harness import tl_commands

    tl_commands.check(file, task, task_folders or [], level.value, target, dtype, notes, as_json)


@app.command()
@clean
def run(
    file: File = None,
    task: TaskName = None,
    task_folders: TaskFolders = None,
    workload: Annotated[
        str | None, typer.Option(metavar="SET:N", help="A workload of the task, or its key [smoke:0].")
    ] = None,
    batch: Size = None,
    heads: Size = None,
    kv_heads: Size = None,
    seq_q: Size = None,
    seq_k: Size = None,
    dim: Size = None,
    dim_v: Size = None,
    dtype: Annotated[str | None, typer.Option(help="fp16, bf16, fp32, fp64 [the workload's].")] = None,
    scale: Annotated[float | None, typer.Option(help="Of the scores [dim ** -0.5].")] = None,
    param: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Of the task. Repeatable.")
    ] = None,
    tile: Tiles = None,
    recipe: Annotated[str, typer.Option(help="Of the inputs: normal, large_logits, ...")] = "normal",
    seed: Annotated[int, typer.Option(min=0, help="Of the inputs.")] = 0,
    target: TargetName = None,
    as_json: Json = False,
) -> None:
    """Interpret a program and compare it with the oracle; count what it costs. With --target: a roofline."""
    from harness import tl_run

    given = (batch, heads, kv_heads, seq_q, seq_k, dim, dim_v, dtype, scale, tuple(param or ()))
    sizes = tl_run.Sizes(*given)
    tl_run.run(file, task, task_folders or [], workload, sizes, tile or [], recipe, seed, target, as_json)


@app.command()
@clean
def lower(
    file: File = None,
    task: TaskName = None,
    task_folders: TaskFolders = None,
    backend: Annotated[str, typer.Option(help="triton, cuda (CuTe) or numba.")] = "triton",
    target: TargetName = None,
    tile: Tiles = None,
    dtype: Dtype = "fp16",
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Write a candidate's folder there.")] = None,
    compile_: Annotated[
        bool, typer.Option("--compile", help="Compile for sm_80, sm_89 and sm_90 and say what it takes.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Turn a program into a kernel: print its source, or write a candidate for `attnbench eval`."""
    from harness import tl_commands

    given = (backend, target, tile or [], dtype, out, compile_, as_json)
    tl_commands.lower(file, task, task_folders or [], *given)


@app.command("format")
@clean
def format_(
    file: File = None,
    task: Annotated[str | None, typer.Option(help="Print the reference program of this task.")] = None,
    write: Annotated[bool, typer.Option("--write", help="Change the file.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Only say whether it is canonical.")] = False,
) -> None:
    """Print the canonical form of a program; comments stay."""
    from harness import tl_text

    tl_text.format_file(file, task, write, check)


@app.command()
@clean
def space(
    target: Annotated[str, typer.Option("--target", help="h100, a100, l40s, ...: what it is to fit on.")],
    file: File = None,
    task: TaskName = None,
    task_folders: TaskFolders = None,
    dtype: Dtype = "fp16",
    as_json: Json = False,
) -> None:
    """How many choices of tiles, warps and stages there are, how many fit on a target, why others do not."""
    from harness import tl_space

    tl_space.show(file, task, task_folders or [], target, dtype, as_json)


@app.command()
@clean
def mutants(
    quick: Annotated[bool, typer.Option("--quick", help="Two of each kind only.")] = False,
    as_json: Json = False,
) -> None:
    """Plant defects into correct programs and count what the checker finds. Takes minutes."""
    from harness import tl_mutants

    tl_mutants.mutants(quick, as_json)


@app.command()
@clean
def explain(code: Annotated[str, typer.Argument(help="Such as TL401.")]) -> None:
    """What a code of the checker means, with a wrong and a right example."""
    from harness import tl_text

    tl_text.explain(code)


@app.command()
@clean
def codes(as_json: Json = False) -> None:
    """All codes of the checker."""
    from harness import tl_text

    tl_text.list_codes(as_json)


@app.command()
@clean
def tune(
    out: Annotated[Path, typer.Option(metavar="DIR", help="The candidate's folder goes in there.")],
    file: File = None,
    task: TaskName = None,
    task_folders: TaskFolders = None,
    workloads: Annotated[
        list[str] | None, typer.Option(help="Workload set: smoke, paper, models. Repeatable. [models]")
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", help="What this machine is [as its GPU says].")
    ] = None,
    dtype: Dtype = "fp16",
    backend: Annotated[str, typer.Option("--backend", help="triton or cuda (CuTe).")] = "triton",
    as_json: Json = False,
) -> None:
    """Time every choice of tiles and launches on this GPU, and write a candidate with the best per shape."""
    from harness import tl_tune

    tl_tune.run(file, task, task_folders or [], target, workloads or ["models"], dtype, out, as_json, backend)
