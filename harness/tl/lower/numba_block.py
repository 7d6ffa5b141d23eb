"""Owns the function that computes one block of a kernel's grid in Numba: its tiles and its statements."""

from __future__ import annotations

from harness.tl import ir
from harness.tl.lower import numba_memory, numba_values
from harness.tl.lower.intervals import split
from harness.tl.lower.lowered import LowerError
from harness.tl.lower.numba_layout import aliases, transposed
from harness.tl.lower.numba_scope import Module, Scope
from harness.tl.lower.numba_text import NoText
from harness.tl.lower.numba_values import live, round_tile


class Block:
    """Writes the statements of one kernel; `scope` then holds the lines and what they refer to."""

    def __init__(self, kernel: ir.Kernel, module: Module) -> None:
        self.kernel, self.module = kernel, module
        self.scope = Scope(kernel, module)
        self._shared = aliases(kernel.body)
        self._turned = transposed(kernel.body, self._shared)
        self._full: list[str] = []  # names of "no element is masked", innermost last
        self._tiles: dict[ir.Tile, str] = {}
        self.arrays: dict[str, tuple[str, str]] = {}  # what the block works in -> rows, columns
        for tile in dict.fromkeys(t for n in ir.nodes(kernel.body) for t in (*ir.writes(n), *ir.reads(n))):
            self._tiles[tile] = self.scope.names("tile", tile.key)
        self._body(kernel.body)
        self._allocate()

    def named(self, tile: ir.Tile) -> str:
        """The array that holds a tile."""
        return self._tiles[self._shared.get(tile, tile)]

    def _allocate(self) -> None:
        for tile, name in self._tiles.items():
            if tile in self._shared:
                continue
            try:
                rows, cols = (self.scope.index(extent) for extent in tile.shape)
            except NoText as error:
                raise LowerError(f"tile {tile.name}: {error}") from None
            self.arrays[name] = (cols, rows) if tile in self._turned else (rows, cols)

    def _scratch(self, name: str, rows: ir.Expr, cols: ir.Expr) -> str:
        """An array of that shape for a statement's own use."""
        shape = (self.scope.index(rows), self.scope.index(cols))
        array = self.scope.names(f"scratch {name} {shape}", name)
        if any(
            isinstance(e, ir.Sym) and e.name in self.scope.loops for x in (rows, cols) for e in ir.walk(x)
        ):
            self.scope.line(f"{array} = np.empty(({', '.join(shape)}), np.float32)")
        else:
            self.arrays[array] = shape
        return array

    def _body(self, body: tuple[ir.Node, ...]) -> None:
        for node in body:
            with self.scope.statement(node):
                self._node(node)

    def _node(self, node: ir.Node) -> None:
        scope = self.scope
        match node:
            case ir.Init(value=None) | ir.Reshape():
                pass
            case ir.Init(tile=tile, value=value) if value is not None:
                self._init(tile, value)
            case ir.Load(tile=tile) if tile in self._turned:
                rows = self._scratch(f"{self.named(tile)}_rows", *tile.shape)
                numba_memory.load(node, scope, rows)
                scope.line(scope.call("transpose", rows, self.named(tile)))
            case ir.Load(tile=tile):
                numba_memory.load(node, scope, self.named(tile))
            case ir.Store(tile=tile):
                numba_memory.store(node, scope, self.named(tile))
            case ir.Move(tile=tile, target=target):
                if target not in self._shared and target != tile:
                    numba_values.map_(target, ir.Ref(tile), scope, self.named)
            case ir.Gemm():
                self._gemm(node)
            case ir.Map(result=result, expr=expr):
                numba_values.map_(result, expr, scope, self.named)
            case ir.Reduce():
                numba_values.reduce(node, scope, self.named)
            case ir.Mask():
                self._mask(node)
            case ir.Softmax():
                self._softmax(node)
            case ir.For():
                self._for(node)
            case ir.If():
                with scope.block(f"if {scope.use(scope.scalars.condition(node.cond))}:"):
                    self._body(node.then)
                if node.otherwise:
                    with scope.block("else:"):
                        self._body(node.otherwise)

    def _init(self, tile: ir.Tile, value: ir.Expr) -> None:
        if any(isinstance(part, ir.Ref | ir.Place) for part in ir.walk(value)):
            numba_values.map_(tile, value, self.scope, self.named)
            return
        text = numba_values.rounded(self.scope.scalars.value(value), tile)
        self.scope.line(f"{self.named(tile)}[:] = {self.scope.use(text)}")

    # --- control flow ---

    def _for(self, node: ir.For) -> None:
        scope = self.scope
        start, stop, step = (scope.index(bound) for bound in (node.start, node.stop, node.step))
        if isinstance(node.step, ir.Const) and node.step.value < 1:
            raise scope.error("the step of a loop must be at least 1")
        bounds = (
            stop
            if start == "0" and step == "1"
            else f"{start}, {stop}" + (f", {step}" if step != "1" else "")
        )
        shadowed = node.var in (*scope.loops, *scope.grid)
        var = scope.names.fresh(node.var) if shadowed else scope.names("loop", node.var)
        masked = any(isinstance(inner, ir.Mask) for inner in ir.nodes(node.body))
        ints = [p.name for p in self.module.task.parameters if p.type == "int"]
        full = split(node, self.kernel, ints=[*ints, *self.module.parameters]) if masked else None
        if full is not None:
            first, last = (scope.names(f"full {var}", f"full_{side}") for side in ("start", "stop"))
            scope.line(f"{first} = {scope.index(full.full_start)}  # from here on,")
            scope.line(f"{last} = {scope.index(full.full_stop)}  # and up to here, no mask hides anything")
        outer = scope.loops.get(node.var)
        scope.loops[node.var] = (var, node)
        with scope.block(f"for {var} in range({bounds}):"):
            if full is not None:
                flag = scope.names(f"flag {var}", "full")
                scope.line(f"{flag} = {first} <= {var} < {last}")
                self._full.append(flag)
            self._body(node.body)
            if full is not None:
                self._full.pop()
        scope.loops.pop(node.var)
        if outer is not None:
            scope.loops[node.var] = outer

    def _mask(self, node: ir.Mask) -> None:
        if not self._full:
            numba_values.mask(node, self.scope, self.named)
            return
        with self.scope.block(f"if not {self._full[-1]}:"):
            numba_values.mask(node, self.scope, self.named)
        if node.result != node.tile:
            with self.scope.block("else:"):
                numba_values.map_(node.result, ir.Ref(node.tile), self.scope, self.named)

    # --- matrices ---

    def _gemm(self, node: ir.Gemm) -> None:
        scope, result = self.scope, self.named(node.result)
        (m, k), (k_b, n) = _shape(node.a), _shape(node.b)
        scope.require(k, k_b, "the inner sizes of the product differ")
        scope.require(m, node.result.shape[0], "the product has other rows than its result")
        scope.require(n, node.result.shape[1], "the product has other columns than its result")
        for operand in (node.a, node.b):
            self._slice_inside(operand)
        left, right = self.named(node.a.tile), self.named(node.b.tile)
        if result in (left, right):
            copy = scope.names("copy", f"{result}_before")
            scope.line(f"{copy} = {result}.copy()")
            left, right = (copy if name == result else name for name in (left, right))
        left = self._sliced(node.a, left) + (".T" if node.a.transposed else "")
        if self._shared.get(node.b.tile, node.b.tile) in self._turned:
            if node.b.columns is not None:
                first, last = (scope.index(bound) for bound in node.b.columns)
                right = f"{right}[{first}:{last}]"
        elif node.b.transposed:
            source, right = self._sliced(node.b, right), self._scratch(f"{right}_T", k_b, n)
            scope.line(scope.call("transpose", source, right))
        else:
            right = self._sliced(node.b, right)
        depth = live(node.contracted, k, scope)
        scope.line(scope.call("multiply_add", left, right, result, depth, str(node.accumulate)))
        round_tile(node.result, result, scope)

    def _sliced(self, operand: ir.Operand, name: str) -> str:
        if operand.columns is None:
            return name
        first, last = (self.scope.index(bound) for bound in operand.columns)
        return f"{name}[:, {first}:{last}]"

    def _slice_inside(self, operand: ir.Operand) -> None:
        """The columns must be columns of the tile."""
        if operand.columns is None:
            return
        first, last = operand.columns
        width = operand.tile.shape[1]
        known = [self.module.known(e) for e in (first, last, width)]
        if all(isinstance(e, ir.Const) for e in known):
            a, b, c = (e.value for e in known if isinstance(e, ir.Const))
            if not 0 <= a < b <= c:
                raise self.scope.error(f"{operand.tile.name} has {c} columns, not {a}:{b}")
            return
        inside = [ir.Op("le", (ir.Const(0), first)), ir.Op("lt", (first, last)), ir.Op("le", (last, width))]
        holds = ir.Op("where", (ir.Op("and", tuple(inside)), ir.Const(1), ir.Const(0)))
        self.scope.require(holds, ir.Const(1), f"the columns are no columns of {operand.tile.name}")

    def _softmax(self, node: ir.Softmax) -> None:
        scope, name = self.scope, self.named
        for tile in (node.result, node.m, node.l, *node.rescale, *((node.alpha,) if node.alpha else ())):
            scope.require(
                tile.shape[0], node.tile.shape[0], f"{tile.name} has other rows than {node.tile.name}"
            )
        scope.require(node.result.shape[1], node.tile.shape[1], f"{node.result.name} has other columns")
        if node.alpha is not None:
            alpha = name(node.alpha)
        else:
            alpha = self._scratch("decay", node.tile.shape[0], ir.Const(1))
        if node.result != node.tile:  # not a Map, which would round the scores
            scope.line(f"{name(node.result)}[:] = {name(node.tile)}")
        count = live(node.across, node.tile.shape[1], scope)
        total, result = name(node.l), name(node.result)
        step = scope.call("softmax_step", result, count, name(node.m), total, alpha)
        if numba_values.rounding(node.result.dtype):  # l sums up what the result then holds
            before = self._scratch(f"{total}_before", *node.l.shape)
            scope.line(f"{before}[:] = {total}")
            scope.line(step)
            round_tile(node.result, result, scope)
            with scope.block(f"for r in range({total}.shape[0]):"):
                scope.line(f"{total}[r, 0] = {before}[r, 0] * {alpha}[r, 0] + np.sum({result}[r, :{count}])")
        else:
            scope.line(step)
        for tile in (node.m, node.l):
            round_tile(tile, name(tile), scope)
        for tile in node.rescale:
            scope.line(scope.call("scale_rows", name(tile), alpha))
            round_tile(tile, name(tile), scope)
        if node.alpha is not None:
            round_tile(node.alpha, alpha, scope)


def _shape(operand: ir.Operand) -> tuple[ir.Expr, ir.Expr]:
    rows, cols = operand.tile.shape
    if operand.columns is not None:
        first, last = operand.columns
        cols = last if first == ir.Const(0) else ir.Op("sub", (last, first))
    return (cols, rows) if operand.transposed else (rows, cols)
