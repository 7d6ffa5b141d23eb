"""Owns the command that writes the site: typed errors become sentences with an exit code."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from harness.exits import EXIT_STORE, EXIT_USAGE, fail
from harness.progress import Bar, output
from reports import RunError
from reports.site.publish import SiteError, publish
from tasks import TaskError, discover


def publish_site(
    runs: Sequence[Path], out: Path, title: str, task_folders: Sequence[Path], as_json: bool
) -> None:
    """Write the site of these runs and say where it is."""
    console = output(as_json)
    try:
        tasks = discover(*task_folders)
        with Bar(console, "the site") as bar:

            def tell(what: str, done: int, of: int) -> None:
                bar.at(what)
                bar.moved(done, of)

            front = publish(runs, out, tasks, title, tell)
    except (RunError, TaskError) as error:
        fail(str(error), EXIT_USAGE)
    except SiteError as error:
        fail(str(error), EXIT_STORE)
    if as_json:
        print(json.dumps({"site": str(out), "front": str(front), "runs": [str(run) for run in runs]}))
        return
    console.print(
        f"{front}\nOpen it in a browser, or put the folder {out} on any static host.",
        soft_wrap=True,
        markup=False,
    )
