"""Owns when two sizes are the same: always, on some of the task's workloads, or never."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterable, Mapping
from enum import StrEnum
from functools import lru_cache
from typing import Any

from harness.tl import ir
from harness.tl.evaluate import evaluate
from harness.tl.problem import TaskLike, all_workloads, scalars

_PRIMES = tuple(p for p in range(11, 4000) if all(p % d for d in range(2, int(p**0.5) + 1)))
_COMBINATIONS = 48  # tile choices tried where two sizes differ in general


class Same(StrEnum):
    ALWAYS = "always"
    SOMETIMES = "sometimes"
    NEVER = "never"


class _Anything(dict[str, int]):
    """Every symbol has a value: a prime of its own, so that sizes which agree do so for a reason."""

    def __init__(self, round_: int) -> None:
        kv_heads, group = 5 + 2 * round_, 3 + 4 * round_
        super().__init__(kv_heads=kv_heads, group=group, heads=kv_heads * group)
        self._round = round_

    def __missing__(self, name: str) -> int:
        at = zlib.crc32(f"{name}{self._round}".encode())
        self[name] = value = _PRIMES[at % len(_PRIMES)]
        return value


_ROUNDS = tuple(_Anything(r) for r in range(3))


def equal(a: ir.Expr, b: ir.Expr) -> bool:
    """Whether two index expressions agree whatever the sizes."""
    return a == b or _equal(a, b)


@lru_cache(maxsize=4096)
def _equal(a: ir.Expr, b: ir.Expr) -> bool:
    try:
        return all(evaluate(a, env) == evaluate(b, env) for env in _ROUNDS)
    except (ValueError, ZeroDivisionError):
        return False


def compare(a: ir.Expr, b: ir.Expr, task: TaskLike | None, parameters: Mapping[str, tuple[int, ...]]) -> Same:
    """Whether two sizes agree always, for some workload and tile choice of the task, or for none."""
    if equal(a, b):
        return Same.ALWAYS
    if task is None:
        return Same.NEVER
    hits = total = 0
    for env in environments(task, parameters, symbols_of(a, b)):
        try:
            hits += evaluate(a, env) == evaluate(b, env)
        except (KeyError, ValueError, ZeroDivisionError):
            return Same.NEVER
        total += 1
    if hits == total and total:
        return Same.ALWAYS
    return Same.SOMETIMES if hits else Same.NEVER


def symbols_of(*exprs: ir.Expr) -> frozenset[str]:
    """Every symbol that the expressions mention."""
    return frozenset(x.name for e in exprs for x in ir.walk(e) if isinstance(x, ir.Sym))


def environments(
    task: TaskLike, parameters: Mapping[str, tuple[int, ...]], names: frozenset[str] | None = None
) -> Iterable[Mapping[str, Any]]:
    """Symbols' values on every shape of the task, with some choices of the tile parameters.

    With `names`, one for each set of values that those symbols take.
    """
    parameters = {p: c for p, c in parameters.items() if names is None or p in names}
    picks = itertools.islice(itertools.product(*parameters.values()), _COMBINATIONS)
    choices = [dict(zip(parameters, pick, strict=True)) for pick in picks]
    for values in _shapes(task, names):
        for choice in choices:
            yield {**values, **choice}


_SHAPES: dict[tuple[int, frozenset[str] | None], tuple[TaskLike, list[Mapping[str, Any]]]] = {}


def _shapes(task: TaskLike, names: frozenset[str] | None) -> list[Mapping[str, Any]]:
    """The distinct values of these symbols over the task's workloads; kept, since every comparison asks."""
    key = (id(task), names)
    if key not in _SHAPES or _SHAPES[key][0] is not task:
        if len(_SHAPES) > 1024:
            _SHAPES.clear()
        found: dict[tuple[Any, ...], Mapping[str, Any]] = {}
        for workload in all_workloads(task):
            values = scalars(workload)
            of = sorted(values) if names is None else sorted(names & values.keys())
            found.setdefault(tuple(values[n] for n in of), values)
        _SHAPES[key] = task, list(found.values())
    return _SHAPES[key][1]
