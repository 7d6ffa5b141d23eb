"""Owns a kernel as one warpgroup of a block sees it: 64 rows of the tile, loops that count by one.

The producer follows the kernel of whole tiles, a consumer that of its rows; both have the same loops.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from harness.tl import ir
from harness.tl.evaluate import op
from harness.tl.lower.copies import without_copies
from harness.tl.lower.cut import cut
from harness.tl.lower.join import join
from harness.tl.lower.lowered import LowerError
from harness.tl.lower.order import forwards
from harness.tl.lower.rewrite import renamed, rewritten
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
    kernel = straightened(without_copies(kernel))
    axis, rows = _row_axis(kernel)
    kernel = forwards(kernel)
    grouped = _grouped(kernel, axis, rows)
    tiles = {t: replace(t, shape=(ir.Const(ROWS), t.shape[1])) if t in grouped else t for t in kernel.tiles}
    body = tuple(_of_group(n, tiles, grouped) for n in kernel.body)
    group = replace(kernel, tiles=tuple(tiles.values()), body=body)
    return View(kernel, group, axis, _stored_at(body), rows, frozenset(t.key for t in grouped))


def straightened(kernel: ir.Kernel) -> ir.Kernel:
    """With loops that count by one, cut where a branch turns and joined where masks tell nothing."""
    return join(cut(replace(kernel, body=tuple(_counted(n) for n in kernel.body))))


def loops_of(program: ir.Program) -> list[ir.For]:
    """Those that Hopper's compiler writes."""
    return [n for k in program.kernels for n in ir.nodes(straightened(k).body) if isinstance(n, ir.For)]


def _stored_at(body: tuple[ir.Node, ...]) -> ir.Expr | None:
    """The row from which on a kernel stores, if it is one row, and known before any loop."""
    rows = {n.row for n in body if isinstance(n, ir.Store)}
    nested = sum(isinstance(n, ir.Store) for n in ir.nodes(body)) > sum(isinstance(n, ir.Store) for n in body)
    return rows.pop() if len(rows) == 1 and not nested else None


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
            body = tuple(renamed(n, {var: at}) for n in body)
            return replace(node, start=ir.Const(0), stop=rounds, step=ONE, body=body)
        case ir.If(then=then, otherwise=otherwise):
            return replace(node, then=tuple(map(_counted, then)), otherwise=tuple(map(_counted, otherwise)))
    return node


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
