"""Owns which iterations of a loop need no mask and no tail handling, as bounds on the loop variable.

A condition on positions is a conjunction of atoms, sum of a * q + b * k + rest >= 0 over integers.
An atom holds for a whole tile where it holds in the tile's worst corner, and the corner is linear in
the loop variable, so the atom is one bound on it: nothing is sampled, nothing is approximated.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import product

from harness.tl import ir
from harness.tl.evaluate import op, substitute
from harness.tl.problem import SIZES

# Products of symbols (or of expressions that are taken as one), sorted by text, with their factors.
Poly = dict[tuple[ir.Expr, ...], int]
ZERO, ONE = ir.Const(0), ir.Const(1)
_OFFSET = ("row inside the tile", "column inside the tile")  # no identifiers, so no symbol has these names
_OPPOSITE = {"lt": "ge", "ge": "lt", "gt": "le", "le": "gt", "ne": "eq", "eq": "ne"}


@dataclass(frozen=True, slots=True)
class Split:
    """Iterations of the loop from full_start up to, not including, full_stop need no mask and no tail.

    start <= full_start <= full_stop <= stop where the loop runs at all; both are on the loop's
    stride, or equal to its stop. So the loops [start, full_start), [full_start, full_stop),
    [full_stop, stop) in this order do what the one loop did.
    """

    full_start: ir.Expr
    full_stop: ir.Expr


class _NotLinear(Exception):
    """A condition that gives no bound on the loop variable."""


def split(
    loop: ir.For, kernel: ir.Kernel, known: Mapping[str, int] | None = None, ints: Collection[str] = ()
) -> Split | None:
    """Where the loop needs no masks; None where its conditions give no bounds.

    Counts every Mask in the body, every axis whose dead positions a reduction, softmax or GEMM must
    leave out, and every load that may read past the end because of the loop variable. `known` gives
    values of symbols (the chosen tile parameters, say); `ints` names integer parameters of the task.
    A mask that the loop variable does not move makes all iterations full or none.
    """
    values: dict[str, ir.Expr] = {name: ir.Const(value) for name, value in (known or {}).items()}
    start, stop, step = (substitute(e, values) for e in (loop.start, loop.stop, loop.step))
    scope = _Scope(loop, kernel, frozenset((*ints, *values)))
    lows: list[ir.Expr] = []
    highs: list[ir.Expr] = []
    if not scope.positive(_poly(step, scope) if _plain(step, scope) else {}):
        return None
    try:
        for slack in _slacks(loop.body, scope, values):
            low, high = _bound(slack, scope, start, stop)
            lows += low
            highs += high
    except _NotLinear:
        return None
    lows = [low for low in dict.fromkeys(lows) if low != start]
    first, last = start, stop
    if lows:
        first = _on_stride(op("min", op("max", start, *lows), stop), start, stop, step)
    if highs:
        last = _on_stride(op("max", first, op("min", stop, *dict.fromkeys(highs))), first, stop, step)
    return Split(first, last)


def _on_stride(bound: ir.Expr, origin: ir.Expr, stop: ir.Expr, step: ir.Expr) -> ir.Expr:
    """The first value at or after the bound that the loop takes, from `origin` on; at most stop."""
    if step == ONE:
        return bound
    steps = op("ceildiv", op("sub", bound, origin), step)
    return op("min", op("add", origin, op("mul", steps, step)), stop)


@dataclass(frozen=True, slots=True)
class _Scope:
    """What is known of symbols: the loop's, those that may stand in a bound, those that are positive."""

    loop: ir.For
    kernel: ir.Kernel
    ints: frozenset[str]

    @property
    def var(self) -> ir.Sym:
        return ir.Sym(self.loop.var)

    @property
    def inner(self) -> frozenset[str]:
        """Variables of loops inside, which mean nothing where the bounds are computed."""
        return frozenset(n.var for n in ir.nodes(self.loop.body) if isinstance(n, ir.For))

    @property
    def sizes(self) -> frozenset[str]:
        """Symbols that are at least 1: sizes of the task, and what sizes a tile."""
        shaped = (e for tile in self.kernel.tiles for extent in tile.shape for e in ir.walk(extent))
        return frozenset((*SIZES, "group", *(e.name for e in shaped if isinstance(e, ir.Sym))))

    @property
    def integral(self) -> frozenset[str]:
        outer = (n.var for n in ir.nodes(self.kernel.body) if isinstance(n, ir.For))
        return self.sizes | self.ints | {axis.name for axis in self.kernel.grid} | {*outer}

    def positive(self, poly: Poly) -> bool:
        """Whether the polynomial is certainly above zero."""
        return bool(poly) and all(
            factor > 0 and all(isinstance(s, ir.Sym) and s.name in self.sizes for s in symbols)
            for symbols, factor in poly.items()
        )


# --- conditions -------------------------------------------------------------------------------------


def _slacks(body: tuple[ir.Node, ...], scope: _Scope, values: Mapping[str, ir.Expr]) -> Iterator[Poly]:
    """What must be >= 0 at every element of every tile, over symbols and the offsets inside a tile."""
    for node in ir.nodes(body):
        match node:
            case ir.Mask():
                rows, cols = node.result.shape
                atoms = _atoms(substitute(node.cond, values), True)
            case ir.Reduce(across=ir.Axis() as axis):
                rows, cols, atoms = ONE, node.shape[1], [_alive(axis)]
            case ir.Softmax(across=ir.Axis() as axis):
                rows, cols, atoms = ONE, node.tile.shape[1], [_alive(axis)]
            case ir.Gemm(contracted=ir.Axis() as axis):
                rows, cols, atoms = ONE, node.b.tile.shape[1 if node.b.transposed else 0], [_alive(axis)]
                if node.b.transposed and node.b.columns is not None:
                    cols = op("sub", node.b.columns[1], node.b.columns[0])
            case ir.Load():
                yield from _tails(node, scope, values)
                continue
            case _:
                continue
        shape = (substitute(rows, values), substitute(cols, values))
        for atom in atoms:
            for slack in _lowest(substitute(atom, values), scope):
                yield _worst_corner(slack, shape, scope)


def _alive(axis: ir.Axis) -> ir.Expr:
    """size - position - 1, the position along the columns."""
    return ir.Op("sub", (ir.Sym(axis.role), ir.Op("add", (ir.Place(axis.role, 1, axis.base), ONE))))


def _tails(node: ir.Load, scope: _Scope, values: Mapping[str, ir.Expr]) -> Iterator[Poly]:
    """What must be >= 0 for a load to stay inside, along the axes that the loop moves."""
    rows = node.via.rows if node.via is not None else node.matrix.rows
    sides = ((node.row, rows, node.tile.shape[0]), (node.col, node.matrix.cols, node.tile.shape[1]))
    for first, extent, count in sides:
        if scope.var in ir.walk(first):
            for side in (op("sub", extent, op("add", first, count)), first):
                yield _poly(substitute(side, values), scope)


def _atoms(cond: ir.Expr, wanted: bool) -> list[ir.Expr]:
    """Integer expressions that are all >= 0 exactly where the condition is as wanted."""
    match cond:
        case ir.Const(value=value):
            return [ZERO if bool(value) is wanted else ir.Const(-1)]
        case ir.Op(fn="not", args=(x,)):
            return _atoms(x, not wanted)
        case ir.Op(fn="and" | "or" as fn, args=args):
            if (fn == "and") is not wanted and len(args) > 1:
                raise _NotLinear
            return [atom for arg in args for atom in _atoms(arg, wanted)]
        case ir.Op(fn=fn, args=(a, b)) if fn in _OPPOSITE:
            match fn if wanted else _OPPOSITE[fn]:
                case "le":
                    return [ir.Op("sub", (b, a))]
                case "lt":
                    return [ir.Op("sub", (ir.Op("sub", (b, a)), ONE))]
                case "ge":
                    return [ir.Op("sub", (a, b))]
                case "gt":
                    return [ir.Op("sub", (ir.Op("sub", (a, b)), ONE))]
                case "eq":
                    return [ir.Op("sub", (a, b)), ir.Op("sub", (b, a))]
    raise _NotLinear


def _worst_corner(slack: Poly, shape: tuple[ir.Expr, ir.Expr], scope: _Scope) -> Poly:
    """The slack where it is least over a tile of that shape."""
    for name, extent in zip(_OFFSET, shape, strict=True):
        growth, rest = _by(slack, ir.Sym(name))
        if not growth or scope.positive(growth):  # least at offset 0
            slack = rest
        elif scope.positive(_times(growth, {(): -1})):
            slack = _plus(rest, _times(growth, _plus(_poly(extent, scope), {(): -1})))
        else:
            raise _NotLinear
    return slack


def _bound(slack: Poly, scope: _Scope, start: ir.Expr, stop: ir.Expr) -> tuple[list[ir.Expr], list[ir.Expr]]:
    """Lower bounds and (exclusive) upper bounds on the loop variable under which the slack is >= 0."""
    growth, rest = _by(slack, scope.var)
    if any(part in _names(scope.inner) for key in slack for s in key for part in ir.walk(s)):
        raise _NotLinear
    if not growth:
        if not rest or (set(rest) == {()} and rest[()] >= 0):
            return [], []
        holds = ir.Op("ge", (_expression(rest), ZERO))
        return [], [ir.Op("where", (holds, stop, start))]
    if scope.positive(growth):
        return [
            ZERO if not rest else op("ceildiv", _expression(_times(rest, {(): -1})), _expression(growth))
        ], []
    shrink = _times(growth, {(): -1})
    if scope.positive(shrink):
        return [], [op("floordiv", _expression(_plus(rest, shrink)), _expression(shrink))]
    raise _NotLinear


def _names(names: frozenset[str]) -> set[ir.Expr]:
    return {ir.Sym(name) for name in names}


# --- integer polynomials ----------------------------------------------------------------------------


def _lowest(expr: ir.Expr, scope: _Scope) -> list[Poly]:
    """Polynomials whose minimum is the expression."""
    match expr:
        case ir.Op(fn="add", args=args):
            return [_total(parts) for parts in product(*(_lowest(a, scope) for a in args))]
        case ir.Op(fn="sub", args=(a, b)):
            return _lowest(ir.Op("add", (a, ir.Op("neg", (b,)))), scope)
        case ir.Op(fn="neg", args=(ir.Op(fn="max", args=args),)):
            return [p for a in args for p in _lowest(ir.Op("neg", (a,)), scope)]
        case ir.Op(fn="neg", args=(ir.Op(fn="add" | "sub" as fn, args=args),)):
            return _lowest(ir.Op(fn, tuple(ir.Op("neg", (a,)) for a in args)), scope)
        case ir.Op(fn="neg", args=(ir.Op(fn="neg", args=(a,)),)):
            return _lowest(a, scope)
        case ir.Op(fn="min", args=args):
            return [p for a in args for p in _lowest(a, scope)]
    return [_poly(expr, scope)]


def _poly(expr: ir.Expr, scope: _Scope) -> Poly:
    """The expression as a polynomial; what is not, but the same for all iterations, is one symbol."""
    match expr:
        case ir.Const(value=int() as value):
            return {(): int(value)} if value else {}
        case ir.Sym(name=name) if name in scope.integral or name in _OFFSET:
            return {(expr,): 1}
        case ir.Place(axis=axis, base=base):
            return _plus(_poly(base, scope), {(ir.Sym(_OFFSET[axis]),): 1})
        case ir.Op(fn="add", args=args):
            return _total(tuple(_poly(a, scope) for a in args))
        case ir.Op(fn="sub", args=(a, b)):
            return _plus(_poly(a, scope), _times(_poly(b, scope), {(): -1}))
        case ir.Op(fn="neg", args=(a,)):
            return _times(_poly(a, scope), {(): -1})
        case ir.Op(fn="mul", args=args):
            result: Poly = {(): 1}
            for arg in args:
                result = _times(result, _poly(arg, scope))
            return result
        case ir.Op() if _plain(expr, scope):
            return {(expr,): 1}
    raise _NotLinear


def _plain(expr: ir.Expr, scope: _Scope) -> bool:
    """Whether it is integer arithmetic that is the same for all elements and iterations."""
    for part in ir.walk(expr):
        match part:
            case ir.Const(value=int()) | ir.Op(fn="add" | "sub" | "mul" | "neg"):
                pass
            case ir.Op(fn="floordiv" | "ceildiv" | "mod" | "min" | "max" | "abs"):
                pass
            case ir.Sym(name=name) if name in scope.integral and part != scope.var:
                pass
            case _:
                return False
    return True


def _by(poly: Poly, symbol: ir.Sym) -> tuple[Poly, Poly]:
    """The polynomial as growth * symbol + rest; raises where the symbol occurs otherwise."""
    growth: Poly = {}
    rest: Poly = {}
    for symbols, factor in poly.items():
        others = tuple(s for s in symbols if s != symbol)
        if len(symbols) - len(others) > 1:
            raise _NotLinear
        (growth if len(others) < len(symbols) else rest)[others] = factor
    return growth, rest


def _plus(a: Poly, b: Poly) -> Poly:
    keys = dict.fromkeys((*a, *b))
    return {key: total for key in keys if (total := a.get(key, 0) + b.get(key, 0))}


def _total(parts: tuple[Poly, ...]) -> Poly:
    result: Poly = {}
    for part in parts:
        result = _plus(result, part)
    return result


def _times(a: Poly, b: Poly) -> Poly:
    result: Poly = {}
    for (key_a, x), (key_b, y) in product(a.items(), b.items()):
        result = _plus(result, {tuple(sorted((*key_a, *key_b), key=repr)): x * y})
    return result


def _expression(poly: Poly) -> ir.Expr:
    """The polynomial as index arithmetic: what is added first, then what is taken away."""
    result: ir.Expr = ZERO
    for symbols, factor in sorted(poly.items(), key=lambda item: item[1] < 0):
        term: ir.Expr = ir.Const(abs(factor))
        for symbol in symbols:
            term = op("mul", term, symbol)
        result = op("sub" if factor < 0 else "add", result, term)
    return result
