"""Owns the CuTe text of a statement: reductions, masks and the softmax here, the rest by its base."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import nullcontext
from dataclasses import dataclass

from harness.tl import ir
from harness.tl.lower.cute_products import ProductText
from harness.tl.lower.cute_text import AND, PRODUCT, Cpp, call, infix
from harness.tl.lower.lowered import LowerError
from harness.tl.syntax import Level


@dataclass
class StatementText(ProductText):
    """Writes every statement but loops and branches."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._axes: dict[ir.Tile, ir.Axis] = {}  # where the columns of scores come from
        for node in ir.nodes(self.kernel.body):
            match node:
                case ir.Softmax(tile=tile, across=ir.Axis() as axis):
                    self._axes[tile] = axis
                case ir.Reduce(expr=ir.Ref(tile=tile), across=ir.Axis() as axis):
                    self._axes[tile] = axis

    def body(self, body: tuple[ir.Node, ...]) -> None:
        for node in body:
            self.statement(node)

    def statement(self, node: ir.Node) -> None:
        if isinstance(node, ir.For | ir.If):
            self.control(node)
            return
        self.await_tiles({t for t in ir.reads(node) if t.level is Level.SHARED})
        match node:
            case ir.Init():
                self._init(node)
            case ir.Load():
                self.load(node)
            case ir.Store():
                self.store(node)
            case ir.Move():
                self._moved(node)
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
                self._reshape(node)

    @abstractmethod
    def control(self, node: ir.For | ir.If) -> None:
        """Write a loop or a branch."""

    def _reduce(self, node: ir.Reduce) -> None:
        expr, result, biggest = node.expr, node.result, node.fn == "max"
        if node.across is not None and not self._counts_nothing(expr, biggest):
            if not isinstance(expr, ir.Ref) or expr.tile.level is Level.SHARED:
                raise LowerError(
                    "a reduction over an expression that is not 0 past the end has no CuTe code", node.source,
                    "give the expression a name first",
                )  # fmt: skip
            self._kill(expr.tile, node.across, "-kInfinity" if biggest else "0.f")
        self.note(node)
        factor = ""
        with self.positions(result.shape[0]) as before:
            if isinstance(expr, ir.Ref) and biggest and expr.tile in self.values.pending:
                factor = self.values.pending[expr.tile]  # positive: the maximum takes it afterwards
                value = self.values.element(expr.tile, True)
            else:
                value = self.values.value(expr, True, node.source)
        identity, fold = ("-kInfinity", "x = fmaxf(x, {})") if biggest else ("0.f", "x += {}")
        one = fold.format(value.code)
        cols = self.size(node.shape[1])
        if node.across is None and self._may_be_padded(node.shape[1]):
            one = f"if (first_col() + col_of(nn, ee % 2) < {cols}) {one}"
        whole = Cpp(f"quad_{node.fn}(x)")
        if factor:
            whole = infix("*", PRODUCT, [whole, Cpp(factor)])
        if node.start is not None:
            start = self.values.value(node.start, False, node.source)
            whole = call("fmaxf", start, whole) if biggest else infix("+", 6, [start, whole])
        self.changed(result)
        with self.block("") if before else nullcontext():
            for line in before:
                self.put(line)
            with self.block(f"each({self.names[result]}, [&](int mm, int hh)", "});"):
                self.put(f"float x = {identity};")
                self.put(f"along_row<padded({cols}) / 8>(hh, [&](int nn, int ee) {{ {one}; }});")
                self.put(f"{self.names[result]}(mm, hh) = {whole.code};")

    def _counts_nothing(self, expr: ir.Expr, biggest: bool) -> bool:
        return self._dead(expr)[0 if biggest else 1]

    def _may_be_padded(self, size: ir.Expr) -> bool:
        return not (isinstance(size, ir.Sym) and size.name in self.parameters) and not (
            isinstance(size, ir.Const) and size.value % 16 == 0
        )

    def _mask(self, node: ir.Mask) -> None:
        tile, result = node.tile, node.result
        if tile.level is Level.SHARED:
            raise LowerError(
                "a mask on a tile of shared memory has no CuTe code", node.source, "mask the scores"
            )
        if self.masked == "false" and not ir.refs(node.cond):
            self.note(node, "holds for every element here")
            self._carry_over(tile, result)
            return
        aside = "" if self.masked == "true" or ir.refs(node.cond) else "only where the tile meets the edge"
        self._carry_over(tile, result)
        self.note(node, aside)
        axis = self._axes.get(result)
        with self.positions(tile.shape[0]) as before:
            cond = self.values.value(node.cond, True, node.source)
            if axis is not None:
                at = self._place(ir.Place(axis.role, 1, axis.base), True)
                cond = infix("&&", AND, [cond, Cpp(f"{at.code} < {axis.role}", 5)])
        self.operands.pop(result, None)
        guard = f"if ({self.masked})" if aside else ""
        with self.block(guard):
            for line in before:
                self.put(line)
            self._assign(result, Cpp("-kInfinity"), [], f"!({cond.code})")
        if axis is not None:
            self.dead_inf.add(result)

    def _carry_over(self, tile: ir.Tile, result: ir.Tile) -> None:
        if tile == result:
            return
        pending = self.values.pending.get(tile)
        self.changed(result)
        self.put(f"{self.names[result]} = {self.names[tile]};")
        if pending is not None:
            self.values.pending[result] = pending

    def _softmax(self, node: ir.Softmax) -> None:
        if node.across is not None and node.tile not in self.dead_inf:
            self._kill(node.tile, node.across, "-kInfinity")
        if node.result != node.tile:
            self._carry_over(node.tile, node.result)
        for tile in node.rescale:
            self.settle(tile)
        self.note(node)
        names = self.names
        partial = node.l in self.partial
        factor = self.values.pending.get(node.result, "1.f")
        state = f"{names[node.result]}, {names[node.m]}, {names[node.l]}"
        step = f"softmax_step<{str(partial).lower()}>({state}, {factor})"
        for tile in (node.result, node.m, node.l, *node.rescale):
            self.changed(tile)
        self.dead_zero.add(node.result)
        if node.alpha is not None:
            self.changed(node.alpha)
            self.put(f"{names[node.alpha]} = {step};")
            decay = names[node.alpha]
        elif node.rescale:
            decay = f"{names[node.m].rstrip('_')}_decay"
            self.put(f"const auto {decay} = {step};")
        else:
            self.put(f"{step};")
        for tile in node.rescale:
            self.put(f"rescale({names[tile]}, {decay});")
