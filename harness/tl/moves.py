"""Owns the step from allocations, copies and reshapes to operations."""

from __future__ import annotations

from harness.tl import aliases, ir
from harness.tl import syntax as s
from harness.tl.compute import Computes
from harness.tl.evaluate import op
from harness.tl.expressions import NAUGHT, ONE, Shape, show
from harness.tl.globals import Globals
from harness.tl.scope import UNKNOWN, Scope
from harness.tl.syntax import Level, Pos

_FROM = ("MMA_C", "MMA_M", "MMA_N")
_TO = (("MMA_A", "MMA_M", "MMA_N_new"), ("MMA_A", "MMA_M", "MMA_K"), ("MMA_A", "MMA_M", "MMA_N"))
_NAMES_AT = {"l": "row", "c": "col"}


class Moves:
    """Resolves how tiles are made and moved in one kernel."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self._out: list[list[ir.Node]] = [[]]
        self.computes = Computes(scope, self._emit)
        self.ex = self.computes.expressions
        self.globals = Globals(scope, self.ex)
        self._loop_allocations: list[dict[ir.Tile, Pos]] = []

    def _emit(self, node: ir.Node) -> None:
        self._out[-1].append(node)

    def _allocate(self, st: s.Allocate) -> None:
        scope = self.scope
        if not st.shape and not scope.sketch:
            scope.report(
                "TL205", st.pos, f"`{st.name}` has no shape", f"Allocate {st.name} in {st.level} (BM, dim)"
            )
        shape = self.tile_shape(st.shape)
        dtype = aliases.DTYPES.get(st.dtype) if st.dtype else None
        if st.dtype and dtype is None:
            scope.report(
                "TL801", st.pos, f"`{st.dtype}` is no dtype", aliases.nearest(st.dtype, aliases.DTYPES)
            )
        if (st.name, st.level) in scope.tiles and not self._again(st):
            scope.report("TL104", st.pos, f"`{st.name}` in {st.level} is allocated already")
        if st.name in (*scope.loops, *scope.grid, *scope.parameters):
            scope.report("TL104", st.pos, f"`{st.name}` is a scalar already")
        tile = scope.add_tile(ir.Tile(st.name, st.level, shape, dtype), st.pos)
        scope.places[tile] = st.pos
        if self._loop_allocations:
            self._loop_allocations[-1][tile] = st.pos
        value = self.ex.value(st.init)[0] if st.init is not None else None
        if value is not None:
            scope.hold(tile)
        else:
            scope.contents.pop(tile, None)
        self._emit(ir.Init(tile, value, st))

    def _again(self, st: s.Allocate) -> bool:
        """Whether this very statement allocated it, in an earlier reading of a loop's body."""
        return any(t.name == st.name and t.level is st.level and self.scope.places.get(t) == st.pos
                   for t in self.scope.tiles.values())  # fmt: skip

    def tile_shape(self, shape: tuple[s.Expr, ...]) -> Shape:
        """Two axes: a vector (n) is (n, 1)."""
        sizes = [self.ex.index(x) for x in shape]
        if len(sizes) > 2:
            sizes = [x for x in sizes if x != ONE]
            if len(sizes) > 2:
                self.scope.report(
                    "TL203", shape[0].pos, f"a tile has rows and columns, not {len(shape)} axes"
                )
        if not sizes:
            return (UNKNOWN, UNKNOWN)
        return (sizes[0], sizes[1]) if len(sizes) >= 2 else (sizes[0], ONE)

    # --- copies ---

    def _copy(self, st: s.Copy) -> None:
        if st.source is Level.GLOBAL and st.target is Level.GLOBAL:
            self.scope.report("TL305", st.pos, "a copy from global to global moves nothing through the block")
        elif st.source is Level.GLOBAL:
            self._load(st)
        elif st.target is Level.GLOBAL:
            self._store(st)
        else:
            self._move(st)

    def _load(self, st: s.Copy) -> None:
        scope = self.scope
        matrix = self.globals.matrix(st.name, st.pos)
        if matrix is None:
            if scope.tile(st.name, st.target) is None:  # so that what uses it is no second error
                scope.add_tile(ir.Tile(st.name, st.target, (UNKNOWN, UNKNOWN)), st.pos)
            scope.hold(scope.tiles[st.name, st.target])
            return
        tile = self._copied_tile(st, matrix)
        row, col = self._place(st, matrix, tile.shape)
        via = None
        if st.via is not None:
            via = self.globals.matrix(st.via, st.pos)
        pad = self.ex.value(st.pad)[0] if st.pad is not None else NAUGHT
        axes = [ir.Axis(role, at) if role is not None else None
                for role, at in ((matrix.row_role, row), (matrix.col_role, col))]  # fmt: skip
        scope.hold(tile, (axes[0], axes[1]))
        self._emit(ir.Load(tile, matrix, row, col, pad, via, st))

    def _copied_tile(self, st: s.Copy, matrix: ir.Matrix) -> ir.Tile:
        """The tile a copy fills: the allocated one, or a new one of the shape that the copy gives."""
        scope = self.scope
        known = scope.tiles.get((st.name, st.target))
        if not st.shape:
            if known is None and not scope.sketch:
                fix = f"Copy {st.name} (BN, {show(matrix.cols)}) in coordinate [L = ...] ..."
                scope.report("TL203", st.pos, f"the copy of `{st.name}` has no shape", fix)
            return known or scope.add_tile(ir.Tile(st.name, st.target, (UNKNOWN, UNKNOWN)), st.pos)
        shape = self.tile_shape(st.shape)
        if known is None:
            return scope.add_tile(ir.Tile(st.name, st.target, shape), st.pos)
        for at, what in ((0, "rows"), (1, "columns")):
            text = f"{what} of the copy; `{st.name}` in {st.target} is allocated with"
            self.ex.fit(shape[at], known.shape[at], st.pos, "TL205", text)
        return known

    def _place(self, st: s.Copy, matrix: ir.Matrix, shape: Shape) -> tuple[ir.Expr, ir.Expr]:
        """The absolute row and column where the tile starts."""
        scope = self.scope
        length = matrix.row_role if matrix.row_role in ("seq_q", "seq_k") else "seq_k"
        places: list[ir.Expr | None] = [None, None]
        for key, expr in st.coordinate:
            word = key.lower()
            kind = _NAMES_AT.get(word, word)
            if kind not in ("row", "col"):
                scope.report(
                    "TL203", st.pos, f"`{key}` is no coordinate", "L and C count blocks, row and col elements"
                )
                continue
            at = 0 if kind == "row" else 1
            value = self.globals.coordinate(expr, at, matrix, shape, length)
            places[at] = op("mul", value, shape[at]) if word in _NAMES_AT else value
        for at, extent, what in ((0, matrix.rows, "rows"), (1, matrix.cols, "columns")):
            size = shape[at]
            if places[at] is None:
                places[at] = NAUGHT
                if scope.sketch or size == UNKNOWN:
                    continue
                if at == 0 and scope.same(size, extent).value == "never":
                    has = f"`{st.name}` has {show(extent)} {what}, the tile {show(size)}: which ones?"
                    block = "i" if matrix.row_role == "seq_q" else "j"
                    scope.report("TL203", st.pos, has, f"in coordinate [L = {block}]")
                elif at == 1:
                    self.ex.fit(size, extent, st.pos, "TL203", f"columns of the tile against `{st.name}`:")
        return places[0] or NAUGHT, places[1] or NAUGHT

    def _store(self, st: s.Copy) -> None:
        scope = self.scope
        tile = scope.tile(st.name, st.source)
        if tile is None:
            where = scope.tile(st.name)
            scope.report("TL305" if where else "TL101", st.pos, f"`{st.name}` is not in {st.source}",
                         f"copy from {where.level}" if where else "compute it first")  # fmt: skip
            return
        self.ex.read(tile, st.pos)
        matrix = self.globals.matrix(st.name, st.pos)
        if matrix is None:
            return
        tensor = next((t for t in scope.task.tensors if t.name == matrix.tensor), None)
        if tensor is not None and tensor.role != "output":
            scope.report("TL302", st.pos, f"`{st.name}` is an input of the task; it is not to be written")
        shape = self.tile_shape(st.shape) if st.shape else tile.shape
        for at, what in ((0, "rows"), (1, "columns")):
            self.ex.fit(shape[at], tile.shape[at], st.pos, "TL205", f"{what} of the copy; `{st.name}` has")
        row, col = self._place(st, matrix, tile.shape)
        self._emit(ir.Store(tile, matrix, row, col, st))

    def _move(self, st: s.Copy) -> None:
        scope = self.scope
        tile = scope.tile(st.name, st.source)
        if tile is None:
            where = scope.tile(st.name)
            scope.report("TL305" if where else "TL101", st.pos, f"`{st.name}` is not in {st.source}",
                         f"copy it to {st.source} first")  # fmt: skip
            tile = scope.add_tile(ir.Tile(st.name, st.source, (UNKNOWN, UNKNOWN)), st.pos)
            scope.hold(tile)
        self.ex.read(tile, st.pos)
        content = scope.content(tile)
        target = scope.tiles.get((st.name, st.target))
        if target is None:
            target = scope.add_tile(ir.Tile(st.name, st.target, tile.shape), st.pos)
        for at, what in ((0, "rows"), (1, "columns")):
            self.ex.fit(
                tile.shape[at], target.shape[at], st.pos, "TL205", f"{what}; `{st.name}` in {st.target} has"
            )
        layout = content.layout if Level.SHARED not in (st.source, st.target) else ""
        scope.hold(target, content.axes, layout)
        self._emit(ir.Move(tile, target, st))

    def _reshape(self, st: s.Reshape) -> None:
        scope = self.scope
        tile = scope.tile(st.name)
        if tile is None:
            near = aliases.nearest(st.name, scope.known_names())
            scope.report("TL101", st.pos, f"nothing called `{st.name}` was made before this", near)
            return
        source, target = (
            [x.id if isinstance(x, s.Name) else "" for x in part] for part in (st.source, st.target)
        )
        content = scope.content(tile)
        if content.layout != "accumulator":
            scope.report("TL402", st.pos, f"`{st.name}` is no GEMM's result here: nothing is to reshape")
        if tuple(source) != _FROM or tuple(target) not in _TO:
            scope.report(
                "TL403", st.pos, f"`{st.name}` goes to a layout that no GEMM takes its first operand in"
            )
        self.ex.read(tile, st.pos)
        scope.hold(tile, content.axes, "operand")
        self._emit(ir.Reshape(tile, st))
