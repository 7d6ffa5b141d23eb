"""Owns the options of the command `export`; what it does is imported when it runs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Name(StrEnum):
    """The formats of `reports.formats`, known here without importing torch."""

    FLASHINFER = "flashinfer"
    PYTEST_BENCHMARK = "pytest-benchmark"
    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"


def export(
    run: Annotated[Path, typer.Argument(help="A run's directory.")],
    formats: Annotated[
        list[Name],
        typer.Option(
            "--format",
            help="flashinfer: definitions, solutions, workloads and traces of flashinfer-bench (a folder). "
            "pytest-benchmark: what `pytest-benchmark compare` reads. csv, parquet: a line for each result. "
            "json: all derived figures. Repeatable.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="The new file; for flashinfer and for several formats the new folder "
            "[standard output, where it is one text].",
        ),
    ] = None,
) -> None:
    """Write what a run recorded in the form of other tools.

    Nothing is written over: a path that exists is refused, except a folder that can take a file in.
    """
    from harness import export_command

    export_command.export(run, [f.value for f in formats], out)
