"""Owns TL programs as texts: reading a file, showing findings in it, its canonical form, what a code means.

No task is needed here, and no torch is imported: an editor can call it.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from harness.exits import EXIT_FOUND, EXIT_STORE, EXIT_USAGE, fail
from harness.tl import aliases
from harness.tl.corpus_index import corpus
from harness.tl.diagnostics import CODES, Finding, Severity
from harness.tl.format import format_program
from harness.tl.parse import parse_leniently
from harness.tl.syntax import NOWHERE, Pos

DIAGNOSTICS_PAGE = Path(__file__).parents[1] / "docs" / "tl-diagnostics.md"
_MOST_BYTES = 1 << 18
_STYLE = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}


@dataclass(frozen=True, slots=True)
class Source:
    """A program's text and what messages call it."""

    name: str
    text: str

    @property
    def lines(self) -> list[str]:
        return self.text.removeprefix("\ufeff").replace("\t", " ").split("\n")


def read(path: Path) -> Source:
    """The text of a file, or of standard input for `-`; ends the command where there is none to be read."""
    try:
        data = sys.stdin.buffer.read(_MOST_BYTES + 1) if str(path) == "-" else _bytes(path)
    except IsADirectoryError:
        fail(f"{path} is a folder; give a file with one program", EXIT_USAGE)
    except OSError as error:
        fail(f"{path}: {error.strerror or error}; give a file with a program, or --task NAME", EXIT_USAGE)
    name = "<stdin>" if str(path) == "-" else str(path)
    if len(data) > _MOST_BYTES:
        fail(f"{name} is longer than {_MOST_BYTES >> 10} KiB: that is no LLM-TL program", EXIT_USAGE)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        fail(f"{name} is no text in UTF-8; an LLM-TL program is a text file", EXIT_USAGE)
    if "\0" in text:
        fail(f"{name} is a binary file; an LLM-TL program is a text file", EXIT_USAGE)
    if not text.strip("\ufeff \t\r\n"):
        fail(f"{name} is empty; docs/tl.md has a first program", EXIT_USAGE)
    return Source(name, text)


def _bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_MOST_BYTES + 1)


# --- findings ---------------------------------------------------------------------------------------


def shown(source: Source, pos: Pos, label: str, message: str, fix: str = "", style: str = "bold red") -> str:
    """One thing to say about a place, as a compiler says it, in rich's markup."""
    lines = source.lines
    place = f"{source.name}:{pos.line}:{pos.column}" if pos != NOWHERE else source.name
    out = [f"[bold]{escape(place)}:[/] [{style}]{label}:[/] {escape(message)}"]
    if 0 < pos.line <= len(lines):
        line = lines[pos.line - 1].rstrip()
        out += [f"  {escape(_visible(line))}", f"  {' ' * (max(pos.column, 1) - 1)}[{style}]^[/]"]
    if fix:
        out.append(f"  fix: {escape(fix)}")
    return "\n".join(out) + "\n"


def without_place(text: str, pos: Pos, statement: str, fix: str = "") -> str:
    """An error's own sentence: what `shown` says too is taken off."""
    return text.removeprefix(f"line {pos.line}: `{statement}`: ").removesuffix(f" ({fix})")


def _visible(line: str) -> str:
    return "".join(c if c.isprintable() else "\ufffd" for c in line)


def print_findings(source: Source, findings: Sequence[Finding], notes: bool, console: Console) -> None:
    """Every error and warning, notes where they are wanted, and the count."""
    for text in _each(source, findings, notes):
        console.print(text)
    console.print(f"{escape(source.name)}: {summary(findings, notes)}")


def findings_text(source: Source, findings: Sequence[Finding], notes: bool) -> str:
    """The same without the count and without colours."""
    return "".join(f"{Text.from_markup(text).plain}\n" for text in _each(source, findings, notes))


def _each(source: Source, findings: Sequence[Finding], notes: bool) -> list[str]:
    return [
        shown(source, f.pos, f"{f.severity} {f.code}", f.message, f.fix, _STYLE[f.severity])
        for f in findings
        if notes or f.severity is not Severity.NOTE
    ]


def summary(findings: Sequence[Finding], notes: bool) -> str:
    """How many of each severity: `2 errors, 1 note`."""
    counts = {severity: sum(f.severity is severity for f in findings) for severity in Severity}
    told = [_counted(n, str(severity)) for severity, n in counts.items() if n or severity is Severity.ERROR]
    hint = "" if notes or not counts[Severity.NOTE] else " (--notes shows them)"
    return ", ".join(told) + hint


def _counted(n: int, what: str) -> str:
    return f"{n or 'no'} {what}{'' if n in (0, 1) else 's'}"


def as_records(findings: Iterable[Finding]) -> list[dict[str, str | int]]:
    """The findings for a script."""
    return [
        {
            "code": f.code,
            "severity": str(f.severity),
            "line": f.pos.line,
            "column": f.pos.column,
            "message": f.message,
            "fix": f.fix,
        }
        for f in findings
    ]


def stdout() -> Console:
    """Where results go."""
    return Console(highlight=False, soft_wrap=True)


# --- commands ---------------------------------------------------------------------------------------


def reference(task: str) -> Source:
    """The reference program of a task; ends the command where there is none."""
    known = {entry.task: entry for entry in corpus("reference")}
    if task not in known:
        near = aliases.nearest(task, known).replace("`", "") or f"there are: {', '.join(known)}"
        fail(f"there is no reference program for {task!r}; {near}", EXIT_USAGE)
    return Source(f"{known[task].name}.tl", known[task].text)


def format_file(path: Path | None, task: str | None, write: bool, check: bool) -> None:
    """Print, write or demand the canonical form of a file, or print a task's reference program."""
    if (path is None) == (task is None):
        fail("give a file with a program, or --task NAME to see the reference program of a task", EXIT_USAGE)
    if write and (path is None or str(path) == "-"):
        fail("--write needs a file; without it the canonical form is printed", EXIT_USAGE)
    source = reference(str(task)) if path is None else read(path)
    program, findings = parse_leniently(source.text)
    if findings:
        print_findings(source, findings, False, stdout())
        sys.exit(EXIT_FOUND)
    text = format_program(program)
    if check and text != source.text:
        stdout().print(f"{escape(source.name)} is not in canonical form; attnbench tl format --write does it")
        sys.exit(EXIT_FOUND)
    if check:
        return
    if not write:
        sys.stdout.write(text)
    elif path is not None and text != source.text:
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            fail(f"cannot write {path}: {error.strerror or error}", EXIT_STORE)


def list_codes(as_json: bool) -> None:
    """Every code of the checker."""
    if as_json:
        print(json.dumps([asdict(code) for code in CODES.values()], indent=1))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("code", "severity", "finds"):
        table.add_column(column)
    for code in CODES.values():
        table.add_row(code.code, f"[{_STYLE[code.severity]}]{code.severity}[/]", escape(code.title))
    stdout().print(table)


def explain(word: str) -> None:
    """What the documentation says of one code."""
    code = CODES.get(word.upper())
    if code is None:
        near = aliases.nearest(word, CODES).replace("`", "")
        said = f"; {near}" if near else "."
        fail(f"there is no code {word!r}{said} See them all: attnbench tl codes", EXIT_USAGE)
    entry = _entry(code.code)
    if entry is None:  # installed without the documentation
        entry = f"{code.code} {code.title}\n\n{code.severity}. {code.fix}".rstrip(". ") + "."
    print(entry)


def _entry(code: str) -> str | None:
    """The code's section of the page, without Markdown's marks around headings."""
    try:
        page = DIAGNOSTICS_PAGE.read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(rf"^#+ ({code} .*?)(?=^#+ |\Z)", page, re.DOTALL | re.MULTILINE)
    return found[1].strip() if found else None
