"""Owns the step from a syntax tree to the resolved form: what every word stands for, or what is wrong."""

from __future__ import annotations

from dataclasses import dataclass

from harness.tl import ir
from harness.tl import syntax as s
from harness.tl.bare import BareStates
from harness.tl.diagnostics import Finding, TLError
from harness.tl.expressions import ONE
from harness.tl.moves import Moves
from harness.tl.problem import TaskLike
from harness.tl.scope import Scope
from harness.tl.syntax import Level, Pos


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
                finding(
                    "TL102",
                    last[-1] if last else Pos(1, 1),
                    f"the output `{tensor.name}` is never stored",
                    "end with: Copy O (BM, dim_v) in coordinate [L = i] from register to global",
                )
            )


class KernelResolver(Moves):
    """Resolves the statements of one kernel in order."""

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

    def _block(self, body: tuple[s.Statement, ...], top: bool = False) -> tuple[ir.Node, ...]:
        self._out.append([])
        for st in body:
            self._statement(st, top)
        return tuple(BareStates(self.scope, self.computes).settle(self._out.pop()))

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
                    problem = "is allocated in the loop that accumulates it: each round forgets the last"
                    self.scope.report("TL304", allocated[tile], f"`{tile.name}` {problem}")

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

    def _unused(self) -> None:
        scope = self.scope
        if scope.sketch:
            return
        for tile in scope.tiles.values():
            if tile not in scope.used and not tile.name.endswith("_"):
                scope.report(
                    "TL103", scope.places.get(tile, Pos(1, 1)), f"`{tile.name}` in {tile.level} is never used"
                )
