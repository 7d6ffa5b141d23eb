"""Owns the options that several commands have: their names, what their help says, what a shell completes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness import completion

FLAG = ""  # a flag takes no value, and its help shows none

Experiment = Annotated[
    str,
    typer.Argument(
        metavar="EXPERIMENT",
        help="A shipped experiment (cpu, h100, a100, ...) or a TOML file of your own.",
        autocompletion=completion.experiments,
    ),
]
Run = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run's directory.", autocompletion=completion.runs)
]
RunOption = Annotated[
    Path,
    typer.Option("--run", metavar="RUN", help="The run's directory.", autocompletion=completion.runs),
]
Out = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="The run's directory. Without it: runs/TARGET-TIME.",
        autocompletion=completion.runs,
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        metavar=FLAG,
        help="Go on with the run in --out: what is recorded is not done again.",
    ),
]
TaskNames = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        metavar="NAME",
        help="Only this task; `attnbench tasks` lists them. Repeatable.",
        autocompletion=completion.tasks,
    ),
]
TaskFolders = Annotated[
    list[Path] | None,
    typer.Option(
        "--tasks", metavar="DIR", help="A folder with task files of your own, beside the suite. Repeatable."
    ),
]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        metavar="PROVIDER:NAME",
        help="A model that writes kernels: openai:NAME, anthropic:NAME, replay:NAME, deferred:NAME, or "
        "'A -> B' where A thinks and B translates. Repeatable.",
    ),
]
Methods = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        metavar="NAME",
        help="Only this way of asking: vanilla, vanilla-cot, tl, tl-one-stage, tl-unguided, tl-compiled, "
        "tl-scheduled. Repeatable.",
        autocompletion=completion.methods,
    ),
]
Samples = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Independent attempts of each method, model and task."),
]
Json = Annotated[
    bool, typer.Option("--json", metavar=FLAG, help="Print JSON on standard output, for scripts.")
]
JsonResult = Annotated[
    bool,
    typer.Option(
        "--json",
        metavar=FLAG,
        help="Print one JSON object at the end, for scripts; all else goes to standard error.",
    ),
]
