"""Owns operations of a kernel with other tiles and other expressions in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from harness.tl import ir


def renamed(node: ir.Node, values: Mapping[str, ir.Expr]) -> ir.Node:
    """The operation with symbols replaced, those in loops and branches too."""
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
