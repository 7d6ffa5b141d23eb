"""Owns what a tile can hold in the abstract run of a kernel: rows of queries, scores, or sums over keys."""

from __future__ import annotations

from dataclasses import dataclass, field

from harness.tl import ir
from harness.tl.checks.lanes import Array, Lanes


@dataclass(frozen=True, slots=True)
class Loaded:
    """Rows of a task tensor, from position `row` of each round on."""

    role: str | None
    row: Array


@dataclass(frozen=True, slots=True)
class Scores:
    """`allow`: where it is not masked (rounds, rows, columns), None: everywhere. `exp`: after exp."""

    allow: Array | None = None
    exp: bool = False
    row: Array | None = None
    divisors: tuple[Sums, ...] = ()


@dataclass(frozen=True, slots=True)
class Entry:
    """Keys `base` + 0, 1, ... enter a sum where `allow`."""

    lanes: Lanes
    allow: Array | None
    base: Array
    row: Array | None
    shape: tuple[ir.Expr, ir.Expr]
    node: ir.Node


@dataclass(eq=False, slots=True)
class Sums:
    """An accumulator or a running sum; `lanes`: where it started."""

    lanes: Lanes
    entries: list[Entry] = field(default_factory=list)
    divisors: list[Sums] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Stored:
    """One Store to an output with what it holds; `sums` None: not known."""

    node: ir.Store
    lanes: Lanes
    row: Array
    sums: tuple[tuple[Entry, ...], ...] | None


def taken(held: object, index: Array) -> object:
    """What a tile holds in those rounds only."""
    match held:
        case Loaded(role=role, row=row):
            return Loaded(role, row[index])
        case Scores(allow=allow, exp=exp, row=row, divisors=divisors):
            whole = allow is not None and len(allow) > 1
            taken = allow[index] if allow is not None and whole else allow
            return Scores(taken, exp, row[index] if row is not None else None, divisors)
    return held
