"""Owns the step from a GEMM to an operation: operands, their shapes and where they come from."""

from __future__ import annotations

from harness.tl import ir
from harness.tl import syntax as s
from harness.tl.expressions import NAUGHT, Shape, show
from harness.tl.results import Results
from harness.tl.scope import NOT_KNOWN, UNKNOWN, Axes
from harness.tl.shapes import Same, equal
from harness.tl.syntax import Level, Pos


class Products(Results):
    """Resolves products."""

    def _gemm_statement(self, st: s.Compute) -> None:
        if len(st.operands) != 2:
            self.scope.report("TL007", st.pos, f"GEMM takes two operands, not {len(st.operands)}")
            return
        target = st.accumulate or (st.get[0].name if st.get else None)
        if target is None:
            self.scope.report("TL007", st.pos, "GEMM says not where its result goes",
                              "add `and get C` or `and accumulate C`")  # fmt: skip
            return
        self._product(*st.operands, target, st.accumulate is not None, st)

    def _product(
        self,
        left: s.Expr,
        right: s.Expr,
        target: str | None,
        accumulate: bool,
        st: s.Compute | s.Infix | None,
    ) -> ir.Tile | None:
        a, b = self._operand(left), self._operand(right)
        if a is None or b is None:
            if target is not None and self.scope.tile(target) is None:
                self._into(target, (UNKNOWN, UNKNOWN), (None, None), "accumulator", left.pos)
            return None
        pos = st.pos if st is not None else left.pos
        (m, k), a_axes = self._seen(a)
        (k2, n), b_axes = self._seen(b)
        self._inner(left, right, a, b, k, k2, pos)
        shape: Shape = (m, n)
        axes: Axes = (a_axes[0], b_axes[1])
        if target is None:
            tile = self._temporary(shape)
            self.scope.hold(tile, axes, "accumulator")
        else:
            known = self.scope.tile(target, Level.REGISTER)
            if accumulate and known is None and self.scope.tile(target) is None and not self.scope.sketch:
                self.scope.report("TL101", pos, f"`{target}` is accumulated but never allocated",
                                  f"Allocate {target} in register ({show(m)}, {show(n)}) init 0")  # fmt: skip
            if accumulate and known is not None:
                self.expressions.read(known, pos)
            if known is None and self.scope.tile(target) is not None:
                self.scope.report("TL303", pos, f"`{target}` takes a GEMM's result but is in shared memory")
            tile = self._into(target, shape, axes, "accumulator", pos)
        self.emit(ir.Gemm(a, b, tile, accumulate, self._contracted(a_axes[1], b_axes[0], pos), st))
        return tile

    def _operand(self, expr: s.Expr) -> ir.Operand | None:
        ex, pos = self.expressions, expr.pos
        transposed = False
        while isinstance(expr, s.Transpose):
            transposed, expr = not transposed, expr.x
        columns = None
        if isinstance(expr, s.Index) and isinstance(expr.base, s.Name) and self.scope.tile(expr.base.id):
            columns = self._columns(expr)
            expr = expr.base
        if isinstance(expr, s.Transpose):
            return self._operand(s.Transpose(expr))
        if isinstance(expr, s.Name) and (tile := self.scope.tile(expr.id)) is not None:
            ex.read(tile, pos)
            if self.scope.content(tile).layout == "accumulator" and not self.scope.sketch:
                problem = f"`{tile.name}` is a GEMM's result and enters another without Reshape"
                fix = f"Reshape {tile.name} from (MMA_C, MMA_M, MMA_N) to (MMA_A, MMA_M, MMA_N_new)"
                self.scope.report("TL401", pos, problem, fix)
            return ir.Operand(tile, transposed, columns)
        if isinstance(expr, s.Name):
            self._no_tile(expr)
            return None
        axes, layout = ex.axes_of(expr), ex.layout_of(expr)
        value, shape = ex.value(expr, axes)
        tile = self._temporary(shape)
        self.scope.hold(tile, axes, layout)
        self.emit(ir.Map(tile, value, self.statement))
        return ir.Operand(tile, transposed, columns)

    def _columns(self, expr: s.Index) -> tuple[ir.Expr, ir.Expr] | None:
        ex = self.expressions
        tile = self.scope.tile(expr.base.id) if isinstance(expr.base, s.Name) else None
        *rows, cols = expr.subscripts
        whole = all(isinstance(r, s.Slice) and r.start is None and r.stop is None for r in rows)
        if tile is None or not whole or len(rows) != 1 or not isinstance(cols, s.Slice):
            self.scope.report("TL007", expr.pos, "a slice takes whole rows and some columns", "X[:, a:b]")
            return None
        start = ex.index(cols.start) if cols.start is not None else NAUGHT
        stop = ex.index(cols.stop) if cols.stop is not None else tile.shape[1]
        return None if (start, stop) == (NAUGHT, tile.shape[1]) else (start, stop)

    def _seen(self, operand: ir.Operand) -> tuple[Shape, Axes]:
        """Shape and origin of an operand as it enters the product."""
        shape, axes = operand.tile.shape, self.scope.content(operand.tile).axes
        if operand.columns is not None:
            start, stop = operand.columns
            shape = (shape[0], ir.Op("sub", (stop, start)) if start != NAUGHT else stop)
        return (shape[::-1], axes[::-1]) if operand.transposed else (shape, axes)

    def _inner(
        self, left: s.Expr, right: s.Expr, a: ir.Operand, b: ir.Operand, k: ir.Expr, k2: ir.Expr, pos: Pos
    ) -> None:
        rows_of_b = self._seen(b)[0][1]
        fix = ""
        if equal(k, rows_of_b) and rows_of_b != k2:
            fix = f"did you mean {b.tile.name}{'' if b.transposed else '^T'}?"
        elif equal(self._seen(a)[0][0], k2):
            fix = f"did you mean {a.tile.name}{'' if a.transposed else '^T'}?"
        with_sizes = f"columns of the first operand (`{a.tile.name}`)"
        if fix and self.scope.same(k, k2) is not Same.ALWAYS and not self.scope.sketch:
            # a forgotten transpose, though some tile sizes hide it
            self.scope.report("TL201", pos, f"{show(k)} {with_sizes} meet {show(k2)}", fix)
        elif not self.scope.sketch:
            self.expressions.fit(k, k2, pos, "TL201", with_sizes, fix)

    def _contracted(self, a: ir.Axis | None, b: ir.Axis | None, pos: Pos) -> ir.Axis | None:
        if NOT_KNOWN in (a, b):
            return self._sequence(NOT_KNOWN, pos) if not self.scope.sketch else None
        sequences = [axis for axis in (a, b) if axis is not None and axis.role.startswith("seq")]
        if len(sequences) == 2 and not self.scope.sketch:
            one, other = sequences
            if one.role != other.role or not equal(one.base, other.base):
                self.scope.report("TL209", pos, f"sums over {one.role} from {show(one.base)} on one side, "
                                  f"{other.role} from {show(other.base)} on the other")  # fmt: skip
        return next((axis for axis in sequences if axis.role == "seq_k"), None)
