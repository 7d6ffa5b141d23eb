"""Owns the command `attnbench verify`: what an audit found, for people and for scripts."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from harness.audit import Audit, AuditError, audit
from harness.exits import EXIT_FOUND, EXIT_STORE, EXIT_USAGE, fail
from harness.progress import Bar, output
from tasks import discover


def verify(run: Path, as_json: bool) -> None:
    """Print what an audit of the run found; leaves with EXIT_FOUND where that is anything."""
    tasks = {name: hashlib.sha256(task.source.encode()).hexdigest() for name, task in discover().items()}
    try:
        with Bar(output(as_json=True), "verifying") as bar:
            found = audit(run, tasks, bar.moved)
    except AuditError as error:
        fail(str(error), EXIT_USAGE)
    except OSError as error:
        fail(f"cannot read {error.filename or run}: {error.strerror}", EXIT_STORE)
    if as_json:
        said = {"run": run.name, "clean": not found.findings, **asdict(found)}
        print(json.dumps(said, indent=1))
    else:
        _tell(run, found, Console(highlight=False, soft_wrap=True))
    if found.findings:
        raise SystemExit(EXIT_FOUND)


def _tell(run: Path, found: Audit, console: Console) -> None:
    for finding in found.findings:
        console.print(f"[red]{escape(finding.where)}[/]: {escape(finding.what)}")
    for note in found.notes:
        console.print(f"[yellow]note[/] {escape(note)}")
    count = len(found.findings)
    state = f"{count} finding{'s' * (count != 1)}" if count else "nothing found"
    console.print(f"{escape(str(run))}: {found.results} results, {found.sealed} of them sealed; {state}")
