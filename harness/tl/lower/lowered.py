"""Owns what a compiler gives back: the files of a candidate, and the error for what it cannot lower."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from harness.tl import ir
from harness.tl.format import format_statement
from harness.tl.lower.carried import Carried
from harness.tl.syntax import NOWHERE, Pos, Statement


class LowerError(ValueError):
    """A program that a back end cannot lower; names the statement and what would help."""

    def __init__(self, message: str, source: Statement | None = None, fix: str = "") -> None:
        self.pos: Pos = source.pos if source is not None else NOWHERE
        self.statement = format_statement(source) if source is not None else ""
        self.fix = fix
        at = f"line {self.pos.line}: `{self.statement}`: " if source is not None else ""
        super().__init__(f"{at}{message}" + (f" ({fix})" if fix else ""))


@dataclass(frozen=True, slots=True)
class Lowered:
    """A candidate as text: file name -> content, `candidate.toml` among them."""

    name: str
    backend: str
    files: Mapping[str, str]
    choice: Mapping[str, int]
    carried: Carried

    @classmethod
    def of(
        cls, name: str, backend: str, code: Mapping[str, str], choice: Mapping[str, int], carried: Carried
    ) -> Lowered:
        """The code with what the candidate carries beside it."""
        return cls(name, backend, {**code, **carried.files}, choice, carried)

    def with_carried(self, carried: Carried) -> Lowered:
        """The same code, with something else said of where its choices came from."""
        return replace(self, files={**self.files, **carried.files}, carried=carried)

    def write(self, folder: Path) -> Path:
        """The files, in the folder (made if need be); returns the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in self.files.items():
            (folder / name).write_text(text, encoding="utf-8")
        return folder


def comment(node: ir.Node) -> str:
    """The TL statement that an operation comes from, for a comment above its code."""
    source = getattr(node, "source", None)
    return format_statement(source) if source is not None else ""
