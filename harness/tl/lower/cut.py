"""Owns loops cut in two where a branch of theirs begins to hold, or ceases to.

`if j >= full` in a loop over j holds in no round before `full` and in all from there on. Two loops without
the branch do the same rounds in the same order, and products of the next round can run ahead in each.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from harness.tl import ir
from harness.tl.evaluate import op
from harness.tl.lower.extremes import positive_in
from harness.tl.lower.peel import NotLinear, atoms, bounds, slack_of

ONE = ir.Const(1)


@dataclass(frozen=True, slots=True)
class _Turn:
    """The round from which on a branch's condition is another one.

    `before` and `after`: None where it never holds, empty where always; else comparisons that all must hold.
    """

    at: ir.Expr
    before: tuple[ir.Expr, ...] | None
    after: tuple[ir.Expr, ...] | None


def cut(kernel: ir.Kernel) -> ir.Kernel:
    """The kernel with every loop that counts by one cut where its branches turn, innermost first."""
    return replace(kernel, body=_cut(kernel.body, positive_in(kernel)))


def _cut(nodes: Sequence[ir.Node], positive: Collection[ir.Sym]) -> tuple[ir.Node, ...]:
    found: list[ir.Node] = []
    for node in nodes:
        match node:
            case ir.If(then=then, otherwise=otherwise):
                found.append(replace(node, then=_cut(then, positive), otherwise=_cut(otherwise, positive)))
            case ir.For(body=body):
                found += _parts(replace(node, body=_cut(body, positive)), positive)
            case _:
                found.append(node)
    return tuple(found)


def _parts(loop: ir.For, positive: Collection[ir.Sym]) -> list[ir.Node]:
    """The loop, or those that do the same one after the other."""
    for branch in (n for n in loop.body if isinstance(n, ir.If) and loop.step == ONE):
        turn = _turn(branch.cond, loop, positive)
        if turn is not None:
            middle = op("min", loop.stop, op("max", loop.start, turn.at))
            before = replace(loop, stop=middle, body=_decided(loop.body, branch.cond, turn.before))
            after = replace(loop, start=middle, body=_decided(loop.body, branch.cond, turn.after))
            return [*_parts(before, positive), *_parts(after, positive)]
    return [loop]


def _decided(
    body: Sequence[ir.Node], cond: ir.Expr, known: tuple[ir.Expr, ...] | None
) -> tuple[ir.Node, ...]:
    """The body where no more than `known` is left of a condition."""
    found: list[ir.Node] = []
    for node in body:
        if not isinstance(node, ir.If) or node.cond != cond:
            found.append(node)
        elif known is None:
            found += node.otherwise
        elif not known:
            found += node.then
        else:
            found.append(replace(node, cond=known[0] if len(known) == 1 else ir.Op("and", known)))
    return tuple(found)


def _turn(cond: ir.Expr, loop: ir.For, positive: Collection[ir.Sym]) -> _Turn | None:
    """Where one of the comparisons of a condition turns, the first that does; None where none is known to."""
    try:
        every = tuple(atoms(cond))
    except NotLinear:
        return None
    for atom in every:
        rest = tuple(a for a in every if a is not atom)
        try:
            lows, highs = bounds(slack_of(atom), loop, positive)
        except NotLinear:
            continue
        if lows:
            return _Turn(lows[0], None, rest)
        if highs:
            return _Turn(highs[0], rest, None)
    return None
