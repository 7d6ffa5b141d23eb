"""Owns what is known of the ends of loops, on integers: what a bound cannot exceed, and what it reaches.

Sizes are symbols here; what is known is a polynomial over them. A product of positive symbols is at least 1.
"""

from __future__ import annotations

from collections.abc import Collection

from harness.tl import ir
from harness.tl.lower.peel import NotLinear, Poly, add, poly, sub, times

LENGTHS = frozenset({ir.Sym("seq_q"), ir.Sym("seq_k")})


def positive_in(kernel: ir.Kernel) -> frozenset[ir.Sym]:
    """Symbols that are at least 1: sizes of tiles, and the lengths of queries and keys."""
    shapes = [size for tile in kernel.tiles for size in tile.shape]
    return LENGTHS | {part for size in shapes for part in ir.walk(size) if isinstance(part, ir.Sym)}


def highs(stop: ir.Expr, by: Poly) -> list[Poly]:
    """What `stop`, a positive number, times the positive `by` is known not to exceed."""
    match _bare(stop):
        case ir.Op(fn="max", args=args):
            left = [a for a in args if not _never_positive(a)]
            return highs(left[0], by) if len(left) == 1 else []
        case ir.Op(fn="min", args=args):
            return [high for a in args for high in highs(a, by)]
        case ir.Op(fn="floordiv", args=(number, divisor)) if poly(divisor) == by:
            return _tops(number)
        case ir.Op(fn="ceildiv", args=(number, divisor)) if poly(divisor) == by:
            return [sub(add(top, by), {(): 1}) for top in _tops(number)]
    return [times(poly(stop), by)]


def _tops(number: ir.Expr) -> list[Poly]:
    """What a positive number is known not to exceed."""
    match number:
        case ir.Op(fn="max", args=args):
            left = [a for a in args if not _never_positive(a)]
            return _tops(left[0]) if len(left) == 1 else []
        case ir.Op(fn="min", args=args):
            return [top for a in args for top in _tops(a)]
    return [poly(number), *_without_minimum(poly(number))]


def _without_minimum(number: Poly) -> list[Poly]:
    """What a number with a minimum in it does not exceed: the same with each of what that is the least of."""
    for product, coefficient in number.items():
        match product:
            case (ir.Op(fn="min", args=args) as least,) if coefficient > 0:
                rest = sub(number, {(least,): coefficient})
                return [add(rest, times(poly(a), {(): coefficient})) for a in args]
    return []


def lows(start: ir.Expr, by: Poly, stop: ir.Expr) -> list[Poly]:
    """What `start`, less than `stop`, times the positive `by` is known to reach."""
    match _bare(before(start, stop)):
        case ir.Op(fn="max", args=args):
            return [low for a in args for low in lows(a, by, stop)]
        case ir.Op(fn="ceildiv", args=(number, divisor)) if poly(divisor) == by:
            return _bottoms(number)
        case ir.Op(fn="floordiv", args=(number, divisor)) if poly(divisor) == by:
            return [add(sub(low, by), {(): 1}) for low in _bottoms(number)]
        case ir.Op(fn="min" | "where"):
            return []
    return [times(poly(start), by)]


def _bottoms(number: ir.Expr) -> list[Poly]:
    """What a number is known to reach."""
    match number:
        case ir.Op(fn="max", args=args):
            return [low for a in args for low in _bottoms(a)]
        case ir.Op(fn="min"):
            return []
    return [poly(number)]


def _bare(number: ir.Expr) -> ir.Expr:
    """What it is when sums and products around it do nothing."""
    match list(poly(number).items()):
        case [((ir.Op() as only,), 1)]:
            return only
    return number


def at_least_0(number: Poly, positive: Collection[ir.Sym]) -> bool:
    """Whether the number is known to be: it is at least the sum of its coefficients, if none is below 0."""
    products = [(product, c) for product, c in number.items() if product]
    known = all(c > 0 and all(factor in positive for factor in product) for product, c in products)
    return known and sum(number.values()) >= 0


def never_negative(number: ir.Expr, positive: Collection[ir.Sym]) -> bool:
    """Whether the number is known not to be below 0, by how it is written."""
    match number:
        case ir.Const(value=int() as value):
            return value >= 0
        case ir.Sym():
            return number in positive
        case ir.Op(fn="max", args=args):
            return any(never_negative(a, positive) for a in args)
        case ir.Op(fn="min" | "add" | "mul", args=args):
            return all(never_negative(a, positive) for a in args)
        case ir.Op(fn="floordiv" | "ceildiv", args=(a, ir.Sym() as b)):
            return b in positive and never_negative(a, positive)
        case ir.Op(fn="floordiv" | "ceildiv", args=(a, ir.Const(value=int() as value))):
            return value > 0 and never_negative(a, positive)
    return False


def before(number: ir.Expr, stop: ir.Expr) -> ir.Expr:
    """What min(stop, x) is where it is less than `stop`: x. Another number is itself."""
    match number:
        case ir.Op(fn="min", args=(a, b)) if stop in (a, b):
            return b if a == stop else a
    return number


def counts_from_0(loop: ir.For, positive: Collection[ir.Sym]) -> bool:
    """Whether no round has a negative number; a loop from where it stops has none."""
    return never_negative(before(loop.start, loop.stop), positive)


def _never_positive(number: ir.Expr) -> bool:
    return isinstance(number, ir.Const) and isinstance(number.value, int) and number.value <= 0


def within(
    loop: ir.For, size: ir.Sym, columns: ir.Expr, positive: Collection[ir.Sym], row: ir.GridAxis
) -> bool:
    """Whether no round begins at or past `size`, if `columns` times the variable is where one begins.

    `row` counts tiles of query rows, so the first row of a tile is one of them.
    """
    if not counts_from_0(loop, positive):
        return False
    room = sub(add(poly(size), poly(columns)), {(): 1})
    match row.extent:
        case ir.Op(fn="ceildiv", args=(rows, tile)):
            first, most = times(poly(ir.Sym(row.name)), poly(tile)), sub(poly(rows), {(): 1})
        case _:
            first, most = {}, {}

    def inside(stop: ir.Expr) -> bool:
        match _bare(stop):
            case ir.Op(fn="max", args=args):
                return all(_never_positive(a) or inside(a) for a in args)
            case ir.Op(fn="min", args=args):
                return any(inside(a) for a in args)
        return any(
            at_least_0(_least(sub(room, high), first, most), positive) for high in highs(stop, poly(columns))
        )

    try:
        return inside(loop.stop)
    except NotLinear:
        return False


def _least(number: Poly, first: Poly, most: Poly) -> Poly:
    """The least that a number can be where it falls with what `most` limits: `first`, one product."""
    taken = [c for product, c in number.items() if product in first and c < 0]
    return add(sub(number, times(first, {(): taken[0]})), times(most, {(): taken[0]})) if taken else number
