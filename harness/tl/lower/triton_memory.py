"""Owns the arguments through which a Triton kernel reaches matrices: by descriptor or by pointer."""

from __future__ import annotations

from dataclasses import dataclass

from harness.tl import ir
from harness.tl.lower.lowered import LowerError
from harness.tl.syntax import Statement


@dataclass(frozen=True, slots=True)
class Access:
    """One kernel argument: a matrix in tiles of one shape. `tma`: a descriptor can serve it."""

    argument: str
    matrix: ir.Matrix
    shape: tuple[ir.Expr, ir.Expr]
    tma: bool

    @property
    def row_axis(self) -> int:
        return self.matrix.axes.index("row")

    @property
    def col_axis(self) -> int | None:
        return self.matrix.axes.index("col") if "col" in self.matrix.axes else None

    @property
    def fixed(self) -> tuple[int, ...]:
        """Axes with one index, in memory order."""
        return tuple(n for n, axis in enumerate(self.matrix.axes) if not isinstance(axis, str))

    @property
    def strides(self) -> tuple[str, ...]:
        return tuple(f"{self.argument}_s{n}" for n in range(len(self.matrix.axes)))


class Accesses:
    """The accesses of one kernel, each matrix and tile shape once, named for the matrix."""

    def __init__(self, kernel: ir.Kernel) -> None:
        self._all: dict[tuple[ir.Matrix, tuple[ir.Expr, ir.Expr]], Access] = {}
        plain = {
            n.matrix
            for n in ir.nodes(kernel.body)
            if isinstance(n, ir.Load) and (n.via is not None or n.pad != ir.Const(0))
        }
        self._plain = plain
        self._taken: set[str] = set()

    def of(self, matrix: ir.Matrix, shape: tuple[ir.Expr, ir.Expr], source: Statement | None) -> Access:
        key = (matrix, shape)
        if key not in self._all:
            if any(isinstance(a, ir.Element) for a in matrix.axes):
                raise LowerError("an index read from memory selects the matrix", source)
            base = f"{matrix.tensor}_src" if matrix.tensor != "out" else "out_dst"
            name, n = base, 1
            while name in self._taken:
                n += 1
                name = f"{base}{n}"
            self._taken.add(name)
            tma = "col" in matrix.axes and matrix not in self._plain and not matrix.workspace
            self._all[key] = Access(name, matrix, shape, tma)
        return self._all[key]

    def all(self) -> tuple[Access, ...]:
        return tuple(self._all.values())
