"""Owns the command `attnbench gate`: options and help; the work is in `gate_commands`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from harness.exits import (
    EXIT_INTERRUPTED,
    EXIT_MACHINE,
    EXIT_NO_REFERENCE,
    EXIT_NOT_COMPARABLE,
    EXIT_PENDING,
    EXIT_STORE,
    EXIT_USAGE,
    fail,
)
from harness.manual import foot
from harness.options import FLAG

CODES = (
    EXIT_USAGE, EXIT_MACHINE, EXIT_STORE, EXIT_NOT_COMPARABLE, EXIT_NO_REFERENCE, EXIT_PENDING,
    EXIT_INTERRUPTED,
)  # fmt: skip
app = typer.Typer(
    help="Is a kernel slower than it was? Measure, compare with the stored reference, decide.\n\n"
    "A kernel that has changed is timed beside what it was in the reference, whose sources are kept with it, "
    "block by block in one session: what the machine does that day happens to both. One that has not is "
    "compared by its stored ratio over a human baseline. A case fails when the interval of "
    "that change lies beyond 5 % (or twice the noise floor, where that is more) and a second run agrees. "
    "What is unclear is a warning.",
    epilog=foot(
        "attnbench gate --reference   # once, on a version that you trust",
        "attnbench gate               # after a change",
        "attnbench gate accept        # raise the reference",
        "attnbench gate --against DIR # beside the kernels of another checkout",
        then="docs/gate.md has CI workflows, and what each outcome means. 75, with --measured: cases must be "
        "measured once more.",
        codes=CODES,
        found="a case is slower or missing",
    ),
    invoke_without_command=True,
    rich_markup_mode="markdown",
)

Experiment = Annotated[
    str,
    typer.Option(
        "--experiment", metavar="NAME|FILE", help="What to measure: gate-cpu, gate-gpu, or a .toml file."
    ),
]
Target = Annotated[
    str | None,
    typer.Option("--target", metavar="NAME", help="Another target than the experiment's: a100, h100, ..."),
]
Storage = Annotated[
    Path, typer.Option("--storage", metavar="DIR", help="pytest-benchmark's storage: references and runs.")
]
STORAGE = Path(".benchmarks")


@app.callback()
def gate(
    context: typer.Context,
    experiment: Experiment = "gate-cpu",
    target: Target = None,
    candidates: Annotated[
        list[Path] | None,
        typer.Option(
            "--candidates",
            metavar="DIR",
            help="Kernels of your own instead of the experiment's: a folder, or one of such. Repeatable.",
        ),
    ] = None,
    anchor: Annotated[
        str | None, typer.Option("--anchor", metavar="NAME", help="The human baseline to compare with.")
    ] = None,
    time_cap: Annotated[
        float | None, typer.Option("--time-cap", metavar="SECONDS", help="Sampling time of a workload.")
    ] = None,
    storage: Storage = STORAGE,
    reference: Annotated[
        bool,
        typer.Option(
            "--reference", metavar=FLAG, help="Keep what is measured now as the reference; decide nothing."
        ),
    ] = False,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against",
            metavar="DIR",
            help="Compare with this folder's kernels of the same names, side by side; needs no reference.",
        ),
    ] = None,
    measured: Annotated[
        bool,
        typer.Option("--measured", metavar=FLAG, help="Decide on what was measured last; measure nothing."),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", metavar=FLAG, help="Every decision with its figures.")
    ] = False,
    junit: Annotated[
        Path | None, typer.Option("--junit", metavar="FILE", help="Write JUnit XML as well.")
    ] = None,
    github: Annotated[
        bool | None,
        typer.Option(
            "--github/--no-github",
            metavar=FLAG,
            help="Annotations and a step summary for GitHub Actions. Without it: there yes, elsewhere no.",
        ),
    ] = None,
    no_sandbox: Annotated[
        bool, typer.Option("--no-sandbox", metavar=FLAG, help="Run kernels with your own rights.")
    ] = False,
) -> None:
    """Measure, compare with the reference, decide."""
    if context.invoked_subcommand is not None:
        return
    from harness import gate_commands

    asked = gate_commands.Asked(
        experiment, target, tuple(candidates or ()), anchor, time_cap, storage, no_sandbox, against
    )
    if against is not None and reference:
        fail(
            "--against compares with kernels and --reference keeps a measurement: give one of them",
            EXIT_USAGE,
        )
    there = os.environ.get("GITHUB_ACTIONS") == "true"
    telling = gate_commands.Telling(as_json, junit, there if github is None else github)
    try:
        if reference:
            gate_commands.make_reference(asked, measured)
        else:
            gate_commands.gate(asked, telling, measured)
    except KeyboardInterrupt:
        fail("interrupted", EXIT_INTERRUPTED)


@app.command(
    epilog=foot(
        "attnbench gate accept",
        "attnbench gate accept --replace",
        then="commit the reference, or keep its folder where the next gate finds it.",
        codes=(EXIT_USAGE, EXIT_STORE, EXIT_NOT_COMPARABLE, EXIT_NO_REFERENCE),
        found="a case is slower or missing",
    )
)
def accept(
    experiment: Experiment = "gate-cpu",
    target: Target = None,
    storage: Storage = STORAGE,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace",
            metavar=FLAG,
            help="Take everything as it was measured last, slower or not, from whatever machine.",
        ),
    ] = False,
) -> None:
    """Raise the reference by what was measured last: cases that are faster, and new ones.

    Refuses where a case is slower, missing, or cannot be compared. Without a reference, what was measured
    last becomes it.
    """
    from harness import gate_commands

    gate_commands.accept(gate_commands.Asked(experiment, target, storage=storage), replace)
