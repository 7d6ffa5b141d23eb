"""Owns device memory as a kernel sees it: matrices over the task's tensors, their offsets, and the grid."""

from __future__ import annotations

from harness.tl import aliases, ir
from harness.tl import syntax as s
from harness.tl.evaluate import evaluate, op
from harness.tl.expressions import NAUGHT, ONE, Expressions, Shape, show
from harness.tl.problem import TensorLike
from harness.tl.scope import UNKNOWN, Scope
from harness.tl.shapes import Same, environments, equal, symbols_of
from harness.tl.syntax import Level, Pos

_ROLES = {"batch": "batch", "heads": "heads", "kv_heads": "kv_heads"}


class Globals:
    """Resolves Grid statements, global allocations and the coordinates of copies of one kernel."""

    def __init__(self, scope: Scope, expressions: Expressions) -> None:
        self.scope = scope
        self.ex = expressions

    def declare(self, body: tuple[s.Statement, ...]) -> None:
        """Everything that stands for the whole kernel, wherever it is written."""
        scope = self.scope
        grids = [st for st in s.statements(body) if isinstance(st, s.Grid)]
        for st in s.statements(body):
            if isinstance(st, s.Let):
                scope.lets[st.name] = st.value
        for extra in grids[1:]:
            scope.report("TL104", extra.pos, "the kernel has a Grid already")
        if grids:
            scope.grid_written = True
            for name, extent in grids[0].axes:
                self._grid_axis(name, extent, grids[0].pos)
        for st in s.statements(body):
            if isinstance(st, s.Allocate) and st.level is Level.GLOBAL:
                self._matrix(st)

    def _grid_axis(self, name: str, extent: s.Expr, pos: Pos) -> None:
        scope = self.scope
        size = self.ex.index(extent, "seq_q")
        if name in scope.symbols or name in scope.parameters or name in scope.grid:
            scope.report("TL104", pos, f"`{name}` has a meaning already")
        role = next((r for r, of in _ROLES.items() if equal(size, ir.Sym(of))), None)
        if role is None and equal(size, ir.Op("mul", (ir.Sym("batch"), ir.Sym("heads")))):
            role = "batch heads"
        if role is None and ir.Sym("seq_q") in set(ir.walk(size)):
            role = "rows"
        taken = {axis.role for axis in scope.grid.values()}
        scope.grid[name] = ir.GridAxis(name, size, None if role in taken else role)

    # --- matrices ---

    def tensor(self, name: str) -> TensorLike | None:
        """The task's tensor that a name means: in any case, and O for the output."""
        tensors = {t.name.lower(): t for t in self.scope.task.tensors}
        word = name.lower()
        if word in tensors:
            return tensors[word]
        outputs = [t for t in tensors.values() if t.role == "output"]
        return outputs[0] if word in aliases.OUTPUTS and len(outputs) == 1 else None

    def matrix(self, name: str, pos: Pos) -> ir.Matrix | None:
        """The matrix of that name; a finding where none is allocated."""
        scope = self.scope
        known = scope.matrix(name)
        if known is not None:
            return known
        tensor = self.tensor(name)
        if tensor is None:
            near = aliases.nearest(name, [t.name for t in scope.task.tensors])
            scope.report("TL106", pos, f"the task has no tensor `{name}`", near)
            return None
        if not scope.sketch:
            rows, cols = (
                (tensor.axes[1], tensor.axes[-1]) if len(tensor.axes) == 4 else (*tensor.axes, "1")[-2:]
            )
            scope.report("TL302", pos, f"`{name}` is copied but never allocated in global",
                         f"Allocate {name} in global ({rows}, {cols})")  # fmt: skip
        matrix = self._view(name, tensor, None, (), pos)
        scope.matrices[name] = matrix
        return matrix

    def _matrix(self, st: s.Allocate) -> None:
        scope = self.scope
        if st.name in scope.matrices and not scope.matrices[st.name].workspace:
            scope.report("TL104", st.pos, f"`{st.name}` in global is allocated already")
        tensor = self.tensor(st.name)
        if st.workspace or (st.name in scope.matrices and tensor is None):
            self._workspace(st)
            return
        if tensor is None:
            near = aliases.nearest(st.name, [t.name for t in scope.task.tensors])
            scope.report("TL106", st.pos, f"the task has no tensor `{st.name}`", near or "add `workspace`")
            return
        scope.matrices[st.name] = self._view(st.name, tensor, st, st.offset, st.pos)

    def _view(
        self, name: str, tensor: TensorLike, st: s.Allocate | None, offset: tuple[s.Expr, ...], pos: Pos
    ) -> ir.Matrix:
        kept = self._kept(tensor, st)
        fixed = [axis for axis in tensor.axes if axis not in kept]
        indices = self._indices(name, tensor, fixed, offset, pos)
        axes: list[ir.Expr | str] = []
        for axis in tensor.axes:
            axes.append(indices[axis] if axis in indices else "row" if axis == kept[0] else "col")
        rows: ir.Expr = ir.Sym(kept[0])
        cols: ir.Expr = ir.Sym(kept[1]) if len(kept) > 1 else ONE
        col_role = kept[1] if len(kept) > 1 else None
        return ir.Matrix(name, tensor.name, tuple(axes), rows, cols, kept[0], col_role)  # type: ignore[arg-type]

    def _kept(self, tensor: TensorLike, st: s.Allocate | None) -> tuple[str, ...]:
        """The axes that remain, by the shape: two of them, or one."""
        usual = tuple(a for a in tensor.axes if a not in ("batch", "heads", "kv_heads"))
        if st is None or not st.shape:
            return usual or tensor.axes[-1:]
        if len(st.shape) == len(tensor.axes) > 2:
            self.scope.note(
                "TL005",
                st.pos,
                st.name,
                f"is seen as a matrix ({', '.join(usual)}) of its batch entry and head",
            )
            return usual
        if len(st.shape) > 2:
            fix = f"Allocate {st.name} in global ({', '.join(usual)}) with offset (b, h)"
            self.scope.report("TL208", st.pos, f"`{st.name}` has the axes ({', '.join(tensor.axes)})", fix)
            return usual
        kept: list[str] = []
        left = list(tensor.axes)
        for size in st.shape:
            with_lengths = next((a for a in left if a.startswith("seq")), "seq_k")
            value = self.ex.index(size, with_lengths)
            if value == ONE and kept:
                continue
            match = next(
                (a for a in left if self.scope.same(value, ir.Sym(a)) is Same.ALWAYS and a in usual), None
            )
            match = match or next((a for a in left if self.scope.same(value, ir.Sym(a)) is Same.ALWAYS), None)
            if match is None:
                match = next(
                    (a for a in left if a in usual and self.scope.same(value, ir.Sym(a)) is Same.SOMETIMES),
                    None,
                )
                if match is not None and not self.scope.sketch:
                    self.scope.report(
                        "TL206", st.pos, f"{show(value)} is {match} for some shapes of the task only"
                    )
            if match is None:
                if not self.scope.sketch:
                    axes = ", ".join(tensor.axes)
                    problem = f"no axis of `{st.name}` ({axes}) has {show(value)} elements"
                    fix = f"Allocate {st.name} in global ({', '.join(usual)})"
                    self.scope.report("TL208", st.pos, problem, fix)
                return usual
            kept.append(match)
            left = left[left.index(match) + 1 :] if left.index(match) + 1 < len(left) else []
        return tuple(kept)

    def _indices(
        self, name: str, tensor: TensorLike, fixed: list[str], offset: tuple[s.Expr, ...], pos: Pos
    ) -> dict[str, ir.Expr]:
        """The index of each axis that is not kept, as written or as the task gives it."""
        scope = self.scope
        if len(offset) == 1 and isinstance(offset[0], s.Name) and len(fixed) != 1:
            word = offset[0].id
            if word not in (*scope.grid, *scope.lets):
                usual = self._usual(fixed, pos)
                text = ", ".join(show(usual[a]) for a in fixed)
                scope.note("TL004", pos, word, f"is read as the offset of `{name}`: ({text})")
                return usual
        if not offset:
            usual = self._usual(fixed, pos)
            if not scope.sketch and fixed:
                text = ", ".join(show(usual[a]) for a in fixed)
                scope.note("TL005", pos, name, f"has the offset ({text})")
            return usual
        if len(offset) != len(fixed):
            if not scope.sketch:
                axes = ", ".join(fixed)
                right = ", ".join(show(e) for e in self._usual(fixed, pos).values())
                problem = f"the offset of `{name}` has {len(offset)} entries for the axes ({axes})"
                scope.report("TL208", pos, problem, f"with offset ({right})")
            return self._usual(fixed, pos)
        indices = {}
        for axis, expr in zip(fixed, offset, strict=True):
            indices[axis] = self._offset_entry(axis, expr, pos)
        self._check_offset(name, indices, pos)
        return indices

    def _offset_entry(self, axis: str, expr: s.Expr, pos: Pos) -> ir.Expr:
        """One entry; an unknown single name there is what the task's own offset says."""
        scope = self.scope
        role = {"batch": "batch", "heads": "heads", "kv_heads": "heads"}.get(axis, axis)
        unknown = [
            n for n in s.names(expr) if n not in scope.known_names() and n.lower() not in aliases.SYMBOLS
        ]
        if len(unknown) == 1 and not scope.grid_of(role) and not scope.grid_written:
            scope.ensure_grid(role, unknown[0], ir.Sym(role), pos)
        elif len(unknown) == 1 and scope.grid_of(role) is not None and isinstance(expr, s.Name):
            word = expr.id.lower()
            if axis == "kv_heads" and word in aliases.HEAD_INDICES:
                pass  # `h` for a tensor of kv heads: a mistake to be found, where heads share them
            else:
                usual = self._usual([axis], pos)[axis]
                scope.note("TL004", pos, expr.id, f"is read as {show(usual)}, the index of the {axis}")
                return usual
        return self.ex.index(expr)

    def _check_offset(self, name: str, indices: dict[str, ir.Expr], pos: Pos) -> None:
        """Whether the offset picks what the task gives this block: a wrong kv head is a wrong result."""
        scope = self.scope
        if scope.sketch or any(scope.grid_of(role) is None for role in ("batch", "heads")):
            return
        for axis, usual in self._usual(list(indices), pos).items():
            if not equal(indices[axis], usual) and not self._agree(indices[axis], usual):
                scope.report("TL208", pos, f"`{name}` is indexed by {show(indices[axis])} along {axis}",
                             f"the task gives this block {show(usual)}")  # fmt: skip

    def _agree(self, a: ir.Expr, b: ir.Expr) -> bool:
        """Whether two offsets agree on every shape of the task and every index of the grid."""
        scope = self.scope
        names = symbols_of(a, b, *(axis.extent for axis in scope.grid.values()))
        for env in environments(scope.task, {}, names.difference(scope.parameters)):
            sizes = {**env, **{p: c[0] for p, c in scope.parameters.items()}}
            try:
                points = {axis.name: evaluate(axis.extent, sizes) for axis in scope.grid.values()}
            except (KeyError, ValueError, ZeroDivisionError):
                return False
            for share in (0.0, 0.3, 0.55, 0.99):
                at = {n: int(share * extent) for n, extent in points.items()}
                try:
                    if evaluate(a, {**sizes, **at}) != evaluate(b, {**sizes, **at}):
                        return False
                except (KeyError, ValueError, ZeroDivisionError):
                    return False
        return True

    def _usual(self, fixed: list[str], pos: Pos) -> dict[str, ir.Expr]:
        """The offset that the task gives: batch entry b, head h, and the kv head that h shares."""
        scope = self.scope
        indices: dict[str, ir.Expr] = {}
        for axis in fixed:
            if axis == "batch":
                indices[axis] = scope.ensure_grid("batch", "b", ir.Sym("batch"), pos)
            elif axis == "heads":
                indices[axis] = scope.ensure_grid("heads", "h", ir.Sym("heads"), pos)
            elif axis == "kv_heads":
                head = scope.ensure_grid("heads", "h", ir.Sym("heads"), pos)
                indices[axis] = ir.Op("floordiv", (head, ir.Sym("group")))
            else:
                indices[axis] = NAUGHT
        return indices

    def _workspace(self, st: s.Allocate) -> None:
        scope = self.scope
        shape = tuple(self.ex.index(x) for x in st.shape)
        if not shape:
            if not scope.sketch:
                scope.report("TL208", st.pos, f"the workspace `{st.name}` has no shape")
            shape = (UNKNOWN, UNKNOWN)
        fixed = tuple(self.ex.index(x) for x in st.offset)
        free = len(shape) - len(fixed)
        if free not in (1, 2):
            if not scope.sketch:
                scope.report(
                    "TL208",
                    st.pos,
                    f"the offset of `{st.name}` leaves {free} axes; a matrix has two, a vector one",
                )
            return
        axes = (*fixed, "row", "col")[: len(shape)]
        cols = shape[-1] if free == 2 else ONE
        dtype = aliases.DTYPES.get(st.dtype) if st.dtype else None
        roles = [
            e.name if isinstance(e, ir.Sym) and e.name.startswith("seq") else None
            for e in shape[len(fixed) :]
        ]
        scope.matrices[st.name] = ir.Matrix(
            st.name,
            st.name,
            axes,  # type: ignore[arg-type]
            shape[len(fixed)],
            cols,
            roles[0],
            roles[1] if free == 2 else None,
            shape,
            dtype,
        )

    # --- coordinates ---

    def coordinate(self, expr: s.Expr, at: int, matrix: ir.Matrix, shape: Shape, length: str) -> ir.Expr:
        """A coordinate; without a Grid an unknown name along the queries becomes the row index of one."""
        scope = self.scope
        if at == 0 and isinstance(expr, s.Name) and matrix.row_role == "seq_q" and not scope.grid_written:
            name = expr.id
            if name not in (*scope.known_names(), *scope.lets) and scope.grid_of("rows") is None:
                return scope.ensure_grid("rows", name, op("ceildiv", ir.Sym("seq_q"), shape[0]), expr.pos)
        if (
            at == 0
            and isinstance(expr, s.Name)
            and matrix.row_role == "seq_q"
            and scope.grid_of("rows") is not None
        ):
            name = expr.id
            if name not in scope.known_names() and name.lower() not in aliases.BLOCK_INDICES:
                known = scope.grid_of("rows")
                scope.note(
                    "TL004",
                    expr.pos,
                    name,
                    f"is read as `{show(known or NAUGHT)}`, the grid's index of the rows",
                )
                return known or NAUGHT
        return self.ex.index(expr, length)
