"""Owns changes of verdicts between two runs: what was right and is not, and the other way round."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from harness.verdicts import Verdict
from reports.changes.pairs import CellPair
from reports.dataset import Row

RIGHT = frozenset({Verdict.OK, Verdict.PROVEN})


class Turn(StrEnum):
    """What a change of a verdict means, the gravest first."""

    BROKE = "right -> wrong"
    MENDED = "wrong -> right"
    OTHERWISE = "fails otherwise"
    TIMED = "right; timed in one run only"
    APART = "not run in one of the two"


ORDER = tuple(Turn)


@dataclass(frozen=True)
class VerdictChange:
    """One contender in one cell whose verdict is another."""

    pair: CellPair
    before: Row
    after: Row
    turn: Turn

    @property
    def reason(self) -> str:
        """Why it is not right, of the later run first."""
        return self.after.result.reason or self.before.result.reason


def verdict_changes(pairs: Iterable[CellPair]) -> tuple[VerdictChange, ...]:
    """Every changed verdict, the gravest first, else in the order of the first run."""
    found = [
        VerdictChange(pair, a, b, _turn(a, b))
        for pair in pairs
        for a, b in pair.rows
        if a.result.verdict is not b.result.verdict
    ]
    return tuple(sorted(found, key=lambda c: ORDER.index(c.turn)))


def _turn(a: Row, b: Row) -> Turn:
    if not (a.counted and b.counted):
        return Turn.APART
    right = a.result.verdict in RIGHT, b.result.verdict in RIGHT
    return {
        (True, False): Turn.BROKE,
        (False, True): Turn.MENDED,
        (False, False): Turn.OTHERWISE,
        (True, True): Turn.TIMED,
    }[right]
