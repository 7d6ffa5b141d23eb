"""Owns the command `attnbench compare`: two runs read, their comparison for people and for scripts."""

from __future__ import annotations

import sys
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from harness.exits import EXIT_STORE, EXIT_USAGE, fail
from reports.changes import Comparison
from reports.changes import compare as compare_runs
from reports.changes.formats import json_text, markdown
from reports.changes.sections import lead, sections, title, warnings
from reports.dataset import Dataset, RunError, load_run
from reports.sections import Section, Table

MOST_LINES = 40  # of a table in the terminal; --markdown and --json have all
_STYLES = {"good": "green", "bad": "red"}


def compare(before: Path, after: Path, as_json: bool, as_markdown: bool) -> None:
    """Print what changed; every typed error becomes its sentence and its exit code."""
    found = compare_runs(_load(before), _load(after))
    if as_json or as_markdown:
        sys.stdout.write(json_text(found) if as_json else markdown(found))
    else:
        _tell(found, Console(highlight=False))


def _load(run: Path) -> Dataset:
    try:
        return load_run(run)
    except RunError as error:
        fail(str(error), EXIT_USAGE)
    except OSError as error:
        fail(f"cannot read {error.filename or run}: {error.strerror}", EXIT_STORE)


def _tell(of: Comparison, console: Console) -> None:
    console.print(f"[bold]{escape(title(of))}[/]\n{escape(lead(of))}")
    for warning in warnings(of):
        console.print(f"[yellow]note[/] {escape(warning)}")
    for section in sections(of):
        _tell_section(section, console)


def _tell_section(section: Section, console: Console) -> None:
    console.print(f"\n[bold]{escape(section.title)}[/]")
    for paragraph in section.paragraphs:
        console.print(escape(paragraph))
    for table in section.tables:
        console.print(_rich(table))
        if len(table.lines) > MOST_LINES:
            console.print(f"and {len(table.lines) - MOST_LINES} more: --markdown lists all")


def _rich(table: Table) -> RichTable:
    shown = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in table.columns:
        shown.add_column(column.title, justify="right" if column.numeric else "left", overflow="fold")
    for line in table.lines[:MOST_LINES]:
        entries = (line,) if isinstance(line, str) else [(e.text, e.style) for e in line]
        shown.add_row(*(_styled(*entry) if isinstance(entry, tuple) else escape(entry) for entry in entries))
    return shown


def _styled(text: str, style: str) -> str:
    said = escape(text)
    return f"[{_STYLES[style]}]{said}[/]" if style in _STYLES else said
