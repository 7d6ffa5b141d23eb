"""Owns the step from a Compute statement to operations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from harness.tl import aliases, ir
from harness.tl import syntax as s
from harness.tl.expressions import NAUGHT, ONE, SCALAR, Expressions, Shape, show
from harness.tl.scope import NOT_KNOWN, UNKNOWN, Axes, Content, Scope
from harness.tl.shapes import Same, equal
from harness.tl.syntax import Level, Pos


class Computes:
    """Resolves Compute and infix statements of one kernel; `emit` takes the operations in order."""

    def __init__(self, scope: Scope, emit: Callable[[ir.Node], None]) -> None:
        self.scope = scope
        self.emit = emit
        self.expressions = Expressions(scope, self._hoist)
        self.statement: s.Compute | s.Infix | None = None
        self.bare: dict[str, list[ir.Softmax]] = {}  # loop variable -> softmaxes with a state of their own
        self._temporaries = 0

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

    # --- results ---

    def _into(self, name: str, shape: Shape, axes: Axes, layout: str, pos: Pos) -> ir.Tile:
        """The tile that takes a result; one is made in registers where none is allocated."""
        scope = self.scope
        tile = scope.tiles.get((name, Level.REGISTER)) or scope.tiles.get((name, Level.SHARED))
        if tile is None:
            if name in scope.symbols or name in scope.grid or name in scope.loops or name in scope.parameters:
                scope.report("TL104", pos, f"`{name}` is a scalar already")
            tile = scope.add_tile(ir.Tile(name, Level.REGISTER, shape), pos)
            if not scope.sketch and UNKNOWN not in shape:
                size = show(shape[0]) if shape[1] == ONE else f"{show(shape[0])}, {show(shape[1])}"
                scope.note("TL005", pos, name, f"is a register tile of ({size})")
        else:
            self._fits(tile, shape, pos)
        scope.hold(tile, axes, layout)
        return tile

    def _fits(self, tile: ir.Tile, shape: Shape, pos: Pos) -> None:
        for at, what in ((0, "rows"), (1, "columns")):
            if shape[at] not in (ONE, UNKNOWN):
                text = f"{what} of the result; `{tile.name}` is allocated with"
                fix = f"allocate `{tile.name}` with ({show(shape[0])}, {show(shape[1])})"
                if not self._size_fits(shape[at], tile.shape[at], text, fix, pos):
                    return

    def _size_fits(self, a: ir.Expr, b: ir.Expr, text: str, fix: str, pos: Pos) -> bool:
        return self.expressions.fit(a, b, pos, "TL205", text, fix)

    def _temporary(self, shape: Shape) -> ir.Tile:
        self._temporaries += 1
        tile = ir.Tile(f"t{self._temporaries}_", Level.REGISTER, shape)
        return self.scope.add_tile(tile, self.statement.pos if self.statement else Pos(1, 1))

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
                self.scope.report("TL007", st.pos, f"{st.op} says not where its result goes", "add `and get X`")
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
        if name in ("Assign", "Score") and len(operands) == 2 and not st.get and isinstance(operands[0], s.Name):
            st = replace(st, get=(s.Get(operands[0].id),), operands=operands[1:])
            operands = st.operands
        if name == "Score" and len(operands) == 2:
            operands = operands[1:]
        count = {"Assign": 1, "Score": 1, "Cast": 1}.get(name) or aliases.ELEMENTWISE.get(name, ("", 1))[1]
        if len(operands) != count if count is not None else len(operands) < 2:
            self.scope.report("TL007", st.pos, f"{name} takes {count or 'two or more'} operands, not {len(operands)}")
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
                self.scope.report("TL801", st.pos, f"`{word}` is no dtype", aliases.nearest(word, aliases.DTYPES))
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

    def _sequence(self, axis: ir.Axis | None, pos: Pos) -> ir.Axis | None:
        if axis == NOT_KNOWN:
            self.scope.report("TL207", pos, "the key positions here differ from one way through the program to another")
            return None
        return axis if axis is not None and axis.role == "seq_k" else None

    def _hoist(self, what: str, args: tuple[s.Expr, ...], pos: Pos) -> ir.Tile | None:
        """A tile for a reduction or a product inside an expression."""
        if what == "GEMM":
            return self._product(args[0], args[1], None, False, self.statement)
        return self._reduce(what, args[0], None, None, pos)

    # --- GEMM ---

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
        self, left: s.Expr, right: s.Expr, target: str | None, accumulate: bool, st: s.Compute | s.Infix | None
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
                self.scope.report("TL401", pos, f"`{tile.name}` is a GEMM's result and enters another without Reshape",
                                  f"Reshape {tile.name} from (MMA_C, MMA_M, MMA_N) to (MMA_A, MMA_M, MMA_N_new)")  # fmt: skip
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
        text = f"columns of `{a.tile.name}{'^T' if a.transposed else ''}` meet rows of `{b.tile.name}{'^T' if b.transposed else ''}`"
        with_sizes = f"columns of the first operand (`{a.tile.name}`)"
        if fix and self.scope.same(k, k2) is not Same.ALWAYS and not self.scope.sketch:
            # a forgotten transpose, though some tile sizes hide it
            self.scope.report("TL201", pos, f"{show(k)} {with_sizes} meet {show(k2)}", fix)
        elif not self.scope.sketch:
            self.expressions.fit(k, k2, pos, "TL201", with_sizes if text else text, fix)

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

    # --- masks and softmax ---

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
            takes = "a tile and `where` a condition" if name == "Mask" else "a tile" + (", a width" if "Window" in name else "")
            self.scope.report("TL007", st.pos, f"{name} takes {takes}")
            return
        tile = self._matrix_tile(st.operands[0])
        if tile is None:
            return
        content = self.scope.content(tile)
        value, _ = self.expressions.value(cond, content.axes, masking=True)
        target = self._into(st.get[0].name if st.get else tile.name, tile.shape, content.axes, content.layout, st.pos)
        self.emit(ir.Mask(tile, value, target, st))

    def _matrix_tile(self, expr: s.Expr) -> ir.Tile | None:
        """The tile that an operand names."""
        tile = self.scope.tile(expr.id) if isinstance(expr, s.Name) else None
        if tile is None:
            self._no_tile(expr)
            return None
        return self.expressions.read(tile, expr.pos)

    def _no_tile(self, expr: s.Expr) -> None:
        """Says why an expression that should name a tile does not."""
        before = len(self.scope.findings)
        self.expressions.value(expr)
        if not any(f.is_error for f in self.scope.findings[before:]):
            what = f"`{expr.id}` is a scalar" if isinstance(expr, s.Name) else "this is an expression"
            self.scope.report("TL007", expr.pos, f"a tile is needed here; {what}", "allocate or copy the tile first")

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

    def _bare(self, st: s.Compute, tile: ir.Tile, content: Content, across: ir.Axis | None, target: str) -> None:
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
                scope.note("TL005", st.pos, "Softmax", f"of `{tile.name}` is of whole rows: no loop over keys is around it")
            return
        self.bare.setdefault(loop, []).append(step)
        self.emit(step)

    def is_carried(self, tile: ir.Tile, body: tuple[ir.Node, ...]) -> bool:
        """Whether a tile that a loop's body allocates is meant to outlive a round: nothing in it reads the result."""
        last = max((n for n, node in enumerate(body) if tile in ir.writes(node)), default=-1)
        used_after = any(tile in ir.reads(node) for node in body[last + 1 :])
        return not used_after
