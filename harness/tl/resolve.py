"""Owns the step from a syntax tree to the resolved form: what every word stands for, or what is wrong with it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from harness.tl import aliases, ir
from harness.tl import syntax as s
from harness.tl.compute import Computes
from harness.tl.diagnostics import Finding, TLError
from harness.tl.evaluate import op
from harness.tl.expressions import NAUGHT, ONE, Shape, show
from harness.tl.globals import Globals
from harness.tl.problem import TaskLike
from harness.tl.scope import UNKNOWN, Scope
from harness.tl.syntax import Level, Pos

_FROM = ("MMA_C", "MMA_M", "MMA_N")
_TO = (("MMA_A", "MMA_M", "MMA_N_new"), ("MMA_A", "MMA_M", "MMA_K"), ("MMA_A", "MMA_M", "MMA_N"))
_NAMES_AT = {"l": "row", "c": "col"}


@dataclass(frozen=True, slots=True)
class Resolution:
    """The resolved program with everything found on the way; `program` is None where an error stands.

    `partial` is what could be resolved in spite of errors, or of a sketch: for further checks only.
    """

    program: ir.Program | None
    findings: tuple[Finding, ...]
    partial: ir.Program


def resolve(program: s.Program, task: TaskLike) -> ir.Program:
    """The resolved form of TL code; raises TLError with all findings where it has errors."""
    found = resolve_leniently(program, task)
    if found.program is None:
        raise TLError(found.findings)
    return found.program


def resolve_leniently(program: s.Program, task: TaskLike, sketch: bool = False) -> Resolution:
    """The resolved form with all findings. A sketch may leave sizes open and has no resolved form."""
    findings: list[Finding] = []
    parameters: dict[str, tuple[int, ...]] = {}
    schedule: dict[str, tuple[int | str, ...]] = {}
    for kernel in program.kernels:
        for st in s.statements(kernel.body):
            if isinstance(st, s.Tile):
                parameters.update(st.parameters)
            elif isinstance(st, s.Schedule):
                schedule.update(st.items)
    kernels = []
    shared: dict[str, ir.Matrix] = {}  # workspaces: a later kernel reads what an earlier one wrote
    for number, kernel in enumerate(program.kernels):
        scope = Scope(task, sketch, findings, parameters)
        kernels.append(KernelResolver(scope).run(kernel, number, shared))
    if not sketch:
        _never_stored(program, task, kernels, findings)
    name = next((k.name for k in program.kernels if k.name), task.name)
    partial = ir.Program(name, task.name, tuple(kernels), tuple(parameters.items()), tuple(schedule.items()))
    done = None if sketch or any(f.is_error for f in findings) else partial
    return Resolution(done, tuple(sorted(findings, key=lambda f: (f.pos.line, f.pos.column))), partial)


def _never_stored(
    program: s.Program, task: TaskLike, kernels: list[ir.Kernel], findings: list[Finding]
) -> None:
    from harness.tl.diagnostics import finding

    stored = {n.matrix.tensor for k in kernels for n in ir.nodes(k.body) if isinstance(n, ir.Store)}
    for tensor in task.tensors:
        if tensor.role == "output" and tensor.name not in stored:
            last = [k.body[-1].pos for k in program.kernels if k.body]
            findings.append(
                finding("TL102", last[-1] if last else Pos(1, 1), f"the output `{tensor.name}` is never stored",
                        "end with: Copy O (BM, dim_v) in coordinate [L = i] from register to global")  # fmt: skip
            )


class KernelResolver:
    """Resolves the statements of one kernel in order."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self._out: list[list[ir.Node]] = [[]]
        self.computes = Computes(scope, self._emit)
        self.ex = self.computes.expressions
        self.globals = Globals(scope, self.ex)
        self._loop_allocations: list[dict[ir.Tile, Pos]] = []

    def run(self, kernel: s.Kernel, number: int, workspaces: dict[str, ir.Matrix]) -> ir.Kernel:
        scope = self.scope
        scope.matrices.update({m.name: m for m in workspaces.values()})
        self.globals.declare(kernel.body)
        body = self._block(kernel.body, top=True)
        for matrix in scope.matrices.values():
            if matrix.workspace:
                workspaces[matrix.tensor] = matrix
        self._unused()
        tiles = tuple(dict.fromkeys(t for n in ir.nodes(body) for t in (*ir.reads(n), *ir.writes(n))))
        used = {n.matrix.name for n in ir.nodes(body) if isinstance(n, ir.Load | ir.Store)}
        used |= {n.via.name for n in ir.nodes(body) if isinstance(n, ir.Load) and n.via is not None}
        matrices = tuple(m for m in scope.matrices.values() if m.name in used)
        name = kernel.name or ("kernel" if number == 0 else f"kernel_{number + 1}")
        return ir.Kernel(name, tuple(scope.grid.values()), matrices, tiles, body, kernel.pos)

    def _emit(self, node: ir.Node) -> None:
        self._out[-1].append(node)

    def _block(self, body: tuple[s.Statement, ...], top: bool = False) -> tuple[ir.Node, ...]:
        self._out.append([])
        for st in body:
            self._statement(st, top)
        return tuple(self._with_bare_states(self._out.pop()))

    def _statement(self, st: s.Statement, top: bool) -> None:
        match st:
            case s.Let(name=name):
                if name in self.scope.loops or name in self.scope.grid:
                    self.scope.report("TL104", st.pos, f"`{name}` is an index already")
                self.scope.lets[name] = st.value
            case s.Allocate():
                if st.level is not Level.GLOBAL:
                    self._allocate(st)
            case s.Copy():
                self._copy(st)
            case s.Compute() | s.Infix():
                self.computes.run(st)
            case s.Reshape():
                self._reshape(st)
            case s.For():
                self._for(st)
            case s.If():
                self._if(st)

    # --- allocation ---

    def _allocate(self, st: s.Allocate) -> None:
        scope = self.scope
        if not st.shape and not scope.sketch:
            scope.report("TL205", st.pos, f"`{st.name}` has no shape", f"Allocate {st.name} in {st.level} (BM, dim)")
        shape = self.tile_shape(st.shape)
        dtype = aliases.DTYPES.get(st.dtype) if st.dtype else None
        if st.dtype and dtype is None:
            scope.report("TL801", st.pos, f"`{st.dtype}` is no dtype", aliases.nearest(st.dtype, aliases.DTYPES))
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
                self.scope.report("TL203", shape[0].pos, f"a tile has rows and columns, not {len(shape)} axes")
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
                scope.report("TL203", st.pos, f"the copy of `{st.name}` has no shape",
                             f"Copy {st.name} (BN, {show(matrix.cols)}) in coordinate [L = ...] ...")  # fmt: skip
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
                scope.report("TL203", st.pos, f"`{key}` is no coordinate", "L and C count blocks, row and col elements")
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
                    scope.report("TL203", st.pos, f"`{st.name}` has {show(extent)} {what}, the tile {show(size)}: which ones?",
                                 f"in coordinate [L = {'i' if matrix.row_role == 'seq_q' else 'j'}]")  # fmt: skip
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
            self.ex.fit(tile.shape[at], target.shape[at], st.pos, "TL205", f"{what}; `{st.name}` in {st.target} has")
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
        source, target = ([x.id if isinstance(x, s.Name) else "" for x in part] for part in (st.source, st.target))
        content = scope.content(tile)
        if content.layout != "accumulator":
            scope.report("TL402", st.pos, f"`{st.name}` is no GEMM's result here: nothing is to reshape")
        if tuple(source) != _FROM or tuple(target) not in _TO:
            scope.report("TL403", st.pos, f"`{st.name}` goes to a layout that no GEMM takes its first operand in")
        self.ex.read(tile, st.pos)
        scope.hold(tile, content.axes, "operand")
        self._emit(ir.Reshape(tile, st))

    # --- control ---

    def _for(self, st: s.For) -> None:
        scope = self.scope
        if st.var in (*scope.loops, *scope.grid, *scope.parameters) or scope.tile(st.var):
            scope.report("TL104", st.pos, f"`{st.var}` has a meaning already")
        start, stop = self.ex.index(st.start), self.ex.index(st.stop)
        step = self.ex.index(st.step) if st.step is not None else ONE
        before = scope.snapshot()
        scope.loops.append(st.var)
        allocated: dict[ir.Tile, Pos] = {}
        self._loop_allocations.append(allocated)
        with scope.rehearsal():  # once to see what the body leaves behind
            bare, temporaries = dict(self.computes.bare), self.computes._temporaries
            self._block(st.body)
            self.computes.bare, self.computes._temporaries = bare, temporaries
        scope.enter_loop(before, st.var, start, step)
        body = self._block(st.body)
        self._loop_allocations.pop()
        self._allocated_inside(body, allocated)
        scope.leave_loop(before, st.var)
        scope.loops.pop()
        self._emit(ir.For(st.var, start, stop, step, body, st))

    def _allocated_inside(self, body: tuple[ir.Node, ...], allocated: dict[ir.Tile, Pos]) -> None:
        """An accumulator that starts anew in each round of its own loop."""
        for node in body:
            grown = node.result if isinstance(node, ir.Gemm) and node.accumulate else None
            state = (node.m, node.l) if isinstance(node, ir.Softmax) else ()
            for tile in (grown, *state):
                if tile is not None and tile in allocated and self.computes.is_carried(tile, body):
                    self.scope.report("TL304", allocated[tile],
                                      f"`{tile.name}` is allocated in the loop that accumulates it: each round forgets the last")  # fmt: skip

    def _if(self, st: s.If) -> None:
        scope = self.scope
        cond = self.ex.index(st.condition)
        before = scope.snapshot()
        then = self._block(st.then)
        one = scope.snapshot()
        scope.contents = dict(before)
        otherwise = self._block(st.otherwise)
        scope.join_branches(one, scope.snapshot())
        self._emit(ir.If(cond, then, otherwise, st))

    # --- the state of a softmax that names none ---

    def _with_bare_states(self, out: list[ir.Node]) -> list[ir.Node]:
        """Loops whose softmax keeps its own state get it: before the first, and divided by after the last."""
        steps = {n: [x for x in ir.nodes((n,)) if isinstance(x, ir.Softmax) and x in self._own(n)]
                 for n in out if isinstance(n, ir.For)}  # fmt: skip
        loops = [n for n, found in steps.items() if found]
        if not loops:
            return out
        state = steps[loops[0]][0]
        m, l = state.m, state.l  # noqa: E741
        fed = tuple(dict.fromkeys(t for n in loops for x in steps[n] for t in self._fed(n, x)))
        first, last = out.index(loops[0]), out.index(loops[-1])
        named = self._declared_state(out[:first], state)
        if named is not None:
            m, l = named  # noqa: E741
        def settled(node: ir.Node) -> ir.Node:
            if isinstance(node, ir.Softmax) and any(node in found for found in steps.values()):
                rescale = tuple(dict.fromkeys((*node.rescale, *fed)))
                return ir.Softmax(node.tile, m, l, node.result, rescale, None, node.across, node.source)
            return node
        for n in loops:
            self.computes.bare.pop(n.var, None)  # type: ignore[attr-defined]
        result = [rebuilt(n, settled) for n in out]
        st = state.source
        pos = st.pos if st is not None else Pos(1, 1)
        words = ", ".join(f"`{t.name}`" for t in fed) or "nothing"
        if named is not None:
            self.scope.note("TL005", pos, "Softmax", f"keeps its state in `{m.name}`, `{l.name}` and rescales {words}")
            return result
        self.scope.note("TL005", pos, "Softmax", f"keeps a maximum and a sum of its own, rescales {words}, "
                        "and divides by the sum after the loop")  # fmt: skip
        begin: list[ir.Node] = [ir.Init(m, ir.Const(-math.inf), st), ir.Init(l, NAUGHT, st)]
        finish = [ir.Map(t, ir.Op("div", (ir.Ref(t), ir.Ref(l))), st) for t in fed]
        return [*result[:first], *begin, *result[first : last + 1], *finish, *result[last + 1 :]]

    def _own(self, loop: ir.For) -> list[ir.Softmax]:
        return [x for n in ir.nodes((loop,)) if isinstance(n, ir.For) for x in self.computes.bare.get(n.var, [])]

    def _fed(self, loop: ir.For, step: ir.Softmax) -> list[ir.Tile]:
        """The accumulators that the softmax's result flows into, in its loop."""
        tainted, found = {step.result}, []
        for node in ir.nodes((loop,)):
            if isinstance(node, ir.Gemm) and node.accumulate and {node.a.tile, node.b.tile} & tainted:
                found.append(node.result)
            elif tainted & set(ir.reads(node)) and isinstance(node, ir.Map | ir.Move):
                tainted |= set(ir.writes(node))
        return found

    def _declared_state(self, before: list[ir.Node], step: ir.Softmax) -> tuple[ir.Tile, ir.Tile] | None:
        """Two vectors, one of -inf and one of 0, that the program made for a state and never names again."""
        inits = [n for n in before if isinstance(n, ir.Init) and n.tile.shape[1] == ONE and isinstance(n.value, ir.Const)]
        idle = [n for n in inits if n.tile not in self.scope.used or n.value == ir.Const(-math.inf) or n.value == NAUGHT]
        m = [n.tile for n in idle if isinstance(n.value, ir.Const) and n.value.value == -math.inf and self._fits(n.tile, step)]
        l = [n.tile for n in idle if isinstance(n.value, ir.Const) and n.value.value == 0 and self._fits(n.tile, step)]  # noqa: E741
        if len(m) == 1 and len(l) == 1:
            self.scope.used.update((m[0], l[0]))
            return m[0], l[0]
        return None

    def _fits(self, tile: ir.Tile, step: ir.Softmax) -> bool:
        return self.scope.same(tile.shape[0], step.tile.shape[0]).value == "always"

    def _unused(self) -> None:
        scope = self.scope
        if scope.sketch:
            return
        for tile in scope.tiles.values():
            if tile not in scope.used and not tile.name.endswith("_"):
                scope.report("TL103", scope.places.get(tile, Pos(1, 1)), f"`{tile.name}` in {tile.level} is never used")


def rebuilt(node: ir.Node, change: Callable[[ir.Node], ir.Node]) -> ir.Node:
    """The operation with `change` applied to it and to everything inside it."""
    if isinstance(node, ir.For):
        body = tuple(rebuilt(n, change) for n in node.body)
        return ir.For(node.var, node.start, node.stop, node.step, body, node.source)
    if isinstance(node, ir.If):
        then, otherwise = (tuple(rebuilt(n, change) for n in part) for part in (node.then, node.otherwise))
        return ir.If(node.cond, then, otherwise, node.source)
    return change(node)
