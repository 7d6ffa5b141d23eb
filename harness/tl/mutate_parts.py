"""Owns replacing one part of an expression, and what a statement reads and writes by its words alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, replace
from typing import Any, TypeVar

from harness.tl import syntax as s
from harness.tl.syntax import Expr, Level, Statement

T = TypeVar("T", bound=Statement)
Rule = Callable[[Expr], Iterable[Expr]]  # other expressions to stand in a part's place
_PARTS = (s.Num, s.Name, s.Unary, s.Binary, s.Compare, s.Call, s.Index, s.Transpose)


def variants(expr: Expr, rule: Rule) -> Iterator[Expr]:
    """The expression with one of its parts (or itself) replaced as the rule says, in every possible way."""
    yield from rule(expr)
    for at, part in enumerate(children := s.children(expr)):
        if isinstance(part, s.Slice):
            continue
        for new in variants(part, rule):
            yield _with_child(expr, (*children[:at], new, *children[at + 1 :]))


def _with_child(expr: Expr, parts: tuple[Any, ...]) -> Expr:
    match expr:
        case s.Unary() | s.Transpose():
            return replace(expr, x=parts[0])
        case s.Binary():
            return replace(expr, left=parts[0], right=parts[1])
        case s.Compare():
            return replace(expr, operands=parts)
        case s.Call():
            return replace(expr, args=parts)
        case s.Index():
            return replace(expr, base=parts[0], subscripts=parts[1:])
        case _:
            return expr


def altered(st: T, rule: Rule, *only: str) -> Iterator[T]:
    """The statement with one part of one of its expressions replaced; `only` names the fields to look at."""
    for item in fields(st):
        value = getattr(st, item.name)
        if (only and item.name not in only) or item.name in ("body", "then", "otherwise"):
            continue
        if isinstance(value, _PARTS):
            for new in variants(value, rule):
                yield _with_field(st, item.name, new)
        elif isinstance(value, tuple):
            for at, entry in enumerate(value):
                for changed in _entries(entry, rule):
                    yield _with_field(st, item.name, (*value[:at], changed, *value[at + 1 :]))


def _entries(entry: object, rule: Rule) -> Iterator[object]:
    if isinstance(entry, _PARTS):
        yield from variants(entry, rule)
    elif isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[1], _PARTS):
        for new in variants(entry[1], rule):
            yield (entry[0], new)


def _with_field(st: T, name: str, value: object) -> T:
    changes: dict[str, Any] = {name: value}
    return replace(st, **changes)


def expressions(st: Statement) -> Iterator[Expr]:
    """All expressions that stand directly in the statement."""
    for item in fields(st):
        value = getattr(st, item.name)
        for entry in value if isinstance(value, tuple) else (value,):
            if isinstance(entry, _PARTS):
                yield entry
            elif isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[1], _PARTS):
                yield entry[1]


def target(st: Statement) -> str | None:
    """The tile that a Compute gives a value."""
    match st:
        case s.Infix(name=name):
            return name
        case s.Compute(accumulate=str(name)):
            return name
        case s.Compute(get=(first, *_)):
            return first.name
        case s.Compute(operands=(s.Name(id=name), *_)):
            return name
        case _:
            return None


def sources(st: Statement) -> set[str]:
    """The names whose values a Compute, a Reshape or a copy between levels of a block needs."""
    match st:
        case s.Infix(value=value, name=name, op=op):
            return s.names(value) | ({name} if op != "=" else set())
        case s.Compute():
            named = [s.names(x) for x in (*st.operands, *((st.where,) if st.where is not None else ()))]
            return set().union(*named, st.rescale, {st.accumulate} if st.accumulate else set())
        case s.Reshape(name=name):
            return {name}
        case s.Copy(name=name, source=source) if source is not Level.GLOBAL:
            return {name}
        case _:
            return set()


# --- small expressions ------------------------------------------------------------------------------------


def named(expr: Expr | None, *ids: str) -> bool:
    return isinstance(expr, s.Name) and expr.id in ids


def is_number(expr: Expr | None, value: int) -> bool:
    return isinstance(expr, s.Num) and expr.value == value


def is_minus_infinity(expr: Expr | None) -> bool:
    return isinstance(expr, s.Unary) and expr.op == "-" and named(expr.x, "inf", "infinity", "infty")


def shifted(expr: Expr, by: int) -> Expr:
    """The expression plus or minus a whole number."""
    return s.Binary("+" if by > 0 else "-", expr, s.Num(abs(by)))


def exchanged(a: str, b: str) -> Rule:
    """Every single `a` becomes `b`."""
    return lambda expr: (s.Name(b),) if named(expr, a) else ()
