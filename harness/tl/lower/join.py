"""Owns loops joined in one where they do the same but for masks that change nothing.

Who writes `for j = 0 : full` without a mask and `for j = full : tiles` with one has split by hand what the
compiler splits by itself, and a pipeline has to drain in between. One loop with the mask does the same rounds
in the same order, if the mask holds for the whole tile in every round that had none; that is proved here from
the bounds, on integers, or the loops stay.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from harness.tl import ir, syntax
from harness.tl.evaluate import op
from harness.tl.lower.extremes import (
    at_least_0,
    before,
    counts_from_0,
    highs,
    lows,
    never_negative,
    positive_in,
)
from harness.tl.lower.peel import NotLinear, Poly, add, atoms, by_round, corner, slack_of, sub, times
from harness.tl.lower.rewrite import renamed, rewritten

ONE = ir.Const(1)


def join(kernel: ir.Kernel) -> ir.Kernel:
    """The kernel with neighbouring loops that count by one joined where that changes nothing."""
    return replace(kernel, body=_joined(kernel.body, positive_in(kernel)))


def _joined(nodes: Sequence[ir.Node], positive: Collection[ir.Sym]) -> tuple[ir.Node, ...]:
    found: list[ir.Node] = []
    for node in nodes:
        match node:
            case ir.If(then=then, otherwise=otherwise):
                node = replace(node, then=_joined(then, positive), otherwise=_joined(otherwise, positive))
            case ir.For(body=body):
                node = replace(node, body=_joined(body, positive))
                if found and isinstance(found[-1], ir.For):
                    both = _both(found[-1], node, positive)
                    if both is not None:
                        found.pop()
                        node = both
        found.append(node)
    return tuple(found)


def _both(first: ir.For, then: ir.For, positive: Collection[ir.Sym]) -> ir.For | None:
    """One loop for two, None where that may do something else."""
    if (first.stop, first.step, then.step) != (then.start, ONE, ONE):
        return None
    if then.var != first.var:
        if _mentions(then, ir.Sym(first.var)):
            return None
        body = tuple(renamed(n, {then.var: ir.Sym(first.var)}) for n in then.body)
        then = replace(then, var=first.var, body=body)
    stop = _end(first, then, positive)
    union = _union(first.body, then.body)
    if stop is None or union is None:
        return None
    alike = all(
        _always(asked, loop, positive)
        for loop, added in ((first, union.in_first), (then, union.in_then))
        for asked in added
    )
    return replace(first, stop=stop, body=union.body, source=_told(first, then)) if alike else None


def _told(first: ir.For, then: ir.For) -> syntax.Statement | None:
    """The statement that stands for both."""
    if isinstance(first.source, syntax.For) and isinstance(then.source, syntax.For):
        return replace(first.source, stop=then.source.stop)
    return first.source


def _mentions(node: ir.Node, symbol: ir.Sym) -> bool:
    found: set[ir.Expr] = set()

    def seen(expr: ir.Expr) -> ir.Expr:
        found.update(ir.walk(expr))
        return expr

    rewritten(node, lambda tile: tile, seen)
    return symbol in found


def _end(first: ir.For, then: ir.For, positive: Collection[ir.Sym]) -> ir.Expr | None:
    """Where one loop from the first's start has to stop; None where there may be no such place.

    A loop that was cut meets its other part at min(stop, max(start, ...)): both have rounds within its bounds
    only. Else the first must not begin behind where it stops, as a loop may that has no rounds.
    """

    def follows(number: ir.Expr) -> bool:
        from_0 = first.start == ir.Const(0) and never_negative(number, positive)
        return from_0 or _reaches(first.start, number)

    middle = before(first.stop, then.stop)
    if middle != first.stop and follows(middle):
        return then.stop
    return op("max", first.stop, then.stop) if follows(first.stop) else None


def _reaches(least: ir.Expr, number: ir.Expr) -> bool:
    """Whether the number is written as the greater of it and others."""
    return isinstance(number, ir.Op) and number.fn == "max" and least in number.args


# --- bodies -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Union:
    """`in_first`, `in_then`: the comparisons that each of the two loops has got from the other's masks."""

    body: tuple[ir.Node, ...]
    in_first: tuple[_Asked, ...]
    in_then: tuple[_Asked, ...]


@dataclass(frozen=True, slots=True)
class _Asked:
    """Whether a comparison holds for all of a tile; the same one asks something else of another tile."""

    atom: ir.Expr
    tile: ir.Tile


def _union(first: Sequence[ir.Node], then: Sequence[ir.Node]) -> _Union | None:
    """One body with the masks of both; None where they differ in anything else."""
    body: list[ir.Node] = []
    in_first: list[_Asked] = []
    in_then: list[_Asked] = []
    left, right = list(first), list(then)
    while left or right:
        if left and right and left[0] == right[0]:
            body.append(left.pop(0))
            right.pop(0)
            continue
        mine, theirs = _masks(left), _masks(right)
        if any(isinstance(e, ir.Ref) for mask in (*mine, *theirs) for e in ir.walk(mask.cond)):
            return None  # what it reads may be what another mask writes, and their order is not kept
        try:
            own, other = (list(map(_asked, masks)) for masks in (mine, theirs))
        except NotLinear:
            return None
        if not mine and not theirs:
            return None
        body += [*mine, *(m for m in theirs if m not in mine)]
        has, lacks = [a for asked in own for a in asked], [a for asked in other for a in asked]
        in_first += [a for a in lacks if a not in has]
        in_then += [a for a in has if a not in lacks]
    return _Union(tuple(body), tuple(in_first), tuple(in_then))


def _masks(nodes: list[ir.Node]) -> list[ir.Mask]:
    """Those that the list begins with, which are taken from it."""
    found: list[ir.Mask] = []
    while nodes and isinstance(nodes[0], ir.Mask) and nodes[0].tile == nodes[0].result:
        found.append(nodes[0])
        nodes.pop(0)
    return found


def _asked(mask: ir.Mask) -> list[_Asked]:
    return [_Asked(atom, mask.tile) for atom in atoms(mask.cond)]


def _always(asked: _Asked, loop: ir.For, positive: Collection[ir.Sym]) -> bool:
    """Whether it is known to hold in every round of the loop."""
    try:
        return _holds(corner(slack_of(asked.atom), asked.tile.shape), loop, positive)
    except NotLinear:
        return False


def _holds(slack: Poly, loop: ir.For, positive: Collection[ir.Sym]) -> bool:
    growth, rest = by_round(slack, ir.Sym(loop.var))
    if not all(factor in positive for product in growth for factor in product):
        return False
    if not growth:
        return at_least_0(rest, positive)
    if all(c > 0 for c in growth.values()):  # least in the first round
        return any(at_least_0(add(rest, low), positive) for low in lows(loop.start, growth, loop.stop))
    if all(c < 0 for c in growth.values()) and counts_from_0(loop, positive):  # in the last
        fall = times(growth, {(): -1})
        return any(at_least_0(sub(add(rest, fall), high), positive) for high in highs(loop.stop, fall))
    return False
