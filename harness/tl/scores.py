"""Owns the step from masks and softmaxes to operations."""

from __future__ import annotations

import math

from harness.tl import ir
from harness.tl import syntax as s
from harness.tl.expressions import ONE
from harness.tl.products import Products
from harness.tl.scope import UNKNOWN, Axes, Content
from harness.tl.syntax import Level


class Scores(Products):
    """Resolves what is done to scores."""

    def _mask(self, name: str, st: s.Compute) -> None:
        q, k, diagonal = s.Name("q"), s.Name("k"), s.Binary("-", s.Name("seq_k"), s.Name("seq_q"))
        offset = s.Binary("-", s.Binary("+", q, diagonal), k)
        window = st.operands[1] if len(st.operands) > 1 else None
        cond = st.where
        if name == "CausalMask":
            cond = s.Compare(("<=",), (s.Num(0), offset))
        elif name == "WindowMask" and window is not None:
            cond = s.Compare(("<", "<"), (s.Unary("-", window), offset, window))
        elif name == "CausalWindowMask" and window is not None:
            cond = s.Compare(("<=", "<"), (s.Num(0), offset, window))
        if not st.operands or cond is None or not isinstance(st.operands[0], s.Name):
            takes = (
                "a tile and `where` a condition"
                if name == "Mask"
                else "a tile" + (", a width" if "Window" in name else "")
            )
            self.scope.report("TL007", st.pos, f"{name} takes {takes}")
            return
        tile = self._matrix_tile(st.operands[0])
        if tile is None:
            return
        content = self.scope.content(tile)
        value, _ = self.expressions.value(cond, content.axes, masking=True)
        target = self._into(
            st.get[0].name if st.get else tile.name, tile.shape, content.axes, content.layout, st.pos
        )
        self.emit(ir.Mask(tile, value, target, st))

    def _softmax(self, name: str, st: s.Compute) -> None:
        if len(st.operands) not in (1, 3):
            self.scope.report("TL007", st.pos, f"{name} takes scores, or scores, maximum and sum",
                              "Compute Softmax S, m, l and rescale O")  # fmt: skip
            return
        tile = self._matrix_tile(st.operands[0])
        if tile is None:
            return
        content = self.scope.content(tile)
        rows: Axes = (content.axes[0], None)
        across = self._sequence(content.axes[1], st.pos)
        target = st.get[0].name if st.get else tile.name
        if len(st.operands) == 1:
            self._bare(st, tile, content, across, target)
            return
        state = []
        for operand in st.operands[1:]:
            if self.scope.sketch and isinstance(operand, s.Name) and self.scope.tile(operand.id) is None:
                self._into(operand.id, (tile.shape[0], ONE), rows, "", st.pos)
            state.append(self._matrix_tile(operand))
        m, l = state  # noqa: E741
        if m is None or l is None:
            return
        for vector in (m, l):
            self._fits(vector, (tile.shape[0], ONE), st.pos)
            self.scope.hold(vector, rows)
        rescale = []
        for other in st.rescale:
            found = self.scope.tile(other, Level.REGISTER) or self.scope.tile(other)
            if found is None and self.scope.sketch:
                found = self._into(other, (UNKNOWN, UNKNOWN), (None, None), "", st.pos)
            if found is None:
                self.scope.report("TL101", st.pos, f"nothing called `{other}` was made before this")
                continue
            rescale.append(self.expressions.read(found, st.pos))
        result = self._into(target, tile.shape, content.axes, content.layout, st.pos)
        alpha = None
        if len(st.get) > 1:
            alpha = self._into(st.get[1].name, (tile.shape[0], ONE), rows, "", st.pos)
        self.emit(ir.Softmax(tile, m, l, result, tuple(rescale), alpha, across, st))

    def _bare(
        self, st: s.Compute, tile: ir.Tile, content: Content, across: ir.Axis | None, target: str
    ) -> None:
        """A softmax that names no state: online in a loop over keys, else of whole rows."""
        scope, vector = self.scope, (tile.shape[0], ONE)
        loop = next(
            (v for v in reversed(scope.loops) if across and ir.Sym(v) in set(ir.walk(across.base))), None
        )
        m, l = (ir.Tile(f"{tile.name}_{part}_", Level.REGISTER, vector) for part in ("max", "sum"))  # noqa: E741
        for part in (m, l):
            scope.add_tile(part, st.pos)
            scope.hold(part, (content.axes[0], None))
            scope.used.add(part)
        result = self._into(target, tile.shape, content.axes, content.layout, st.pos)
        rescale = tuple(t for t in (scope.tile(n, Level.REGISTER) for n in st.rescale) if t is not None)
        step = ir.Softmax(tile, m, l, result, rescale, None, across, st)
        if loop is None:
            self.emit(ir.Init(m, ir.Const(-math.inf), st))
            self.emit(ir.Init(l, ir.Const(0), st))
            self.emit(step)
            self.emit(ir.Map(result, ir.Op("div", (ir.Ref(result), ir.Ref(l))), st))
            if not scope.sketch:
                scope.note(
                    "TL005",
                    st.pos,
                    "Softmax",
                    f"of `{tile.name}` is of whole rows: no loop over keys is around it",
                )
            return
        self.bare.setdefault(loop, []).append(step)
        self.emit(step)

    def is_carried(self, tile: ir.Tile, body: tuple[ir.Node, ...]) -> bool:
        """Whether a tile that a loop's body allocates is meant to outlive a round: nothing there reads it."""
        last = max((n for n, node in enumerate(body) if tile in ir.writes(node)), default=-1)
        used_after = any(tile in ir.reads(node) for node in body[last + 1 :])
        return not used_after
