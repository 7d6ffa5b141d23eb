"""Owns the step from a Compute statement to operations."""

from __future__ import annotations

from dataclasses import replace

from harness.tl import aliases, ir
from harness.tl import syntax as s
from harness.tl.expressions import ONE, SCALAR, Shape
from harness.tl.scope import UNKNOWN, Axes
from harness.tl.scores import Scores
from harness.tl.syntax import Pos


class Computes(Scores):
    """Resolves Compute and infix statements of one kernel."""

    def run(self, st: s.Compute | s.Infix) -> None:
        self.statement = st
        if isinstance(st, s.Infix):
            self._infix(st)
            return
        name = aliases.operation(st.op)
        if name is None:
            near = aliases.nearest(st.op, aliases.OPERATIONS)
            self.scope.report("TL006", st.pos, f"there is no operation `{st.op}`", near)
            for got in st.get:  # what it would have made is not missing later
                self._into(got.name, (UNKNOWN, UNKNOWN), (None, None), "", st.pos)
            return
        if name.lower() != st.op.lower():
            self.scope.note("TL004", st.pos, st.op, f"is read as {name}")
        if name in ("Max", "Sum"):
            name = self._max_or_sum(name, st)
        if name == "GEMM":
            self._gemm_statement(st)
        elif name in aliases.REDUCTIONS:
            self._reduce_statement(name, st)
        elif name in aliases.MASKS:
            self._mask(name, st)
        elif name in ("Softmax", "OnlineSoftmax"):
            self._softmax(name, st)
        else:
            self._elementwise(name, st)

    def _finish(self, st: s.Compute, result: ir.Expr, shape: Shape, axes: Axes, layout: str) -> None:
        """Put a value where the clauses say: get, accumulate, or in place of the first operand."""
        targets = [got.name for got in st.get]
        if len(targets) > 1:
            self.scope.report("TL007", st.pos, f"{st.op} gives one result, not {len(targets)}")
        if st.accumulate is not None:
            old, old_shape = self.expressions.value(s.Name(st.accumulate, pos=st.pos))
            shape = self.expressions.joint([old_shape, shape], st.pos)
            tile = self._into(st.accumulate, shape, axes, layout, st.pos)
            self.emit(ir.Map(tile, ir.Op("add", (old, result)), st))
            return
        if not targets:
            first = next((x.id for x in st.operands if isinstance(x, s.Name) and self.scope.tile(x.id)), None)
            if first is None:
                self.scope.report(
                    "TL007", st.pos, f"{st.op} says not where its result goes", "add `and get X`"
                )
                return
            targets = [first]
        tile = self._into(targets[0], shape, axes, layout, st.pos)
        self.emit(ir.Map(tile, result, st))

    # --- element-wise ---

    def _elementwise(self, name: str, st: s.Compute) -> None:
        ex = self.expressions
        operands = st.operands
        if name == "Fill":
            if len(operands) == 1 and st.get:
                operands = (s.Name(st.get[0].name, pos=st.pos), *operands)
            if len(operands) != 2 or not isinstance(operands[0], s.Name):
                self.scope.report("TL007", st.pos, "Fill takes a tile and a number", "Compute Fill m, -inf")
                return
            tile = self.scope.tile(operands[0].id)
            value, _ = ex.value(operands[1])
            if tile is None:
                self.scope.report("TL101", st.pos, f"`{operands[0].id}` is filled but never allocated")
                return
            self.scope.hold(tile)
            self.emit(ir.Map(tile, value, st))
            return
        if (
            name in ("Assign", "Score")
            and len(operands) == 2
            and not st.get
            and isinstance(operands[0], s.Name)
        ):
            st = replace(st, get=(s.Get(operands[0].id),), operands=operands[1:])
            operands = st.operands
        if name == "Score" and len(operands) == 2:
            operands = operands[1:]
        count = {"Assign": 1, "Score": 1, "Cast": 1}.get(name) or aliases.ELEMENTWISE.get(name, ("", 1))[1]
        if len(operands) != count if count is not None else len(operands) < 2:
            self.scope.report(
                "TL007", st.pos, f"{name} takes {count or 'two or more'} operands, not {len(operands)}"
            )
            return
        everything = operands[0]
        for x in operands[1:]:
            everything = s.Call("min", (everything, x))
        axes, layout = ex.axes_of(everything), ex.layout_of(everything)
        parts = [ex.value(x, axes) for x in operands]
        shape = ex.joint([p[1] for p in parts], st.pos)
        values = tuple(p[0] for p in parts)
        if name in ("Assign", "Score"):
            result: ir.Expr = values[0]
        elif name == "Cast":
            word = st.to or "operand"
            if word not in aliases.DTYPES and word != "operand":
                self.scope.report(
                    "TL801", st.pos, f"`{word}` is no dtype", aliases.nearest(word, aliases.DTYPES)
                )
            result = ir.Op(f"cast_{aliases.DTYPES.get(word, 'operand')}", values)
        else:
            result = ir.Op(aliases.ELEMENTWISE[name][0], values)
        if shape == SCALAR and (st.get or st.accumulate) and (known := self.scope.tile(
            st.get[0].name if st.get else str(st.accumulate)
        )):  # fmt: skip
            shape = known.shape  # a scalar fills the tile
        self._finish(st, result, shape, axes, layout)

    def _infix(self, st: s.Infix) -> None:
        ex = self.expressions
        value = st.value
        if isinstance(value, s.Binary) and value.op == "@" and st.op in ("=", "+="):
            self._product(value.left, value.right, st.name, st.op == "+=", st)
            return
        if st.op != "=":
            value = s.Binary(st.op[0], s.Name(st.name, pos=st.pos), value, pos=st.pos)
        axes, layout = ex.axes_of(value), ex.layout_of(value)
        result, shape = ex.value(value, axes)
        target = self.scope.tile(st.name)
        if shape == SCALAR and target is not None:
            shape = target.shape
        tile = self._into(st.name, shape, axes, layout, st.pos)
        self.emit(ir.Map(tile, result, st))

    # --- reductions ---

    def _max_or_sum(self, name: str, st: s.Compute) -> str:
        """`Max`, `Sum`: a reduction where a matrix comes first, else element-wise."""
        with self.scope.rehearsal():
            wide = bool(st.operands) and self.expressions.value(st.operands[0])[1][1] != ONE
        reduced = "RowMax" if name == "Max" else "RowSum"
        target = self.scope.tile(st.get[0].name) if st.get else None
        narrow = target is None or target.shape[1] == ONE
        if wide and narrow and st.operands:
            self.scope.note("TL004", st.pos, st.op, f"of a matrix into a vector is read as {reduced}")
            return reduced
        return "Maximum" if name == "Max" else "Add"

    def _reduce_statement(self, name: str, st: s.Compute) -> None:
        if not st.operands or len(st.operands) > 2:
            self.scope.report("TL007", st.pos, f"{name} takes a tile, and a vector to combine with")
            return
        target = st.get[0].name if st.get else None
        start: s.Expr | None = st.operands[1] if len(st.operands) == 2 else None
        if st.accumulate is not None:
            target, start = st.accumulate, s.Name(st.accumulate, pos=st.pos)
        if target is None and isinstance(start, s.Name):
            target = start.id
        if target is None:
            self.scope.report("TL007", st.pos, f"{name} says not where its result goes", "add `and get x`")
            return
        self._reduce(name, st.operands[0], start, target, st.pos)

    def _reduce(self, name: str, what: s.Expr, start: s.Expr | None, target: str | None, pos: Pos) -> ir.Tile:
        ex = self.expressions
        axes = ex.axes_of(what)
        expr, shape = ex.value(what, axes)
        if shape[1] == ONE:
            self.scope.report("TL007", pos, f"{name} needs rows and columns; this has one number a row")
        first = ex.value(start)[0] if start is not None else None
        result: Shape = (shape[0], ONE)
        rows: Axes = (axes[0], None)
        if target is None:
            tile = self._temporary(result)
            self.scope.hold(tile, rows)
        else:
            tile = self._into(target, result, rows, "", pos)
        across = self._sequence(axes[1], pos)
        fn = "max" if name == "RowMax" else "sum"
        self.emit(ir.Reduce(fn, expr, shape, tile, first, across, self.statement))  # type: ignore[arg-type]
        return tile

    def _hoist(self, what: str, args: tuple[s.Expr, ...], pos: Pos) -> ir.Tile | None:
        """A tile for a reduction or a product inside an expression."""
        if what == "GEMM":
            return self._product(args[0], args[1], None, False, self.statement)
        return self._reduce(what, args[0], None, None, pos)
