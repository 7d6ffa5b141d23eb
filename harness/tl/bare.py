"""Owns the state of a softmax that names none: where it starts, what it rescales, the division at the end."""

from __future__ import annotations

import math
from collections.abc import Callable

from harness.tl import ir
from harness.tl.compute import Computes
from harness.tl.expressions import NAUGHT, ONE
from harness.tl.scope import Scope
from harness.tl.syntax import Pos


class BareStates:
    """Gives loops with bare softmaxes their state."""

    def __init__(self, scope: Scope, computes: Computes) -> None:
        self.scope = scope
        self.computes = computes

    def settle(self, out: list[ir.Node]) -> list[ir.Node]:
        """Loops whose softmax keeps its own state get it: before the first, and divided by after the last."""
        steps = {n: [x for x in ir.nodes((n,)) if isinstance(x, ir.Softmax) and x in self._own(n)]
                 for n in out if isinstance(n, ir.For)}  # fmt: skip
        loops = [n for n, found in steps.items() if found]
        if not loops:
            return out
        state = steps[loops[0]][0]
        m, l = state.m, state.l  # noqa: E741
        fed = tuple(dict.fromkeys(t for n in loops for x in steps[n] for t in self._fed(n, x)))
        first, last = out.index(loops[0]), out.index(loops[-1])
        named = self._declared_state(out[:first], state)
        if named is not None:
            m, l = named  # noqa: E741

        def settled(node: ir.Node) -> ir.Node:
            if isinstance(node, ir.Softmax) and any(node in found for found in steps.values()):
                rescale = tuple(dict.fromkeys((*node.rescale, *fed)))
                return ir.Softmax(node.tile, m, l, node.result, rescale, None, node.across, node.source)
            return node

        for n in loops:
            self.computes.bare.pop(n.var, None)
        result = [rebuilt(n, settled) for n in out]
        st = state.source
        pos = st.pos if st is not None else Pos(1, 1)
        words = ", ".join(f"`{t.name}`" for t in fed) or "nothing"
        if named is not None:
            self.scope.note(
                "TL005", pos, "Softmax", f"keeps its state in `{m.name}`, `{l.name}` and rescales {words}"
            )
            return result
        self.scope.note("TL005", pos, "Softmax", f"keeps a maximum and a sum of its own, rescales {words}, "
                        "and divides by the sum after the loop")  # fmt: skip
        begin: list[ir.Node] = [ir.Init(m, ir.Const(-math.inf), st), ir.Init(l, NAUGHT, st)]
        finish = [ir.Map(t, ir.Op("div", (ir.Ref(t), ir.Ref(l))), st) for t in fed]
        return [*result[:first], *begin, *result[first : last + 1], *finish, *result[last + 1 :]]

    def _own(self, loop: ir.For) -> list[ir.Softmax]:
        return [
            x for n in ir.nodes((loop,)) if isinstance(n, ir.For) for x in self.computes.bare.get(n.var, [])
        ]

    def _fed(self, loop: ir.For, step: ir.Softmax) -> list[ir.Tile]:
        """The accumulators that the softmax's result flows into, in its loop."""
        tainted, found = {step.result}, []
        for node in ir.nodes((loop,)):
            if isinstance(node, ir.Gemm) and node.accumulate and {node.a.tile, node.b.tile} & tainted:
                found.append(node.result)
            elif tainted & set(ir.reads(node)) and isinstance(node, ir.Map | ir.Move):
                tainted |= set(ir.writes(node))
        return found

    def _declared_state(self, before: list[ir.Node], step: ir.Softmax) -> tuple[ir.Tile, ir.Tile] | None:
        """Two vectors, one of -inf and one of 0, that the program made for a state and never names again."""
        inits = [
            n
            for n in before
            if isinstance(n, ir.Init) and n.tile.shape[1] == ONE and isinstance(n.value, ir.Const)
        ]
        idle = [
            n
            for n in inits
            if n.tile not in self.scope.used or n.value == ir.Const(-math.inf) or n.value == NAUGHT
        ]
        m = [
            n.tile
            for n in idle
            if isinstance(n.value, ir.Const) and n.value.value == -math.inf and self._fits(n.tile, step)
        ]
        sums = [
            n.tile
            for n in idle
            if isinstance(n.value, ir.Const) and n.value.value == 0 and self._fits(n.tile, step)
        ]
        if len(m) == 1 and len(sums) == 1:
            self.scope.used.update((m[0], sums[0]))
            return m[0], sums[0]
        return None

    def _fits(self, tile: ir.Tile, step: ir.Softmax) -> bool:
        return self.scope.same(tile.shape[0], step.tile.shape[0]).value == "always"


def rebuilt(node: ir.Node, change: Callable[[ir.Node], ir.Node]) -> ir.Node:
    """The operation with `change` applied to it and to everything inside it."""
    if isinstance(node, ir.For):
        body = tuple(rebuilt(n, change) for n in node.body)
        return ir.For(node.var, node.start, node.stop, node.step, body, node.source)
    if isinstance(node, ir.If):
        then, otherwise = (tuple(rebuilt(n, change) for n in part) for part in (node.then, node.otherwise))
        return ir.If(node.cond, then, otherwise, node.source)
    return change(node)
