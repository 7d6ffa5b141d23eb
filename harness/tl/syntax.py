"""Owns the syntax tree of LLM-TL: what was written, where; knows nothing of what it means.

Every node is immutable. Positions do not take part in comparison, so two texts that say the
same compare equal.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class Pos:
    """Where something stands in the text, both counted from 1."""

    line: int
    column: int


NOWHERE = Pos(0, 0)


def _pos() -> Pos:
    return field(default=NOWHERE, compare=False, repr=False, kw_only=True)


class Level(StrEnum):
    """Where a tile or a matrix lives."""

    GLOBAL = "global"
    SHARED = "shared"
    REGISTER = "register"


# --- expressions ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Num:
    value: int | float
    pos: Pos = _pos()


@dataclass(frozen=True, slots=True)
class Name:
    id: str
    pos: Pos = _pos()


@dataclass(frozen=True, slots=True)
class Unary:
    op: str  # "-" or "not"
    x: Expr
    pos: Pos = _pos()


@dataclass(frozen=True, slots=True)
class Binary:
    op: str  # + - * / // % ** @ and or
    left: Expr
    right: Expr
    pos: Pos = _pos()


@dataclass(frozen=True, slots=True)
class Compare:
    """A chain as in Python: `0 <= q - k < window` has three operands and two operators."""

    ops: tuple[str, ...]  # < <= > >= == !=
    operands: tuple[Expr, ...]
    pos: Pos = _pos()


@dataclass(frozen=True, slots=True)
class Call:
    fn: str
    args: tuple[Expr, ...]
    pos: Pos = _pos()


@dataclass(frozen=True, slots=True)
class Slice:
    """`a:b`; None is the open end."""

    start: Expr | None
    stop: Expr | None
    pos: Pos = _pos()


@dataclass(frozen=True, slots=True)
class Index:
    """`slope[h]`, or `KV[:, 0:dim_v]`, a part of a tile."""

    base: Expr
    subscripts: tuple[Expr | Slice, ...]
    pos: Pos = _pos()


@dataclass(frozen=True, slots=True)
class Transpose:
    x: Expr
    pos: Pos = _pos()


Expr = Num | Name | Unary | Binary | Compare | Call | Index | Transpose


# --- statements ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Comment:
    """`inline`: on the line of the statement before it."""

    text: str
    inline: bool = False
    pos: Pos = _pos()


@dataclass(frozen=True, slots=True)
class Let:
    name: str
    value: Expr
    pos: Pos = _pos()


@dataclass(frozen=True, slots=True)
class Tile:
    """Tile parameters with their choices, in the order written; one choice is a constant."""

    parameters: tuple[tuple[str, tuple[int, ...]], ...]
    pos: Pos = _pos()


@dataclass(frozen=True, slots=True)
class Grid:
    axes: tuple[tuple[str, Expr], ...]
    pos: Pos = _pos()


@dataclass(frozen=True, slots=True)
class Allocate:
    name: str
    level: Level
    shape: tuple[Expr, ...]
    dtype: str | None = None
    offset: tuple[Expr, ...] = ()
    init: Expr | None = None
    workspace: bool = False
    pos: Pos = _pos()


@dataclass(frozen=True, slots=True)
class Copy:
    """A move of a tile between levels. `coordinate`: (L, C, row or col; expression) pairs."""

    name: str
    source: Level
    target: Level
    shape: tuple[Expr, ...] = ()
    coordinate: tuple[tuple[str, Expr], ...] = ()
    pad: Expr | None = None
    via: str | None = None
    pos: Pos = _pos()


@dataclass(frozen=True, slots=True)
class Get:
    name: str
    new: bool = False


@dataclass(frozen=True, slots=True)
class Compute:
    """`Compute Op operands` with its clauses; `Copy a and get b` is read as `Compute Assign a and get b`."""

    op: str
    operands: tuple[Expr, ...] = ()
    get: tuple[Get, ...] = ()
    accumulate: str | None = None
    rescale: tuple[str, ...] = ()
    where: Expr | None = None
    to: str | None = None  # the dtype of a Cast
    pos: Pos = _pos()


@dataclass(frozen=True, slots=True)
class Infix:
    """`Compute X = expr`, or with += -= *= /=."""

    name: str
    value: Expr
    op: str = "="
    pos: Pos = _pos()


@dataclass(frozen=True, slots=True)
class Reshape:
    name: str
    source: tuple[Expr, ...]
    target: tuple[Expr, ...]
    pos: Pos = _pos()


@dataclass(frozen=True, slots=True)
class For:
    var: str
    start: Expr
    stop: Expr
    body: tuple[Statement, ...]
    step: Expr | None = None
    pos: Pos = _pos()


@dataclass(frozen=True, slots=True)
class If:
    condition: Expr
    then: tuple[Statement, ...]
    otherwise: tuple[Statement, ...] = ()
    pos: Pos = _pos()


@dataclass(frozen=True, slots=True)
class Schedule:
    """Advice to a compiler: key and its choices (`true` where only the key was written)."""

    items: tuple[tuple[str, tuple[int | str, ...]], ...]
    pos: Pos = _pos()


Statement = Comment | Let | Tile | Grid | Allocate | Copy | Compute | Infix | Reshape | For | If | Schedule


@dataclass(frozen=True, slots=True)
class Kernel:
    """One launch. `name` is None where the text names none."""

    name: str | None
    body: tuple[Statement, ...]
    pos: Pos = _pos()


@dataclass(frozen=True, slots=True)
class Program:
    """Kernels that run in the order written."""

    kernels: tuple[Kernel, ...]

    @property
    def name(self) -> str:
        return next((k.name for k in self.kernels if k.name), "program")


def statements(body: tuple[Statement, ...]) -> Iterator[Statement]:
    """Every statement, those inside loops and branches too, in the order of the text."""
    for statement in body:
        yield statement
        if isinstance(statement, For):
            yield from statements(statement.body)
        elif isinstance(statement, If):
            yield from statements(statement.then)
            yield from statements(statement.otherwise)


def children(expr: Expr | Slice) -> tuple[Expr | Slice, ...]:
    """The direct parts of an expression."""
    match expr:
        case Unary(x=x) | Transpose(x=x):
            return (x,)
        case Binary(left=left, right=right):
            return (left, right)
        case Compare(operands=operands):
            return operands
        case Call(args=args):
            return args
        case Index(base=base, subscripts=subscripts):
            return (base, *subscripts)
        case Slice(start=start, stop=stop):
            return tuple(part for part in (start, stop) if part is not None)
        case _:
            return ()


def walk(expr: Expr | Slice) -> Iterator[Expr | Slice]:
    """The expression and all its parts."""
    yield expr
    for part in children(expr):
        yield from walk(part)


def names(expr: Expr | Slice) -> set[str]:
    """Every name that the expression mentions (functions it calls are none)."""
    return {part.id for part in walk(expr) if isinstance(part, Name)}
