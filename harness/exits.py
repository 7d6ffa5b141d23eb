"""Owns how a command ends: its exit code, and the one sentence on standard error."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import NoReturn

EXIT_FOUND = 1  # a TL program has errors, or computes something else; a run was changed; a kernel is slower
EXIT_PENDING = 75  # questions wait for answers from outside, or cases to be measured once more
EXIT_NOT_COMPARABLE, EXIT_NO_REFERENCE = 5, 6  # of the gate: neither passed nor failed
EXIT_USAGE, EXIT_MACHINE, EXIT_STORE, EXIT_INTERRUPTED = 2, 3, 4, 130

# For the help of every command and docs/commands.md. What 1 means a command says itself.
MEANINGS: Mapping[int, str] = {
    0: "done",
    EXIT_FOUND: "something wrong was found",
    EXIT_USAGE: "wrong input",
    EXIT_MACHINE: "this machine cannot",
    EXIT_STORE: "a folder cannot be used or written",
    EXIT_NOT_COMPARABLE: "not comparable with the reference",
    EXIT_NO_REFERENCE: "there is no reference yet",
    EXIT_PENDING: "questions wait for answers from outside",
    EXIT_INTERRUPTED: "interrupted",
}


def fail(message: str, code: int) -> NoReturn:
    """Say what is wrong and leave."""
    from rich.console import Console  # completion of a command line does without
    from rich.markup import escape

    Console(stderr=True, highlight=False, soft_wrap=True).print(f"[red]attnbench:[/] {escape(message)}")
    sys.exit(code)
