"""Owns the command line of `attnbench generate`, `answers` and `show`: options and help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from harness import completion
from harness.exits import EXIT_INTERRUPTED, EXIT_PENDING, EXIT_STORE, EXIT_USAGE, fail
from harness.manual import foot
from harness.options import (
    FLAG,
    Experiment,
    Json,
    JsonResult,
    Methods,
    Models,
    Out,
    Resume,
    RunOption,
    Samples,
    TaskFolders,
    TaskNames,
)

answers_app = typer.Typer(
    help="Answers that come from outside: a batch endpoint, a chat window, a person.\n\n"
    "A run with a model `deferred:NAME` writes its questions to pending.jsonl (OpenAI's batch format) and "
    "stops with exit code 75. Import the answers, then go on with --resume.",
    epilog=foot(
        "attnbench generate h100-generation --out runs/gen",
        "attnbench answers export --run runs/gen --out questions",
        "attnbench answers import questions --run runs/gen",
        "attnbench generate h100-generation --out runs/gen --resume",
        codes=(EXIT_USAGE, EXIT_STORE),
    ),
    no_args_is_help=True,
)

generate_foot = foot(
    "attnbench generate cpu --out runs/gen        # from recorded answers",
    "attnbench generate h100 --model anthropic:MODEL --out runs/gen",
    "attnbench generate h100-generation --out runs/gen --resume",
    then="`attnbench eval EXPERIMENT --out RUN --resume` on the machine that has the target; where the exit "
    "code is 75, `attnbench answers` first.",
    codes=(EXIT_USAGE, EXIT_STORE, EXIT_PENDING, EXIT_INTERRUPTED),
)
show_foot = foot(
    "attnbench show                               # the trials of the newest run",
    "attnbench show mha_causal/tl-claude-0 --run runs/gen",
    "attnbench show mha_causal/tl-claude-0 --run runs/gen --json",
    then="the report of the run has every story too: `attnbench report RUN`.",
)


def generate(
    experiment: Experiment = "cpu",
    task: TaskNames = None,
    task_folders: TaskFolders = None,
    model: Models = None,
    method: Methods = None,
    samples: Samples = None,
    out: Out = None,
    resume: Resume = False,
    as_json: JsonResult = False,
) -> None:
    """Ask models for kernels, as far as that needs no device.

    For where the keys and the network are. What needs the target's device waits in the run's directory, for
    `eval --resume` on a machine that has it. Each answer is on disk before it is used.
    """
    if resume and out is None:
        fail("--resume needs --out DIR, the directory of the run to go on with", EXIT_USAGE)
    overrides: dict[str, Any] = {"tasks": task, "models": model, "methods": method, "samples": samples}
    try:
        from harness import commands

        given = {key: value for key, value in overrides.items() if value}
        commands.generate(experiment, given, task_folders or [], out, resume, as_json)
    except KeyboardInterrupt:
        fail("interrupted", EXIT_INTERRUPTED)


@answers_app.command(
    "import",
    epilog=foot(
        "attnbench answers import batch_output.jsonl --run runs/gen",
        "attnbench answers import questions --run runs/gen",
        then="`attnbench generate EXPERIMENT --out RUN --resume`, or `eval` in its place on the target.",
        codes=(EXIT_USAGE, EXIT_STORE),
    ),
)
def import_(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="Answers: a batch output file of OpenAI or Anthropic, lines of "
            '{"custom_id": ..., "text": ...}, or a folder with NAME.answer.md beside exported questions.',
        ),
    ],
    run: RunOption,
    version: Annotated[
        str, typer.Option(metavar="TEXT", help="Version of the model, where the answers do not say.")
    ] = "",
    provider: Annotated[
        str, typer.Option(metavar="NAME", help="Who answered, as records say it.")
    ] = "deferred",
    as_json: JsonResult = False,
) -> None:
    """Take answers into a run.

    A broken file is refused whole. An answer that is there already stays as it is.
    """
    if not source.exists():
        fail(f"{source} does not exist; give a file or a folder with answers", EXIT_USAGE)
    from harness.answer_commands import import_answers
    from harness.commands import guarded

    guarded(lambda: import_answers(source, run, version, provider, as_json))


@answers_app.command(
    "export",
    epilog=foot(
        "attnbench answers export --run runs/gen --out questions",
        then="put each answer beside its question as NAME.answer.md, then `attnbench answers import`.",
        codes=(EXIT_USAGE, EXIT_STORE),
    ),
)
def export(
    run: RunOption,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to write the questions.")],
    as_json: JsonResult = False,
) -> None:
    """Write the questions that wait for answers as texts, one file each."""
    from harness.answer_commands import export_answers
    from harness.commands import guarded

    guarded(lambda: export_answers(run, out, as_json))


def show(
    trial: Annotated[
        str | None,
        typer.Argument(
            metavar="TRIAL",
            help="A kernel's name, TASK/NAME, or the beginning of a trial's id. Without it: the list.",
            autocompletion=completion.trials,
        ),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            "--run",
            metavar="RUN",
            help="The run's directory. Without it: the newest in runs/ with trials.",
            autocompletion=completion.runs,
        ),
    ] = None,
    prompts: Annotated[
        bool, typer.Option("--prompts", metavar=FLAG, help="Show every prompt in full.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Tell how a kernel came to be: prompts, LLM-TL, findings, verdicts, times."""
    from harness.commands import guarded
    from harness.generation_commands import latest_run
    from harness.generation_commands import show as tell

    guarded(lambda: tell(run or latest_run(), trial, as_json, prompts))
