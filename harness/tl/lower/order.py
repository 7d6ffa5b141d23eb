"""Owns the order in which blocks take tiles of rows: the same for programs that number them either way."""

from __future__ import annotations

from dataclasses import replace

from harness.tl import ir
from harness.tl.lower.facts import ONE
from harness.tl.lower.rewrite import renamed, rewritten


def forwards(kernel: ir.Kernel) -> ir.Kernel:
    """A kernel whose tiles of rows run from the last to the first, the other way around.

    In which order blocks take tiles is the compilers' business: they bring the longest loops first.
    """
    axis = next((a for a in kernel.grid if a.role == "rows"), None)
    if axis is None:
        return kernel
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
    return replace(kernel, body=tuple(renamed(n, {other.name: index}) for n in body))


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
