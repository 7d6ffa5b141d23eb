"""Owns the Gluon text of what a consumer computes element by element and row by row.

Most of it comes from the Triton compiler; layouts and masks are Hopper's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from harness.tl import ir
from harness.tl.lower.facts import covers, keeps_zero
from harness.tl.lower.gluon_masks import limits
from harness.tl.lower.gluon_products import ProductText
from harness.tl.lower.gluon_values import ROW
from harness.tl.lower.triton_values import ONE

LOWEST = 'float("-inf")'


@dataclass
class GluonText(ProductText):
    """Writes every statement of one consumer but loops and branches."""

    held: Mapping[ir.Tile, ir.Expr] = field(default_factory=dict)  # tiles of which the value is known here
    rescale: bool = False  # whether some choice rescales only where a maximum has moved

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

    # --- reductions, masks, softmax ---

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

    def _starts(self, node: ir.Softmax) -> bool:
        """Whether nothing has gone into the softmax yet: what it would rescale are zeros."""
        held = self.held
        zeros = all(held.get(t) == ir.Const(0) for t in (node.l, *node.rescale))
        return zeros and held.get(node.m) == ir.Const(-math.inf) and node.alpha is None

    def _softmax(self, node: ir.Softmax) -> None:
        self.note(node)
        self._read_all(node)
        values = self.values
        factor = values.pending.get(node.tile)
        scores, columns = values.names[node.tile], node.tile.shape[1]
        values.stands_on = node.tile.shape
        m, l = values.names[node.m], values.names[node.l]  # noqa: E741
        self._drop_dead(scores, node.across, columns, LOWEST)
        times = f" * {factor}" if factor else ""
        log2 = f"({factor} * LOG2_E)" if factor else "LOG2_E"
        starts = self._starts(node)
        most = f"{self._of_rows(f'tl.max({scores}, 1)', columns)}{times}"
        self.put(f"m_next = {most if starts else f'tl.maximum({m}, {most})'}")
        rarely = self.rescale and not starts and self._stays_inside(node.m)
        if rarely:
            with self.under("if RESCALE:"):
                self.put(f"m_next = moved(m_next, {m})")
        self.put(f"m_used = {'finite(m_next)' if self._masked else 'm_next'}")
        if not starts:
            self.put(f"decay = tl.math.exp2(({m} - m_used) * LOG2_E)")
        taken_away = values.spread("m_used * LOG2_E", node.m)
        self._assign(node.result, f"tl.math.exp2({scores} * {log2} - {taken_away})")
        self._dead_zero.add(node.result)
        total = self._of_rows(f"tl.sum({values.names[node.result]}, 1)", columns)
        total = f"in_order({total}, RESCALE)" if rarely else total
        self.put(f"{l} = {total if starts else f'{l} * decay + {total}'}")
        if node.alpha is not None:
            self._assign(node.alpha, "decay")
        self.put(f"{m} = m_next")
        for tile in node.rescale if not starts else ():
            self.before_rescale(tile)
            self._settle(tile)
            values.stands_on = tile.shape
            name, wide = values.names[tile], tile.shape[1] != ONE
            decay = values.spread("decay", node.m) if wide else "decay"
            rare = rarely and wide
            self.put(f"{name} = {f'rescaled({name}, {decay}, RESCALE)' if rare else f'{name} * {decay}'}")

    def _stays_inside(self, tile: ir.Tile) -> bool:
        """Whether nothing but softmaxes reads a tile of maxima, so that older ones do as well."""
        readers = [n for n in ir.nodes(self.kernel.body) if tile in ir.reads(n)]
        return all(isinstance(n, ir.Softmax) for n in readers)

    def before_rescale(self, tile: ir.Tile) -> None:
        """Called before a softmax touches what it rescales."""
        self.before_write(tile)

    def before_write(self, tile: ir.Tile) -> None:
        """Called before a tile is touched that a product may still be adding to."""
