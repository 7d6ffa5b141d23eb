"""Owns the command line of `attnbench answers` and of `show`: options and help, imported with the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.exits import EXIT_USAGE, fail

answers_app = typer.Typer(
    help="Answers that come from outside: a batch endpoint, a chat window, a person.\n\n"
    "A run with a model `deferred:NAME` writes its questions to pending.jsonl (OpenAI's batch format) and "
    "stops with exit code 75. Import the answers, then go on with --resume.",
    no_args_is_help=True,
)

Run = Annotated[Path, typer.Option("--run", metavar="DIR", help="The run's directory.")]


@answers_app.command("import")
def import_(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="Answers: a batch output file of OpenAI or Anthropic, lines of "
            '{"custom_id": ..., "text": ...}, or a folder with NAME.answer.md beside exported questions.',
        ),
    ],
    run: Run,
    version: Annotated[str, typer.Option(help="Version of the model, where the answers do not say.")] = "",
    provider: Annotated[str, typer.Option(help="Who answered, as records say it.")] = "deferred",
) -> None:
    """Take answers into a run."""
    if not source.exists():
        fail(f"{source} does not exist; give a file or a folder with answers", EXIT_USAGE)
    from harness.commands import guarded
    from harness.generation_commands import import_answers

    guarded(lambda: import_answers(source, run, version, provider))


@answers_app.command("export")
def export(
    run: Run,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to write the questions.")],
) -> None:
    """Write the questions that wait for answers as texts, one file each."""
    from harness.commands import guarded
    from harness.generation_commands import export_answers

    guarded(lambda: export_answers(run, out))


def show(
    trial: Annotated[
        str | None, typer.Argument(help="A kernel's name, TASK/NAME, or the beginning of a trial's id.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option("--run", metavar="DIR", help="The run's directory [the newest in runs/].")
    ] = None,
    prompts: Annotated[bool, typer.Option("--prompts", help="Show every prompt in full.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Tell how a kernel came to be: prompts, LLM-TL, findings, verdicts, times. Without TRIAL: the list."""
    from harness.generation_commands import latest_run
    from harness.generation_commands import show as tell

    tell(run or latest_run(), trial, as_json, prompts)
