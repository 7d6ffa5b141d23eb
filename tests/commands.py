"""Owns the tree of commands as typer knows it: for tests of help, of pages, and for docs/commands.md."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import typer.main

from harness.cli import app


@dataclass(frozen=True)
class Command:
    """A command by its words after `attnbench`; none: attnbench itself."""

    words: tuple[str, ...]
    command: Any

    @property
    def name(self) -> str:
        return " ".join(("attnbench", *self.words))

    @property
    def is_group(self) -> bool:
        return hasattr(self.command, "commands")

    @property
    def params(self) -> list[Any]:
        """Arguments, then options; without those that typer adds."""
        own = [p for p in self.command.params if p.name not in ("install_completion", "show_completion")]
        return sorted(own, key=lambda p: p.param_type_name != "argument")

    @property
    def examples(self) -> list[str]:
        """The command lines of its help, without comments."""
        lines = (self.command.epilog or "").splitlines()
        return [line.strip() for line in lines if line.startswith("    ")]


def commands() -> list[Command]:
    """All of them, each group before its own."""
    return list(_walk((), typer.main.get_command(app)))


def _walk(words: tuple[str, ...], command: Any) -> Iterator[Command]:
    yield Command(words, command)
    for name, inner in getattr(command, "commands", {}).items():
        yield from _walk((*words, name), inner)


def parse(words: list[str]) -> dict[str, Any]:
    """By the real command line, without running anything; raises what a user would see.

    Returns the values of all arguments and options by their names in Python.
    """
    command: Any = typer.main.get_command(app)
    values: dict[str, Any] = {}
    while True:
        with command.make_context(command.name, list(words)) as context:
            values |= {name: value for name, value in context.params.items() if value is not None}
            rest = [*context._protected_args, *context.args]
            if not hasattr(command, "resolve_command") or not rest:
                return values
            _, command, words = command.resolve_command(context, rest)
