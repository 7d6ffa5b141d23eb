"""Owns the options of the commands `export` and `compare`; what they do is imported when one runs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from harness import completion
from harness.exits import EXIT_STORE, EXIT_USAGE, fail
from harness.manual import foot
from harness.options import FLAG, Run


class Name(StrEnum):
    """The formats of `reports.formats`, known here without importing torch."""

    FLASHINFER = "flashinfer"
    PYTEST_BENCHMARK = "pytest-benchmark"
    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"


export_foot = foot(
    "attnbench export runs/NAME --format csv --out figures.csv",
    "attnbench export runs/NAME --format flashinfer --out traces",
    then="docs/compare-and-export.md says what becomes of each field.",
    codes=(EXIT_USAGE, EXIT_STORE),
)
compare_foot = foot(
    "attnbench compare runs/before runs/after",
    "attnbench compare runs/before runs/after --markdown",
    then="docs/compare-and-export.md says what is called a change. `attnbench gate` fails a build.",
)


def export(
    run: Run,
    formats: Annotated[
        list[Name],
        typer.Option(
            "--format",
            metavar="NAME",
            help="flashinfer: definitions, solutions, workloads and traces of flashinfer-bench (a folder). "
            "pytest-benchmark: what `pytest-benchmark compare` reads. csv, parquet: a line for each result. "
            "json: all derived figures. Repeatable.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="The new file; for flashinfer and for several formats the new folder. "
            "Without it one text goes to standard output.",
        ),
    ] = None,
) -> None:
    """Write what a run recorded in the form of other tools.

    Nothing is written over: a path that exists is refused, except a folder that can take a file in.
    """
    from harness import export_command

    export_command.export(run, [f.value for f in formats], out)


def compare(
    before: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_A", help="The run that the other is compared with.", autocompletion=completion.runs
        ),
    ],
    after: Annotated[
        Path, typer.Argument(metavar="RUN_B", help="The run that may differ.", autocompletion=completion.runs)
    ],
    as_json: Annotated[
        bool, typer.Option("--json", metavar=FLAG, help="Print every figure as JSON, for scripts.")
    ] = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", metavar=FLAG, help="For a page or an issue.")
    ] = False,
) -> None:
    """Say what changed from one run to another: verdicts, speedups beyond noise, conditions.

    Speedups are over the same human baseline in both runs. What unchanged baselines moved by between the
    two runs is added to the noise: less than that is called no change. Ends with 0 whatever was found.
    """
    if as_json and as_markdown:
        fail("give either --json or --markdown", EXIT_USAGE)
    from harness import compare_command

    compare_command.compare(before, after, as_json, as_markdown)
