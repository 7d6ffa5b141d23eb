"""Owns the Gluon text of values: Triton's, with the layouts of what lies along a tile's rows or columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from harness.tl import ir
from harness.tl.lower.lowered import LowerError
from harness.tl.lower.triton_values import ONE, Values
from harness.tl.syntax import Statement

ROW = "ROW"  # the layout of a value for each row


@dataclass
class GluonValues(Values):
    """Writes expressions of one consumer; `layout` names that of a tile with so many columns."""

    layout: Callable[[ir.Expr], str] = field(default=lambda columns: "")

    def spread(self, text: str, tile: ir.Tile) -> str:
        """A vector beside the tile that the result is."""
        if tile.shape[1] != ONE:
            raise LowerError(f"`{tile.name}` runs along columns only, which has no Gluon code")
        assert self.stands_on is not None
        return f"down_rows({text}, {self.layout(self.stands_on[1])})"

    def ref(self, tile: ir.Tile, wide: bool) -> str:
        """A tile's value with what is still open on it, in f32."""
        text = super().ref(tile, False)
        return self.spread(text, tile) if wide and ONE in tile.shape else text

    def place(self, expr: ir.Place, wide: bool) -> str:
        """Positions along an axis of the result."""
        if self.stands_on is None:
            raise LowerError("positions need a tile to stand on")
        rows, columns = self.stands_on
        base, extent = self.index(expr.base), self.block(self.stands_on[expr.axis])
        if not wide:
            return f"({base} + tl.arange(0, {self.block(rows)}, {ROW}))"
        layout = f"gl.SliceLayout({1 - expr.axis}, {self.layout(columns)})"
        at = "[:, None]" if expr.axis == 0 else "[None, :]"
        return f"({base} + tl.arange(0, {extent}, {layout})){at}"

    def _finite(self, expr: ir.Expr, wide: bool, source: Statement | None) -> str:
        if isinstance(expr, ir.Ref) and expr.tile in self.minus_infinity and wide and ONE in expr.tile.shape:
            return self.spread(f"finite({self.ref(expr.tile, False)})", expr.tile)
        return super()._finite(expr, wide, source)

    def _quotient(self, a: ir.Expr, b: ir.Expr, wide: bool, source: Statement | None) -> str:
        if isinstance(b, ir.Ref) and wide and ONE in b.tile.shape:
            divisor = self.spread(f"inverse({self.ref(b.tile, False)})", b.tile)
            return f"({self.value(a, wide, source)} * {divisor})"
        return super()._quotient(a, b, wide, source)

    def _exponential(self, fn: str, x: ir.Expr, wide: bool, source: Statement | None) -> str:
        """What is taken away is multiplied while it has one element a row."""
        match x:
            case ir.Op(fn="sub", args=(ir.Ref(tile=scores), ir.Ref(tile=taken))) if (
                fn == "exp" and wide and ONE not in scores.shape and taken.shape[1] == ONE
            ):
                narrow = self._finite(x.args[1], False, source)
                less = self.spread(f"{narrow} * LOG2_E", taken)
                if scores in self.pending and scores not in self.operand_typed:
                    return f"tl.math.exp2({self.names[scores]} * ({self.pending[scores]} * LOG2_E) - {less})"
                return f"tl.math.exp2({self.ref(scores, True)} * LOG2_E - {less})"
        return super()._exponential(fn, x, wide, source)
