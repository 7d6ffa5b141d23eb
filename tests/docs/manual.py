"""Owns docs/commands.md below its marker: what typer knows of every command, as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.commands import Command, commands

PAGE = Path(__file__).parents[2] / "docs" / "commands.md"
MARK = "<!-- below: written from the commands' own help by UPDATE_GOLDEN=1 pytest tests/docs/test_manual.py -->\n"


def page(written: str) -> str:
    """The page with everything below the marker as it is today."""
    head, mark, _ = written.partition(MARK)
    assert mark, f"docs/commands.md has lost its marker:\n{MARK}"
    return head + mark + "\n" + "\n".join(_section(c) for c in commands())


def _section(c: Command) -> str:
    level = "##" if len(c.words) < 2 else "###"
    parts = [f"{level} {c.name}", _flowed(c.command.help)]
    parts.append("\n".join(_usage(c)))
    if rows := [_row(c, p) for p in c.params if p.name != "help"]:
        parts.append("\n".join(["| argument or option | meaning |", "|---|---|", *rows]))
    parts.append(_flowed(c.command.epilog or ""))
    return "\n\n".join(parts) + "\n"


def _usage(c: Command) -> Iterator[str]:
    words = [c.name]
    for p in (p for p in c.params if p.param_type_name == "argument"):
        words.append(p.metavar if p.required else f"[{p.metavar}]")
    for p in (p for p in c.params if p.param_type_name != "argument" and p.required):
        words.append(f"{p.opts[0]} {p.metavar}")
    words += ["COMMAND"] * c.is_group
    yield from ("```text", " ".join([*words, "[OPTIONS]"]), "```")


def _row(c: Command, p: Any) -> str:
    is_argument = p.param_type_name == "argument"
    name = p.metavar if is_argument else " ".join(filter(None, (p.opts[0], p.metavar)))
    told = " ".join(p.help.split())
    if p.required:
        told += " Needed."
    elif p.default not in (None, "", False, []):
        told += f" Default: `{getattr(p.default, 'value', p.default)}`."
    return f"| `{name}` | {told.replace('|', chr(92) + '|')} |"


def _flowed(text: str) -> str:
    """Paragraphs on lines of their own, blocks of code as they are."""
    parts = re.split(r"\n\s*\n", "\n".join(line.rstrip() for line in (text or "").splitlines()))
    return "\n\n".join(p if p.startswith("    ") else " ".join(p.split()) for p in parts)
