"""Owns the command line: options and help. What a command does is in `commands`, imported when one runs.

Keeping torch out of here lets `--help`, completion and a wrong machine answer in a fraction of a second.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness import completion
from harness.evaluation_cli import eval_, eval_foot, report, report_foot
from harness.exchange_cli import compare, compare_foot, export, export_foot
from harness.exits import (
    EXIT_INTERRUPTED,
    EXIT_MACHINE,
    EXIT_PENDING,
    EXIT_STORE,
    EXIT_USAGE,
)
from harness.gate_cli import app as gate_app
from harness.generation_cli import answers_app, generate, generate_foot, show, show_foot
from harness.manual import foot
from harness.options import (
    FLAG,
    Json,
    JsonResult,
    Run,
    TaskFolders,
)
from harness.tl_cli import app as tl_app

MEASURE, MODELS, RUNS, LANGUAGE = "Measure", "Models that write kernels", "Runs", "The language LLM-TL"

SiteFolder = Annotated[
    Path, typer.Option(metavar="DIR", help="The site's folder; a site that stands there is replaced.")
]

app = typer.Typer(
    help="Benchmark and evaluation harness for attention kernels that language models write.\n\n"
    "It verifies each kernel against a float64 reference, times it beside what human experts wrote, and "
    "writes a report. `attnbench COMMAND --help` explains a command; docs/README.md is the way in.",
    epilog=foot(
        "attnbench doctor                            # what this machine can measure",
        "attnbench tasks                             # what is measured",
        "attnbench eval cpu                          # a whole run in minutes, no GPU",
        "attnbench eval cpu --candidates my_kernels  # kernels of your own",
        then="a script reads `--json`; a shell completes words after `attnbench --install-completion`.",
        codes=(EXIT_USAGE, EXIT_MACHINE, EXIT_STORE, EXIT_PENDING, EXIT_INTERRUPTED),
        found="something wrong was found: in a program, in a run, in compiling a kernel",
    ),
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
tasks_app = typer.Typer(
    help="The task suite: attention variants and their workloads. Without `show`: the list.",
    epilog=foot(
        "attnbench tasks",
        "attnbench tasks show sliding_window",
        "attnbench tasks --tasks my_tasks           # with a folder of your own",
        then="a kernel for one of them: docs/write-a-kernel.md. A task of your own: docs/tasks.md.",
    ),
    invoke_without_command=True,
)


def _version(asked: bool) -> None:
    if asked:
        import importlib.metadata

        try:
            typer.echo(f"attnbench {importlib.metadata.version('attnbench')}")
        except importlib.metadata.PackageNotFoundError:
            typer.echo("attnbench, from a checkout that is not installed")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", metavar=FLAG, callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


@app.command(
    rich_help_panel=MEASURE,
    epilog=foot(
        "attnbench doctor",
        "attnbench doctor --json",
        then="each line says what to do; `attnbench eval TARGET` measures what is usable.",
    ),
)
def doctor(as_json: Json = False) -> None:
    """Say what this machine can measure, and what to install for the rest.

    Looks at the CPU, GPUs, backends, human baselines and models, and tries each way out of the sandbox.
    Changes nothing; takes some seconds.
    """
    from harness import listings

    listings.doctor(as_json)


@tasks_app.callback()
def tasks_list(context: typer.Context, folders: TaskFolders = None, as_json: Json = False) -> None:
    from harness import listings

    if context.invoked_subcommand is None:
        listings.list_tasks(folders or [], as_json)


@tasks_app.command(
    "show",
    epilog=foot(
        "attnbench tasks show mha_causal",
        "attnbench tasks show strided --tasks my_tasks",
        then="write a kernel with that signature: docs/write-a-kernel.md.",
    ),
)
def tasks_show(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A task's name.", autocompletion=completion.tasks)
    ],
    folders: TaskFolders = None,
    as_json: Json = False,
) -> None:
    """Show the mathematics, signature and workloads of one task."""
    from harness import listings

    listings.show_task(name, folders or [], as_json)


app.command("eval", rich_help_panel=MEASURE, epilog=eval_foot)(eval_)
app.command(rich_help_panel=MEASURE, epilog=report_foot)(report)
app.command(rich_help_panel=MODELS, epilog=generate_foot)(generate)
app.add_typer(answers_app, name="answers", rich_help_panel=MODELS)
app.command(rich_help_panel=MODELS, epilog=show_foot)(show)


@app.command(
    rich_help_panel=RUNS,
    epilog=foot(
        "attnbench merge h100 runs/a runs/b --out runs/whole",
        then="`attnbench eval h100 --out runs/whole --resume` measures what no part has.",
        codes=(EXIT_USAGE, EXIT_STORE),
    ),
)
def merge(
    experiment: Annotated[
        str,
        typer.Argument(
            metavar="EXPERIMENT",
            help="The whole experiment, by name or as a TOML file.",
            autocompletion=completion.experiments,
        ),
    ],
    parts: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Runs of parts of it.", autocompletion=completion.runs),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The new run's directory.")],
    as_json: JsonResult = False,
) -> None:
    """Make one run of runs that did a part of an experiment each, by --task, --method or --model.

    Records are copied as they are. Where two parts hold different records of one thing, nothing is written.
    """
    from harness import commands

    commands.merge_runs(experiment, parts, out, as_json)


@app.command(
    rich_help_panel=RUNS,
    epilog=foot(
        "attnbench verify runs/NAME",
        "attnbench verify runs/NAME --json",
        then="each finding names its file and line; docs/run-and-report.md says what is checked.",
        codes=(EXIT_USAGE, EXIT_STORE),
        found="the run was changed after it was recorded",
    ),
)
def verify(run: Run, as_json: Json = False) -> None:
    """Recompute the hashes of a run and follow its links: was a record edited, dropped or moved?

    Checks the seal and the place of each result, its identity, its environment, the sources of each kernel,
    each question to a model, and the way from a result to what the model was asked. Reads only.

    There is no secret key in it: who rewrites a whole run with new hashes is not noticed. Only a second run
    tells.
    """
    from harness import audit_command

    audit_command.verify(run, as_json)


app.add_typer(gate_app, name="gate", rich_help_panel=MEASURE)
app.command(rich_help_panel=RUNS, epilog=compare_foot)(compare)
app.command(rich_help_panel=RUNS, epilog=export_foot)(export)
app.add_typer(tasks_app, name="tasks", rich_help_panel=MEASURE)
app.add_typer(tl_app, name="tl", rich_help_panel=LANGUAGE)


@app.command(
    rich_help_panel=RUNS,
    epilog=foot(
        "attnbench publish runs/NAME --out site",
        "attnbench publish reports/published/* --out site",
        then="open site/index.html, or put the folder on any static host. docs/publish.md says how it ranks.",
        codes=(EXIT_USAGE, EXIT_STORE),
    ),
)
def publish(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Directories of runs.", autocompletion=completion.runs),
    ],
    out: SiteFolder = Path("site"),
    title: Annotated[str, typer.Option(metavar="TEXT", help="What the site is called.")] = "attnbench",
    task_folders: TaskFolders = None,
    as_json: JsonResult = False,
) -> None:
    """Write a static site of runs: the leaderboard, a page for each task and each kernel, every record.

    It needs no server and no network. Targets stand side by side and are never mixed.
    """
    from harness.publish_command import publish_site

    publish_site(runs, out, title, task_folders or [], as_json)


def main() -> None:
    """The `attnbench` command."""
    app()


if __name__ == "__main__":
    main()
