"""Owns the Triton text of what is computed: products, element-wise work, reductions, masks, the softmax."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from harness.tl import ir
from harness.tl.lower.facts import covers, keeps_zero, plus, starts_with_value
from harness.tl.lower.lowered import LowerError
from harness.tl.lower.python_layout import expression
from harness.tl.lower.triton_tiles import TileText
from harness.tl.lower.triton_values import LOG2_E, ONE
from harness.tl.syntax import Statement


@dataclass
class StatementText(TileText):
    """Writes every statement but loops and branches."""

    # --- statements ---

    def run(self) -> None:
        self.body(self.kernel.body)

    def body(self, body: tuple[ir.Node, ...]) -> None:
        for node in body:
            self.statement(node)

    def statement(self, node: ir.Node) -> None:
        match node:
            case ir.Init():
                self._init(node)
            case ir.Load():
                self._load(node)
            case ir.Store():
                self._store(node)
            case ir.Move():
                self._move(node)
            case ir.Gemm():
                self._gemm(node)
            case ir.Map():
                self._map(node)
            case ir.Reduce():
                self._reduce(node)
            case ir.Mask():
                self._mask(node)
            case ir.Softmax():
                self._softmax(node)
            case ir.Reshape():
                self.note(node, "  (the compiler converts the layout)")
            case ir.For() | ir.If():
                self.control(node)

    @abstractmethod
    def control(self, node: ir.For | ir.If) -> None:
        """Write a loop or a branch."""

    # --- products ---

    def _operand(
        self, operand: ir.Operand, contracted: int, axis: ir.Axis | None, source: Statement | None
    ) -> str:
        """Text of an operand; `contracted`: which of its axes as written in the tile is summed over."""
        tile, values = operand.tile, self.values
        if operand.columns is not None:
            load = self._loads.get(tile)
            if load is None:
                raise LowerError(
                    f"columns of `{tile.name}`, which was not just loaded, have no Triton code",
                    source,
                    "slice what a Copy from global brought",
                )
            start, stop = operand.columns
            width = ir.Op("sub", (stop, start)) if start != ir.Const(0) else stop
            if isinstance(start, ir.Const) and isinstance(stop, ir.Const):
                width = ir.Const(stop.value - start.value)
            name = f"{values.names[tile]}_slice"
            self._load_into(name, load, (tile.shape[0], width), plus(load.col, start))
            return f"{name}.T" if operand.transposed else name
        text = values.names[tile]
        typed = tile in values.operand_typed and tile not in values.pending
        if not typed:
            text = values.ref(tile, False)
        size = tile.shape[contracted]
        if size in self.sizes and tile not in self._clean:
            cols = "[None, :]" if contracted == 1 else "[:, None]"
            text = f"tl.where(tl.arange(0, {self.block(size)}){cols} < {self.true_size(size)}, {text}, 0.0)"
        if axis is not None and self._masked:
            at = "[None, :]" if contracted == 1 else "[:, None]"
            alive = f"({self._alive(axis, size)}){at}"
            if tile not in values.operand_typed and tile not in self._dead_zero:
                text = f"tl.where({alive}, {text}, 0.0)"
        if not typed:
            text = f"({text}).to(OPERAND)" if not text.startswith("tl.where") else f"{text}.to(OPERAND)"
        return f"{text}.T" if operand.transposed else text

    def _alive(self, axis: ir.Axis, size: ir.Expr) -> str:
        base = self.values.index(axis.base)
        return f"{base} + tl.arange(0, {self.block(size)}) < {axis.role}"

    def _gemm(self, node: ir.Gemm) -> None:
        self.note(node)
        values = self.values
        left = self._operand(node.a, 0 if node.a.transposed else 1, node.contracted, node.source)
        dead = node.contracted if node.a.tile in values.operand_typed else None  # a loaded tile is 0 there
        right = self._operand(node.b, 1 if node.b.transposed else 0, dead, node.source)
        if node.accumulate:
            if node.result in values.pending:
                self._settle(node.result)
            self._assign(
                node.result,
                f"tl.dot({left}, {right}, {values.names[node.result]}, input_precision=PRECISION)",
            )
        else:
            self._assign(node.result, f"tl.dot({left}, {right}, input_precision=PRECISION)")

    # --- element-wise ---

    def _map(self, node: ir.Map) -> None:
        factor = self._factor(node)
        if factor is not None:
            self._open_factor(node, *factor)
            return
        self.note(node)
        self._check_places(node)
        wide = ONE not in node.result.shape
        values = self.values
        text = self._with_places(node.expr, node.result.shape, wide, node.source)
        if not ir.refs(node.expr) or not any(covers(t, node.result) for t in ir.refs(node.expr)):
            text = f"tl.zeros([{', '.join(self.shape(node.result))}], tl.float32) + {text}"
        clean = keeps_zero(node.expr, self._clean)
        if (
            isinstance(node.expr, ir.Ref)
            and node.expr.tile == node.result
            and node.result not in values.operand_typed
        ):
            return
        self._assign(node.result, text, clean)

    def _with_places(
        self, expr: ir.Expr, shape: tuple[ir.Expr, ir.Expr], wide: bool, source: Statement | None
    ) -> str:
        self.values.stands_on = shape
        return self.values.value(expr, wide, source)

    def _check_places(self, node: ir.Map) -> None:
        for part in ir.walk(node.expr):
            if isinstance(part, ir.Element):
                raise LowerError("single elements of a tensor have no Triton code yet", node.source)

    def _factor(self, node: ir.Map) -> tuple[ir.Tile, ir.Expr] | None:
        """A score times scalars: (the scores, the scalar)."""
        expr = node.expr
        if not (isinstance(expr, ir.Op) and expr.fn == "mul" and len(expr.args) == 2) or node.result.dtype:
            return None
        for tile, other in (expr.args, expr.args[::-1]):
            if (
                isinstance(tile, ir.Ref)
                and not ir.refs(other)
                and tile.tile == node.result
                and ONE not in tile.tile.shape
            ):
                if tile.tile in self.values.operand_typed or starts_with_value(self.kernel, tile.tile):
                    return None
                ok = all(isinstance(p, ir.Sym | ir.Const | ir.Op) for p in ir.walk(other))
                host = all(not isinstance(p, ir.Sym) or p.name in self.floats for p in ir.walk(other))
                return (tile.tile, other) if ok and host else None
        return None

    def _open_factor(self, node: ir.Map, tile: ir.Tile, factor: ir.Expr) -> None:
        """The factor waits until the scores are exponentiated: there it costs nothing, if it is positive."""
        text = expression(self.values.value(factor, False, node.source))
        name = next((n for n, t in self.factors.items() if t == text), "")
        if not name:
            name = f"factor_{text}" if text.isidentifier() else f"factor_{len(self.factors) + 1}"
            self.factors[name] = text
        self.note(node, "  (waits until it can be folded into exp2)")
        with self.under("if not FOLD:"):
            self.put(f"{self.values.names[tile]} = {self.values.names[tile]} * ({text})")
        old = self.values.pending.get(tile)
        self.values.pending[tile] = f"({old} * {name})" if old else name

    def _settle(self, tile: ir.Tile) -> None:
        """Carry out what is still open on a tile."""
        if tile in self.values.pending:
            text = self.values.ref(tile, False)
            self._assign(tile, text, tile in self._clean)

    # --- reductions, masks, softmax ---

    def _reduce(self, node: ir.Reduce) -> None:
        self.note(node)
        lowest = "max" if node.fn == "max" else "sum"
        fill = 'float("-inf")' if node.fn == "max" else "0.0"
        factor = ""
        if isinstance(node.expr, ir.Ref) and node.fn == "max" and node.expr.tile in self.values.pending:
            text = self.values.names[node.expr.tile]
            factor = f" * {self.values.pending[node.expr.tile]}"
        else:
            text = self._with_places(node.expr, node.shape, True, node.source)
        if node.across is not None and self._masked:
            text = f"tl.where(({self._alive(node.across, node.shape[1])})[None, :], {text}, {fill})"
        elif node.across is None and self._padded(node.shape[1]):
            size = node.shape[1]
            inside = f"(tl.arange(0, {self.block(size)}) < {self.true_size(size)})[None, :]"
            text = f"tl.where({inside}, {text}, {fill})"
        text = f"tl.{lowest}({text}, 1){factor}"
        if node.start is not None:
            start = self.values.value(node.start, False, node.source)
            text = f"tl.maximum({start}, {text})" if node.fn == "max" else f"{start} + {text}"
        self._assign(node.result, text)

    def _mask(self, node: ir.Mask) -> None:
        if not self._masked and ir.refs(node.cond) == ():
            self.note(node, "  (holds for every element here)")
            if node.tile != node.result:
                self._carry_over(node.tile, node.result)
            return
        self.note(node)
        cond = self._with_places(node.cond, node.tile.shape, True, node.source)
        if node.tile in self.values.operand_typed:
            raise LowerError(
                "a mask on a tile just loaded has no Triton code", node.source, "mask the scores"
            )
        pending = self.values.pending.get(node.tile)
        text = f'tl.where({cond}, {self.values.names[node.tile]}, float("-inf"))'
        self._assign(node.result, text)
        if pending is not None:
            self.values.pending[node.result] = pending

    def _carry_over(self, tile: ir.Tile, result: ir.Tile) -> None:
        pending = self.values.pending.get(tile)
        self._assign(result, self.values.names[tile])
        if pending is not None:
            self.values.pending[result] = pending

    def _softmax(self, node: ir.Softmax) -> None:
        self.note(node)
        values = self.values
        factor = values.pending.get(node.tile)
        scores = values.names[node.tile]
        if node.tile in values.operand_typed:
            scores = f"{scores}.to(tl.float32)"
        m, l = values.names[node.m], values.names[node.l]  # noqa: E741
        if self._masked and node.across is not None:
            alive = self._alive(node.across, node.tile.shape[1])
            self.put(f'{scores} = tl.where(({alive})[None, :], {scores}, float("-inf"))')
        times = f" * {factor}" if factor else ""
        log2 = f"({factor} * {LOG2_E})" if factor else LOG2_E
        self.put(f"m_next = tl.maximum({m}, tl.max({scores}, 1){times})")
        if self._masked:
            self.put("m_used = finite(m_next)")
        else:
            self.put("m_used = m_next")
        self.put(f"decay = tl.math.exp2(({m} - m_used) * {LOG2_E})")
        self._assign(node.result, f"tl.math.exp2({scores} * {log2} - (m_used * {LOG2_E})[:, None])")
        self._dead_zero.add(node.result)
        self.put(f"{l} = {l} * decay + tl.sum({values.names[node.result]}, 1)")
        for tile in node.rescale:
            self._settle(tile)
            at = "[:, None]" if tile.shape[1] != ONE else ""
            self.put(f"{values.names[tile]} = {values.names[tile]} * decay{at}")
        if node.alpha is not None:
            self._assign(node.alpha, "decay")
        self.put(f"{m} = m_next")
