"""Owns the command that writes the site: typed errors become sentences with an exit code."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from harness.exits import EXIT_STORE, EXIT_USAGE, fail
from reports import RunError
from reports.site.publish import SiteError, Tell, publish
from tasks import TaskError, discover


def publish_site(
    runs: Sequence[Path], out: Path, title: str, task_folders: Sequence[Path], as_json: bool
) -> None:
    """Write the site of these runs and say where it is."""
    try:
        tasks = discover(*task_folders)
        with _progress(quiet=as_json) as tell:
            front = publish(runs, out, tasks, title, tell)
    except (RunError, TaskError) as error:
        fail(str(error), EXIT_USAGE)
    except SiteError as error:
        fail(str(error), EXIT_STORE)
    if as_json:
        print(json.dumps({"site": str(out), "front": str(front), "runs": [str(run) for run in runs]}))
        return
    Console(highlight=False).print(
        f"{front}\nOpen it in a browser, or put the folder {out} on any static host.", soft_wrap=True
    )


@contextmanager
def _progress(quiet: bool) -> Iterator[Tell]:
    """A bar with the time left on a terminal, plain lines elsewhere."""
    console = Console(stderr=True, highlight=False, quiet=quiet)
    if not console.is_terminal:
        yield lambda what, done, of: console.print(f"[{done}/{of}] {what}", markup=False, soft_wrap=True)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("reading", total=None)
        yield lambda what, done, of: progress.update(bar, description=what, completed=done, total=of)
