"""Owns a kernel as one warpgroup of a block sees it: 64 rows of the tile, loops that count by one.

The producer follows the kernel of whole tiles, a consumer that of its rows; both have the same loops.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from harness.tl import ir
from harness.tl.evaluate import op
from harness.tl.lower.copies import without_copies
from harness.tl.lower.lowered import LowerError
from harness.tl.schedule import ROWS
from harness.tl.syntax import Level

ONE = ir.Const(1)
GROUP_ROW = ir.Sym("group_row")  # where a consumer's rows begin in the block's tile


@dataclass(frozen=True, slots=True)
class View:
    """`whole`: the kernel of a block's tile; `group`: the same for 64 of its rows; tiles by name in both."""

    whole: ir.Kernel
    group: ir.Kernel
    axis: ir.GridAxis  # that counts tiles of rows
    first: ir.Expr | None  # of the rows that a consumer stores; None where it stores some here and some there
    rows: ir.Expr  # of a block's tile: a tile parameter, or a number
    grouped: frozenset[str]  # keys of the tiles whose rows the consumers share out


def view(kernel: ir.Kernel) -> View:
    """The two kernels; raises LowerError where rows cannot be shared out among warpgroups."""
    kernel = without_copies(kernel)
    kernel = replace(kernel, body=tuple(_counted(n) for n in kernel.body))
    axis, rows = _row_axis(kernel)
    kernel = _forwards(kernel, axis)
    grouped = _grouped(kernel, axis, rows)
    tiles = {t: replace(t, shape=(ir.Const(ROWS), t.shape[1])) if t in grouped else t for t in kernel.tiles}
    body = tuple(_of_group(n, tiles, grouped) for n in kernel.body)
    group = replace(kernel, tiles=tuple(tiles.values()), body=body)
    stored = {n.row for n in ir.nodes(body) if isinstance(n, ir.Store)}
    first = stored.pop() if len(stored) == 1 else None
    return View(kernel, group, axis, first, rows, frozenset(t.key for t in grouped))


def _forwards(kernel: ir.Kernel, axis: ir.GridAxis) -> ir.Kernel:
    """A kernel whose tiles of rows run from the last to the first, the other way around.

    In which order blocks take tiles is the schedule's business, which brings the longest loops first itself.
    """
    index = ir.Sym(axis.name)
    last = ir.Op("sub", (axis.extent, ONE))
    mirrored = ir.Op("sub", (last, index))
    other = ir.Sym(f"{axis.name} from the end")

    def turned(e: ir.Expr) -> ir.Expr:
        match e:
            case _ if e == mirrored:
                return other
            case ir.Op(fn=fn, args=args):
                return ir.Op(fn, tuple(turned(a) for a in args))
            case ir.Place():
                return replace(e, base=turned(e.base))
            case ir.Element():
                return replace(e, indices=tuple(turned(i) for i in e.indices))
        return e

    body = tuple(rewritten(n, lambda t: t, turned) for n in kernel.body)
    if any(index in set(ir.walk(e)) for n in ir.nodes(body) for e in _expressions(n)):
        return kernel
    return replace(kernel, body=tuple(_renamed(n, {other.name: index}) for n in body))


def _expressions(node: ir.Node) -> list[ir.Expr]:
    """All of one operation's own, also where in a tensor of the task it reads or writes."""
    found: list[ir.Expr] = []

    def kept(e: ir.Expr) -> ir.Expr:
        found.append(e)
        return e

    rewritten(node, lambda t: t, kept)
    if isinstance(node, ir.Load | ir.Store):
        found += [a for a in node.matrix.axes if not isinstance(a, str)]
    return found


def _row_axis(kernel: ir.Kernel) -> tuple[ir.GridAxis, ir.Expr]:
    for axis in kernel.grid:
        if axis.role == "rows":
            match axis.extent:
                case ir.Op(fn="ceildiv", args=(ir.Sym(name="seq_q"), ir.Sym() | ir.Const() as rows)):
                    return axis, rows
    raise LowerError(
        f"the grid of {kernel.name} counts no tiles of query rows, which warpgroups could share",
        None,
        "let a grid index be ceil(seq_q / BM)",
    )


def _grouped(kernel: ir.Kernel, axis: ir.GridAxis, rows: ir.Expr) -> frozenset[ir.Tile]:
    """Register tiles over the grid's rows, and what is loaded or made at them."""
    found: set[ir.Tile] = set()
    for node in ir.nodes(kernel.body):
        for tile in ir.writes(node):
            at_rows = ir.Sym(axis.name) in set(ir.walk(node.row)) if isinstance(node, ir.Load) else True
            if at_rows and tile.shape[0] == rows:
                found.add(tile)
            elif tile.level is Level.REGISTER:
                raise LowerError(
                    f"`{tile.name}` in registers has other rows than the grid's tiles",
                    node.source,
                    "let rows of register tiles be query rows",
                )
    return frozenset(found)


# --- loops that count by one ------------------------------------------------------------------------


def _counted(node: ir.Node) -> ir.Node:
    """A loop with a step as one over its rounds."""
    match node:
        case ir.For(var=var, step=step):
            body = tuple(_counted(n) for n in node.body)
            if step == ONE:
                return replace(node, body=body)
            at = op("add", node.start, op("mul", ir.Sym(var), step))
            rounds = op("ceildiv", op("sub", node.stop, node.start), step)
            body = tuple(_renamed(n, {var: at}) for n in body)
            return replace(node, start=ir.Const(0), stop=rounds, step=ONE, body=body)
        case ir.If(then=then, otherwise=otherwise):
            return replace(node, then=tuple(map(_counted, then)), otherwise=tuple(map(_counted, otherwise)))
    return node


def _renamed(node: ir.Node, values: Mapping[str, ir.Expr]) -> ir.Node:
    return rewritten(node, lambda t: t, lambda e: with_symbols(e, values))


def with_symbols(expr: ir.Expr, values: Mapping[str, ir.Expr]) -> ir.Expr:
    """The expression with symbols replaced, in positions and elements too; nothing is simplified."""
    match expr:
        case ir.Sym(name=name):
            return values.get(name, expr)
        case ir.Op(fn=fn, args=args):
            return ir.Op(fn, tuple(with_symbols(a, values) for a in args))
        case ir.Place():
            return replace(expr, base=with_symbols(expr.base, values))
        case ir.Element():
            return replace(expr, indices=tuple(with_symbols(i, values) for i in expr.indices))
    return expr


# --- rows of a group --------------------------------------------------------------------------------


def _of_group(node: ir.Node, tiles: Mapping[ir.Tile, ir.Tile], grouped: frozenset[ir.Tile]) -> ir.Node:
    written = ir.writes(node)
    moved = not written or any(t in grouped for t in written)

    def expr(e: ir.Expr) -> ir.Expr:
        match e:
            case ir.Ref(tile=tile):
                return ir.Ref(tiles.get(tile, tile))
            case ir.Op(fn=fn, args=args):
                return ir.Op(fn, tuple(expr(a) for a in args))
            case ir.Place(axis=0) if moved:
                return replace(e, base=op("add", e.base, GROUP_ROW))
        return e

    match node:
        case ir.For():
            return replace(node, body=tuple(_of_group(n, tiles, grouped) for n in node.body))
        case ir.If():
            return replace(
                node,
                then=tuple(_of_group(n, tiles, grouped) for n in node.then),
                otherwise=tuple(_of_group(n, tiles, grouped) for n in node.otherwise),
            )
        case ir.Reduce():
            shape = (ir.Const(ROWS), node.shape[1]) if node.result in grouped else node.shape
            node = replace(node, shape=shape)
        case ir.Store() if node.tile in grouped:
            node = replace(node, row=op("add", node.row, GROUP_ROW))
        case ir.Load() if node.tile in grouped:
            node = replace(node, row=op("add", node.row, GROUP_ROW))
    return rewritten(node, lambda t: tiles.get(t, t), expr)


def rewritten(
    node: ir.Node, tile: Callable[[ir.Tile], ir.Tile], expr: Callable[[ir.Expr], ir.Expr]
) -> ir.Node:
    """The operation with other tiles and expressions, those inside loops and branches too."""

    def axis(a: ir.Axis | None) -> ir.Axis | None:
        return None if a is None else replace(a, base=expr(a.base))

    def operand(o: ir.Operand) -> ir.Operand:
        return replace(o, tile=tile(o.tile))

    match node:
        case ir.Init():
            return replace(node, tile=tile(node.tile))
        case ir.Load():
            return replace(node, tile=tile(node.tile), row=expr(node.row), col=expr(node.col))
        case ir.Store():
            return replace(node, tile=tile(node.tile), row=expr(node.row), col=expr(node.col))
        case ir.Move():
            return replace(node, tile=tile(node.tile), target=tile(node.target))
        case ir.Gemm():
            return replace(
                node, a=operand(node.a), b=operand(node.b), result=tile(node.result),
                contracted=axis(node.contracted),
            )  # fmt: skip
        case ir.Map():
            return replace(node, result=tile(node.result), expr=expr(node.expr))
        case ir.Reduce():
            start = None if node.start is None else expr(node.start)
            return replace(
                node, expr=expr(node.expr), result=tile(node.result), start=start, across=axis(node.across)
            )
        case ir.Mask():
            return replace(node, tile=tile(node.tile), cond=expr(node.cond), result=tile(node.result))
        case ir.Softmax():
            return replace(
                node, tile=tile(node.tile), m=tile(node.m), l=tile(node.l), result=tile(node.result),
                rescale=tuple(tile(t) for t in node.rescale),
                alpha=None if node.alpha is None else tile(node.alpha), across=axis(node.across),
            )  # fmt: skip
        case ir.Reshape():
            return replace(node, tile=tile(node.tile))
        case ir.For():
            return replace(
                node, start=expr(node.start), stop=expr(node.stop),
                body=tuple(rewritten(n, tile, expr) for n in node.body),
            )  # fmt: skip
        case ir.If():
            return replace(
                node, cond=expr(node.cond),
                then=tuple(rewritten(n, tile, expr) for n in node.then),
                otherwise=tuple(rewritten(n, tile, expr) for n in node.otherwise),
            )  # fmt: skip
