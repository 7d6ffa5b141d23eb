"""Owns the options that several commands of `attnbench tl` have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from harness import completion

File = Annotated[Path | None, typer.Argument(metavar="FILE", help="A program; - is standard input.")]
TaskName = Annotated[
    str | None,
    typer.Option("--task", metavar="NAME", help="The task it is for.", autocompletion=completion.tasks),
]
TargetName = Annotated[
    str | None,
    typer.Option(
        "--target",
        metavar="TARGET",
        help="What it is to run on: h100, a100, ...",
        autocompletion=completion.targets,
    ),
]
Tiles = Annotated[
    list[str] | None,
    typer.Option("--tile", metavar="BM=64", help="A tile parameter. Repeatable, or with commas."),
]
Dtype = Annotated[
    str,
    typer.Option(
        metavar="DTYPE",
        help="dtype of the operands.",
        autocompletion=completion.among(*completion.DTYPES),
    ),
]


def size(what: str) -> Any:
    """An option that changes a size of the workload."""
    return typer.Option(min=1, metavar="N", help=f"{what} Without it: the workload's.")
