"""Owns how a command ends: its exit code, and the one sentence on standard error."""

from __future__ import annotations

import sys
from typing import NoReturn

from rich.console import Console
from rich.markup import escape

EXIT_FOUND = 1  # a TL program has errors, or computes something else; a run was changed; a kernel is slower
EXIT_PENDING = 75  # questions wait for answers from outside, or cases to be measured once more
EXIT_NOT_COMPARABLE, EXIT_NO_REFERENCE = 5, 6  # of the gate: neither passed nor failed
EXIT_USAGE, EXIT_MACHINE, EXIT_STORE, EXIT_INTERRUPTED = 2, 3, 4, 130


def fail(message: str, code: int) -> NoReturn:
    """Say what is wrong and leave."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"[red]attnbench:[/] {escape(message)}")
    sys.exit(code)
