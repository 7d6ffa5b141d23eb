"""Owns what a finding is and the list of all codes; the words for a place are given by who finds it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from harness.tl.syntax import Pos


class Severity(StrEnum):
    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to say about a program: what, where, and what to do about it."""

    code: str
    severity: Severity
    pos: Pos
    message: str
    fix: str = ""

    @property
    def is_error(self) -> bool:
        return self.severity is Severity.ERROR


@dataclass(frozen=True, slots=True)
class Code:
    """What a code stands for; `fix` serves where the place gives none of its own."""

    code: str
    title: str
    severity: Severity
    fix: str


class TLError(ValueError):
    """A program that cannot be used; holds the findings that say why."""

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.findings = tuple(findings)
        first = next((f for f in self.findings if f.is_error), None) or next(iter(self.findings), None)
        if first is None:
            text = "the program cannot be used"
        else:
            fix = f" ({first.fix})" if first.fix else ""
            text = f"line {first.pos.line}, column {first.pos.column}: {first.code}: {first.message}{fix}"
        more = sum(f.is_error for f in self.findings) - 1
        super().__init__(text + (f"; and {more} more" if more > 0 else ""))


def finding(code: str, pos: Pos, message: str, fix: str = "", severity: Severity | None = None) -> Finding:
    """A finding with the severity and the fix that its code has by default."""
    known = CODES[code]
    return Finding(code, severity or known.severity, pos, message, fix or known.fix)


_E, _W, _N = Severity.ERROR, Severity.WARNING, Severity.NOTE

CODES: dict[str, Code] = {
    c.code: c
    for c in (
        Code("TL001", "syntax error", _E, "every line is one statement; see the table of statements"),
        Code("TL002", "block left open", _E, "close every `for` and `if` with `end`"),
        Code("TL003", "stray end", _E, "remove it, or open the block that it should close"),
        Code("TL004", "alias resolved", _N, ""),
        Code("TL005", "inferred", _N, ""),
    )
}
