"""Owns a set of rounds that run together (small case, grid point, rounds of loops) and their scalars.

Every round is one element of flat integer arrays, so a loop is not run but unfolded: its body runs
once, for all rounds of all grid points of all small cases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.tl import ir

Array = NDArray[Any]
MOST_ROUNDS = 20_000


class Beyond(Exception):
    """The program is built in a way that this analysis does not follow: nothing is said about it."""


_FOLDED: dict[str, Callable[[Any, Any], Any]] = {
    "add": np.add,
    "mul": np.multiply,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.logical_and,
    "or": np.logical_or,
    "sub": np.subtract,
    "floordiv": np.floor_divide,
    "ceildiv": lambda a, b: -np.floor_divide(-a, b),
    "mod": np.mod,
    "div": np.divide,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
}


@dataclass(eq=False)
class Lanes:
    """`up`: the round of the parent that each round belongs to. `of_loop`: made by unfolding a loop."""

    n: int
    symbols: dict[str, Array]
    constants: Mapping[int, Array]  # lengths written as numbers, by small case
    parent: Lanes | None = None
    up: Array | None = None
    of_loop: bool = False
    written: frozenset[ir.Tile] = frozenset()  # what the loop's body writes
    tiles: dict[ir.Tile, object] = field(default_factory=dict)

    def symbol(self, name: str) -> Array:
        found = self.symbols.get(name)
        if found is None:
            if self.parent is None or self.up is None:
                raise Beyond
            found = self.symbols[name] = self.parent.symbol(name)[self.up]
        return found

    def scalar(self, expr: ir.Expr) -> Array:
        """Index arithmetic, one number for each round."""
        return np.broadcast_to(np.asarray(self._value(expr, None)), (self.n,))

    def values(self, expr: ir.Expr, shape: tuple[int, int]) -> Array:
        """An expression over positions, broadcastable to (rounds, rows, columns)."""
        found = np.asarray(self._value(expr, shape))
        return found.reshape((1,) * (3 - found.ndim) + found.shape)

    def _value(self, expr: ir.Expr, shape: tuple[int, int] | None) -> Any:
        match expr:
            case ir.Const(value=value):
                if isinstance(value, int) and value in self.constants:
                    found = self.constants[value][self.symbol("#case")]
                    return found if shape is None else found[:, None, None]
                return value
            case ir.Sym(name=name):
                found = self.symbol(name)
                return found if shape is None else found[:, None, None]
            case ir.Place(axis=axis, base=base) if shape is not None:
                along = np.arange(shape[axis])
                return self._value(base, shape) + (along[:, None] if axis == 0 else along)
            case ir.Op(fn=fn, args=args):
                values = [self._value(arg, shape) for arg in args]
                if fn in _FOLDED:
                    return reduce(_FOLDED[fn], values)
                if fn == "neg":
                    return -values[0]
                if fn == "not":
                    return np.logical_not(values[0])
                if fn == "abs":
                    return np.abs(values[0])
                if fn == "where":
                    return np.where(*values)
        raise Beyond

    def unfolded(self, loop: ir.For) -> tuple[Lanes, Array]:
        """All rounds of a loop, and which of them are the last of their loop."""
        start, stop, step = (self.scalar(x) for x in (loop.start, loop.stop, loop.step))
        if self.n and step.min() < 1:
            raise Beyond
        trips = np.maximum(0, -((start - stop) // step))
        total = int(trips.sum())
        if total > MOST_ROUNDS:
            raise Beyond
        up = np.repeat(np.arange(self.n), trips)
        turn = np.arange(total) - np.repeat(np.cumsum(trips) - trips, trips)
        written = frozenset(t for n in ir.nodes(loop.body) for t in ir.writes(n))
        var = {loop.var: start[up] + turn * step[up]}
        return Lanes(total, var, self.constants, self, up, True, written), turn == trips[up] - 1

    def part(self, index: Array) -> Lanes:
        """Those rounds only: a branch."""
        return Lanes(len(index), {}, self.constants, self, index)

    def path(self, to: Lanes) -> Array | None:
        """For each round the one of `to`, which must be this or be around it; None where it is not."""
        index, at = np.arange(self.n), self
        while at is not to:
            if at.parent is None or at.up is None:
                return None
            index, at = at.up[index], at.parent
        return index

    def matching(self, other: Lanes) -> Array:
        """For each round the one of `other` at the same place, -1 where there is none; raises Beyond."""
        direct = self.path(other)
        if direct is not None:
            return direct
        common = other
        while (mine := self.path(common)) is None:
            if common.of_loop or common.parent is None:
                raise Beyond
            common = common.parent
        there = other.path(common)
        assert there is not None
        back = np.full(common.n, -1)
        back[there] = np.arange(other.n)
        return back[mine]


def grid(kernel: ir.Kernel, cases: Mapping[str, Array], constants: Mapping[int, Array], count: int) -> Lanes:
    """One round for each grid point of each small case; `cases`: every symbol's value by case."""
    whole = Lanes(count, {**cases, "#case": np.arange(count)}, constants)
    extents = [np.maximum(0, whole.scalar(axis.extent)) for axis in kernel.grid]
    points = reduce(np.multiply, extents, np.ones(count, dtype=np.int64))
    total = int(points.sum())
    if total > MOST_ROUNDS:
        raise Beyond
    case = np.repeat(np.arange(count), points)
    left = np.arange(total) - np.repeat(np.cumsum(points) - points, points)
    symbols = {"#case": case}
    for axis, extent in zip(reversed(kernel.grid), reversed(extents), strict=True):
        size = extent[case]
        symbols[axis.name] = left % size
        left = left // size
    return Lanes(total, symbols, constants, whole, case)
