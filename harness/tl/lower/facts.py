"""Owns what compilers to GPUs derive from a kernel before they write it.

Which values may be -inf, which tiles stay zero in their padding, which products can run a round ahead.
"""

from __future__ import annotations

import math

from harness.tl import ir
from harness.tl.syntax import Level

ONE = ir.Const(1)
NO_MAXIMUM, NO_SUM = ir.Const(-math.inf), ir.Const(0)  # of a softmax that nothing has gone into


def ahead(loop: ir.For) -> tuple[tuple[ir.Node, ...], tuple[ir.Node, ...]] | None:
    """The loop's first products with the loads that only they need, and the rest; None where there are none.

    They depend on nothing that the loop computes, so the next round's can be computed in this one.
    """
    if any(isinstance(n, ir.For | ir.If) for n in loop.body):
        return None
    written = {t for n in loop.body for t in ir.writes(n)}
    loads = {n.tile: n for n in loop.body if isinstance(n, ir.Load)}
    products = []
    for n in loop.body:
        if isinstance(n, ir.Gemm) and not n.accumulate:
            operands = (n.a.tile, n.b.tile)
            if n.contracted is None and all(t not in written or t in loads for t in operands):
                products.append(n)
    if not products:
        return None
    made = {n.result for n in products}
    first_writes = {n.result: next(x for x in loop.body if n.result in ir.writes(x)) for n in products}
    if any(
        first_writes[n.result] is not n and not isinstance(first_writes[n.result], ir.Init) for n in products
    ):
        return None
    needed = {t for n in products for t in (n.a.tile, n.b.tile) if t in loads}
    others = [n for n in loop.body if n not in products]
    if any(needed & set(ir.reads(n)) for n in others) or len(made) != len(products):
        return None
    head = tuple(n for n in loop.body if n in products or (isinstance(n, ir.Load) and n.tile in needed))
    rest = tuple(n for n in loop.body if n not in head)
    return head, rest


def grows(kernel: ir.Kernel, row: str) -> bool:
    """Whether later rows have longer loops."""
    return any(
        isinstance(n, ir.For)
        and ir.Sym(row) in set(ir.walk(n.stop))
        and ir.Sym(row) not in set(ir.walk(n.start))
        for n in ir.nodes(kernel.body)
    )


def starts_with_value(kernel: ir.Kernel, tile: ir.Tile) -> bool:
    """Whether the tile is given a start value: what is added up in a loop is."""
    inits = (n for n in ir.nodes(kernel.body) if isinstance(n, ir.Init))
    return any(n.tile == tile and n.value is not None for n in inits)


def begun(kernel: ir.Kernel, loop: ir.For) -> dict[ir.Tile, ir.Expr]:
    """What tiles hold as the loop begins, where that is the value they were made with."""
    held: dict[ir.Tile, ir.Expr] = {}
    for node in kernel.body[: kernel.body.index(loop)] if loop in kernel.body else ():
        for inner in ir.nodes((node,)):
            for tile in ir.writes(inner):
                held.pop(tile, None)
                if isinstance(inner, ir.Init) and inner.value is not None and inner is node:
                    held[tile] = inner.value
    return held


def keeps_to_itself(kernel: ir.Kernel, loop: ir.For) -> ir.Softmax | None:
    """The loop's softmax, if maximum and sum are nobody else's while the loop runs, and none but softmaxes
    read the maximum.

    So they need not be values of rows meanwhile, nor the maximum the greatest there is.
    """
    found = [n for n in ir.nodes(loop.body) if isinstance(n, ir.Softmax)]
    if len(found) != 1 or not any(n is found[0] for n in loop.body):
        return None
    node = found[0]
    others = [n for n in ir.nodes(loop.body) if n is not node]
    touched = {t for n in others for t in (*ir.reads(n), *ir.writes(n))}
    readers = [n for n in ir.nodes(kernel.body) if node.m in ir.reads(n)]
    alone = {node.m, node.l}.isdisjoint(touched) and all(isinstance(n, ir.Softmax) for n in readers)
    plain = node.alpha is None and all(ONE not in t.shape for t in node.rescale)
    return node if alone and plain else None


def starts_from_nothing(kernel: ir.Kernel, loop: ir.For, node: ir.Softmax) -> bool:
    """Whether nothing has gone into the loop's softmax before; else what it holds comes from another loop."""
    held = begun(kernel, loop)
    return held.get(node.m) == NO_MAXIMUM and held.get(node.l) == NO_SUM


def may_rescale_rarely(program: ir.Program) -> bool:
    """Whether some loop's softmax may."""
    return any(
        keeps_to_itself(kernel, node) is not None
        for kernel in program.kernels
        for node in kernel.body
        if isinstance(node, ir.For)
    )


def leaves_through(kernel: ir.Kernel) -> ir.Tile | None:
    """The tile whose place in shared memory the kernel's result can leave through; None where there is none.

    It has the result's rows, is copied once, outside of loops, and is read for the last time before the
    result, the only one, is stored.
    """
    stores = [n for n in ir.nodes(kernel.body) if isinstance(n, ir.Store) and n.tile.shape[1] != ONE]
    if len(stores) != 1 or stores[0] not in kernel.body:
        return None
    at = kernel.body.index(stores[0])
    loads = [n for n in ir.nodes(kernel.body) if isinstance(n, ir.Load)]
    later = {t for n in ir.nodes(kernel.body[at:]) for t in ir.reads(n)}
    found = [
        n.tile
        for n in kernel.body[:at]
        if isinstance(n, ir.Load)
        and n.tile.level is Level.SHARED
        and n.tile.shape[0] == stores[0].tile.shape[0]
        and n.tile not in later
        and sum(load.tile == n.tile for load in loads) == 1
    ]
    return found[0] if len(found) == 1 else None


def plus(a: ir.Expr, b: ir.Expr) -> ir.Expr:
    return b if a == ir.Const(0) else a if b == ir.Const(0) else ir.Op("add", (a, b))


def covers(tile: ir.Tile, result: ir.Tile) -> bool:
    return all(r == ONE or t != ONE for t, r in zip(tile.shape, result.shape, strict=True))


def keeps_zero(expr: ir.Expr, clean: set[ir.Tile]) -> bool:
    """Whether the value is zero wherever the clean tiles are."""
    match expr:
        case ir.Ref(tile=tile):
            return tile in clean
        case ir.Op(fn="mul", args=args):
            return any(keeps_zero(a, clean) for a in args)
        case ir.Op(fn="div" | "neg", args=args):
            return keeps_zero(args[0], clean)
        case ir.Op(fn="add" | "sub" | "max" | "min", args=args):
            return all(keeps_zero(a, clean) for a in args)
        case ir.Op(fn=fn, args=args) if fn.startswith("cast_"):
            return keeps_zero(args[0], clean)
    return expr == ir.Const(0)


def may_be_minus_infinity(kernel: ir.Kernel) -> frozenset[ir.Tile]:
    """Tiles that may hold -inf: masked scores, running maxima, and what is made of them."""
    found: set[ir.Tile] = set()
    while True:
        before = len(found)
        for node in ir.nodes(kernel.body):
            match node:
                case ir.Init(tile=tile, value=ir.Const(value=value)) if value == -math.inf:
                    found.add(tile)
                case ir.Mask():
                    found.add(node.result)
                case ir.Reduce(fn="max"):
                    found.add(node.result)
                case ir.Softmax():
                    found.add(node.m)
                case ir.Move() if node.tile in found:
                    found.add(node.target)
                case ir.Map() if not ends_finite(node.expr) and (
                    found & set(ir.refs(node.expr)) or ir.Const(-math.inf) in set(ir.walk(node.expr))
                ):
                    found.add(node.result)
        if len(found) == before:
            return frozenset(found)


def ends_finite(expr: ir.Expr) -> bool:
    """Functions that make something finite of -inf."""
    match expr:
        case ir.Op(fn="exp" | "exp2" | "sigmoid" | "tanh" | "relu"):
            return True
        case ir.Op(fn="mul", args=args):
            return any(ends_finite(a) for a in args)
    return False


def only_sliced(kernel: ir.Kernel) -> frozenset[ir.Tile]:
    """Loaded tiles of which only columns are ever used."""
    whole: set[ir.Tile] = set()
    sliced: set[ir.Tile] = set()
    for node in ir.nodes(kernel.body):
        if isinstance(node, ir.Gemm):
            for operand in (node.a, node.b):
                (whole if operand.columns is None else sliced).add(operand.tile)
            if node.accumulate:
                whole.add(node.result)
        elif not isinstance(node, ir.Move) or node.tile.name != node.target.name:
            whole.update(ir.reads(node))
    return frozenset(sliced - whole)
