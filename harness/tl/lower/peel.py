"""Owns which rounds of a loop need no mask: where every condition holds for a whole tile.

A condition is linear in the positions of the tile's rows and columns and in the loop variable, so
it holds for the whole tile where it holds in its worst corner, and that is a bound on the loop
variable. Sizes are symbols here; a bound is an expression over them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from harness.tl import ir
from harness.tl.evaluate import op

# A polynomial with integer coefficients: product of symbols, sorted -> coefficient. What is no
# polynomial (a quotient, a minimum) counts as a symbol of its own.
Poly = dict[tuple[ir.Expr, ...], int]


@dataclass(frozen=True, slots=True)
class Peeled:
    """Bounds on the loop variable: rounds from max(lows) up to, not including, min(highs) need no mask."""

    lows: tuple[ir.Expr, ...]
    highs: tuple[ir.Expr, ...]


class NotLinear(Exception):
    """A condition that gives no bound on the loop variable."""


def peel(loop: ir.For) -> Peeled | None:
    """The rounds of the loop in which no mask and no dead position plays a part; None: not known.

    Only operations directly in the loop's body count; with one inside a branch or an inner loop
    nothing is known.
    """
    lows: list[ir.Expr] = []
    highs: list[ir.Expr] = []
    try:
        for node in loop.body:
            if isinstance(node, ir.For | ir.If):
                inner = list(ir.nodes((node,)))
                if any(isinstance(n, ir.Mask) or axis_of(n) is not None for n in inner):
                    return None
            elif isinstance(node, ir.Mask):
                for atom in atoms(node.cond):
                    _bound(atom, node.tile.shape, loop, lows, highs)
            elif (axis := axis_of(node)) is not None:
                size = _columns(node)
                last = op("add", axis.base, size)
                _bound_linear(sub(poly(ir.Sym(axis.role)), poly(last)), loop, lows, highs)
    except NotLinear:
        return None
    return Peeled(tuple(dict.fromkeys(lows)), tuple(dict.fromkeys(highs)))


def alive(loop: ir.For) -> Peeled | None:
    """Bounds outside of which some mask of the body holds for no element; None: not known."""
    lows: list[ir.Expr] = []
    highs: list[ir.Expr] = []
    try:
        for node in loop.body:
            if isinstance(node, ir.Mask):
                for atom in atoms(node.cond):
                    _bound(atom, node.tile.shape, loop, lows, highs, worst=False)
    except NotLinear:
        return None
    return Peeled(tuple(dict.fromkeys(lows)), tuple(dict.fromkeys(highs)))


def axis_of(node: ir.Node) -> ir.Axis | None:
    """Where the columns that an operation sums over come from, if dead ones may be among them."""
    match node:
        case ir.Reduce(across=axis) | ir.Softmax(across=axis) | ir.Gemm(contracted=axis):
            return axis
        case _:
            return None


def _columns(node: ir.Node) -> ir.Expr:
    match node:
        case ir.Reduce(shape=shape):
            return shape[1]
        case ir.Softmax(tile=tile):
            return tile.shape[1]
        case ir.Gemm(a=a):
            if a.columns is not None and not a.transposed:
                return op("sub", a.columns[1], a.columns[0])
            return a.tile.shape[0] if a.transposed else a.tile.shape[1]
        case _:
            raise AssertionError(node)


def atoms(cond: ir.Expr) -> list[ir.Expr]:
    """The comparisons that must all hold; raises where it is no conjunction."""
    match cond:
        case ir.Op(fn="and", args=args):
            return [a for arg in args for a in atoms(arg)]
        case ir.Op(fn="lt" | "le" | "gt" | "ge"):
            return [cond]
        case ir.Op(fn="eq", args=(a, b)):
            return [ir.Op("le", (a, b)), ir.Op("ge", (a, b))]
        case ir.Op(fn="not", args=(ir.Op(fn=fn, args=args),)) if fn in _NEGATED:
            return [ir.Op(_NEGATED[fn], args)]
    raise NotLinear


_NEGATED = {"lt": "ge", "le": "gt", "gt": "le", "ge": "lt"}


def slack_of(atom: ir.Expr) -> Poly:
    """What is at least 0 where the comparison holds, on integers."""
    assert isinstance(atom, ir.Op)
    left, right = (poly(arg) for arg in atom.args)
    slack = sub(right, left) if atom.fn in ("lt", "le") else sub(left, right)
    return sub(slack, {(): 1}) if atom.fn in ("lt", "gt") else slack


def _bound(
    atom: ir.Expr,
    shape: tuple[ir.Expr, ir.Expr],
    loop: ir.For,
    lows: list[ir.Expr],
    highs: list[ir.Expr],
    worst: bool = True,
) -> None:
    """Where the comparison holds for the whole tile, by its worst corner; or for any of it, by its best."""
    _bound_linear(corner(slack_of(atom), shape, worst), loop, lows, highs)


def corner(slack: Poly, shape: tuple[ir.Expr, ir.Expr], worst: bool = True) -> Poly:
    """The least that a slack is in a tile, or the most; raises NotLinear where its positions do not tell."""
    for place in [s for s in symbols(slack) if isinstance(s, ir.Place)]:
        slack = dict(slack)
        coefficient = slack.pop((place,), 0)
        if any(place in product for product in slack):
            raise NotLinear
        at = poly(place.base)
        if (coefficient < 0) is worst:  # that corner is where the position is largest
            at = sub(add(at, poly(shape[place.axis])), {(): 1})
        slack = add(slack, times(at, {(): coefficient}))
    return slack


def by_round(slack: Poly, var: ir.Sym) -> tuple[Poly, Poly]:
    """What a slack grows by in each round of the loop over `var`, and the rest; raises NotLinear."""
    growth: Poly = {}
    rest: Poly = {}
    for product, coefficient in slack.items():
        if product.count(var) > 1 or any(p != var and var in set(ir.walk(p)) for p in product):
            raise NotLinear
        if var in product:
            left = list(product)
            left.remove(var)
            growth[tuple(left)] = coefficient
        else:
            rest[product] = coefficient
    return growth, rest


def _bound_linear(slack: Poly, loop: ir.For, lows: list[ir.Expr], highs: list[ir.Expr]) -> None:
    growth, rest = by_round(slack, ir.Sym(loop.var))
    if not growth:
        start, stop = loop.start, loop.stop
        highs.append(ir.Op("where", (ir.Op("ge", (expression(rest), ir.Const(0))), stop, start)))
    elif all(c > 0 for c in growth.values()):
        lows.append(op("ceildiv", expression(times(rest, {(): -1})), expression(growth)))
    elif all(c < 0 for c in growth.values()):
        upper = op("floordiv", expression(rest), expression(times(growth, {(): -1})))
        highs.append(op("add", upper, ir.Const(1)))
    else:
        raise NotLinear


def bounds(slack: Poly, loop: ir.For, positive: Collection[ir.Sym]) -> tuple[list[ir.Expr], list[ir.Expr]]:
    """Rounds in which a slack is at least 0: from a low on, or before a high; neither where all are alike.

    Raises NotLinear, also where what the loop variable is multiplied by may be no positive number, or where
    the elements of a tile differ.
    """
    var = ir.Sym(loop.var)
    differing = ir.Place | ir.Ref | ir.Element
    for product in slack:
        if any(isinstance(part, differing) for factor in product for part in ir.walk(factor)):
            raise NotLinear
        if var in product and not all(factor == var or factor in positive for factor in product):
            raise NotLinear
    lows: list[ir.Expr] = []
    highs: list[ir.Expr] = []
    if any(var in product for product in slack):
        _bound_linear(slack, loop, lows, highs)
    elif any(var in set(ir.walk(factor)) for product in slack for factor in product):
        raise NotLinear
    return lows, highs


# --- polynomials ------------------------------------------------------------------------------------


def poly(expr: ir.Expr) -> Poly:
    """The expression as a polynomial; raises for values that are no whole numbers."""
    match expr:
        case ir.Const(value=int() as value):
            return {(): value} if value else {}
        case ir.Const():
            raise NotLinear
        case ir.Op(fn="add", args=args):
            out: Poly = {}
            for arg in args:
                out = add(out, poly(arg))
            return out
        case ir.Op(fn="sub", args=(a, b)):
            return sub(poly(a), poly(b))
        case ir.Op(fn="neg", args=(a,)):
            return times(poly(a), {(): -1})
        case ir.Op(fn="mul", args=args):
            out = {(): 1}
            for arg in args:
                out = times(out, poly(arg))
            return out
        case ir.Sym() | ir.Place() | ir.Op(fn="floordiv" | "ceildiv" | "min" | "max" | "mod"):
            return {(expr,): 1}
    raise NotLinear


def add(a: Mapping[tuple[ir.Expr, ...], int], b: Mapping[tuple[ir.Expr, ...], int]) -> Poly:
    out = dict(a)
    for product, coefficient in b.items():
        out[product] = out.get(product, 0) + coefficient
    return {p: c for p, c in out.items() if c}


def times(a: Poly, b: Poly) -> Poly:
    out: Poly = {}
    for p, c in a.items():
        for p2, c2 in b.items():
            product = tuple(sorted((*p, *p2), key=repr))
            out[product] = out.get(product, 0) + c * c2
    return {p: c for p, c in out.items() if c}


def sub(a: Poly, b: Poly) -> Poly:
    return add(a, times(b, {(): -1}))


def symbols(p: Poly) -> Iterable[ir.Expr]:
    return dict.fromkeys(s for product in p for s in product)


def expression(p: Poly) -> ir.Expr:
    """The polynomial as an expression: what is added first, then what is taken away."""
    plus = [_term(product, c) for product, c in p.items() if c > 0]
    minus = [_term(product, -c) for product, c in p.items() if c < 0]
    total: ir.Expr = ir.Const(0)
    for term in plus:
        total = op("add", total, term)
    for term in minus:
        total = op("sub", total, term)
    return total


def _term(product: tuple[ir.Expr, ...], coefficient: int) -> ir.Expr:
    out: ir.Expr = ir.Const(coefficient)
    for symbol in product:
        out = op("mul", out, symbol)
    return out
