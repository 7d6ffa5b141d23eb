"""Owns the Gluon text of what a consumer computes element by element and row by row.

Most of it comes from the Triton compiler; layouts and masks are Hopper's own.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.tl import ir
from harness.tl.lower.facts import covers, keeps_zero
from harness.tl.lower.gluon_masks import limits
from harness.tl.lower.gluon_products import ProductText
from harness.tl.lower.gluon_values import ROW
from harness.tl.lower.triton_values import ONE

LOWEST = 'float("-inf")'


@dataclass
class GluonText(ProductText):
    """Writes every statement of one consumer but softmaxes, loops and branches."""

    # --- element-wise ---

    def _full(self, tile: ir.Tile, value: str) -> str:
        layout = ROW if tile.shape[1] == ONE else self.layout(tile.shape[1])
        return f"tl.full([{', '.join(self.shape(tile))}], {value}, tl.float32, {layout})"

    def _init(self, node: ir.Init) -> None:
        if node.value is None:
            return
        self.note(node)
        self.values.stands_on = node.tile.shape
        text = self.values.value(node.value, False, node.source)
        self._assign(node.tile, self._full(node.tile, text), node.value == ir.Const(0))

    def _map(self, node: ir.Map) -> None:
        factor = self._factor(node)
        if factor is not None and factor[0] not in self.channels:
            self._open_factor(node, *factor)
            return
        self.note(node)
        self._check_places(node)
        self._read_all(node)
        values = self.values
        wide = ONE not in node.result.shape
        text = self._with_places(node.expr, node.result.shape, wide, node.source)
        if not any(covers(t, node.result) for t in ir.refs(node.expr)):
            text = f"{self._full(node.result, '0.0')} + {text}"
        if node.expr == ir.Ref(node.result) and node.result not in values.operand_typed:
            return
        self._assign(node.result, text, keeps_zero(node.expr, self._clean))

    # --- reductions, masks ---

    def _reduce(self, node: ir.Reduce) -> None:
        self.note(node)
        self._read_all(node)
        values = self.values
        fill = LOWEST if node.fn == "max" else "0.0"
        factor = ""
        tile = node.expr.tile if isinstance(node.expr, ir.Ref) else None
        if tile is not None and node.fn == "max" and tile in values.pending:
            text = values.names[tile]
            factor = f" * {values.pending[tile]}"
        else:
            text = self._with_places(node.expr, node.shape, True, node.source)
        columns = node.shape[1]
        if node.across is not None and self._masked and not (node.fn == "sum" and tile in self._dead_zero):
            self.put(f"reduced = {text}")
            self._drop_dead("reduced", node.across, columns, fill)
            text = "reduced"
        elif node.across is None and self._padded(columns):
            inside = f"tl.arange(0, {self.block(columns)}, gl.SliceLayout(0, {self.layout(columns)}))"
            text = f"tl.where(({inside} < {self.true_size(columns)})[None, :], {text}, {fill})"
        text = f"{self._of_rows(f'tl.{node.fn}({text}, 1)', columns)}{factor}"
        if node.start is not None:
            values.stands_on = node.result.shape
            start = values.value(node.start, False, node.source)
            text = f"tl.maximum({start}, {text})" if node.fn == "max" else f"{start} + {text}"
        self._assign(node.result, text)

    def _of_rows(self, text: str, columns: ir.Expr) -> str:
        """What a reduction gives, where values of rows live."""
        return text if self.block(columns) == self._home else f"gl.convert_layout({text}, {ROW})"

    def _mask(self, node: ir.Mask) -> None:
        if not self._masked and ir.refs(node.cond) == ():
            self.note(node, "  (holds for every element here)")
            if node.tile != node.result:
                self._carry_over(node.tile, node.result)
            return
        self.note(node)
        self._read_all(node)
        values = self.values
        pending = values.pending.get(node.tile)
        text = values.names[node.tile]
        found = limits(node.cond)
        if found is None:
            cond = self._with_places(node.cond, node.tile.shape, True, node.source)
            text = f"tl.where({cond}, {text}, {LOWEST})"
        for limit in found or ():
            text = f"keep_{limit.side}({text}, {values.index(limit.at)}, {limit.slope}, {LOWEST})"
        self._assign(node.result, text)
        if pending is not None:
            values.pending[node.result] = pending

    def before_write(self, tile: ir.Tile) -> None:
        """Called before a tile is touched that a product may still be adding to."""
