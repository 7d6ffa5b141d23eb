"""Owns how a lowered Triton kernel reaches device memory: descriptors where the device has them, else pointers."""

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
            tma = "col" in matrix.axes and matrix not in self._plain
            self._all[key] = Access(name, matrix, shape, tma)
        return self._all[key]

    def all(self) -> tuple[Access, ...]:
        return tuple(self._all.values())


PRELUDE = '''
@triton.jit
def floor_div(a, b):
    """Rounds down for negative a too; b > 0. Triton's own division rounds toward zero."""
    return a // b - (a % b < 0)


@triton.jit
def ceil_div(a, b):
    return floor_div(a + b - 1, b)


@triton.jit
def wide(x):
    """As 64 bits: an offset in a large tensor does not fit in 32."""
    return x + tl.full([], 0, tl.int64)


@triton.jit
def finite(x):
    """What may be taken away: a row that has seen no key has maximum -inf, and -inf - -inf stays -inf."""
    return tl.where(x == float("-inf"), 0.0, x)


@triton.jit
def inverse(x):
    """1 / x, and 0 for 0: a row that has seen no key gives zeros."""
    return tl.where(x == 0.0, 0.0, 1.0 / tl.where(x == 0.0, 1.0, x))


@triton.jit
def tanh(x):
    return 1.0 - 2.0 / (tl.math.exp2(x * (2.0 * LOG2_E)) + 1.0)


@triton.jit
def load_tile(base, row, col, stride_row, stride_col, rows, cols, pad,
              ROWS: tl.constexpr, COLS: tl.constexpr, CHECK: tl.constexpr):  # fmt: skip
    """(ROWS, COLS) elements from (row, col) on; `pad` outside the matrix."""
    r, c = row + tl.arange(0, ROWS), col + tl.arange(0, COLS)
    pointers = base + r.to(tl.int64)[:, None] * stride_row + c[None, :] * stride_col
    if CHECK:
        inside = (r[:, None] >= 0) & (r[:, None] < rows) & (c[None, :] < cols)
        tile = tl.load(pointers, mask=inside, other=pad)
    else:
        tile = tl.load(pointers)
    return tile


@triton.jit
def store_tile(base, row, col, stride_row, stride_col, rows, cols, tile,
               ROWS: tl.constexpr, COLS: tl.constexpr):  # fmt: skip
    r, c = row + tl.arange(0, ROWS), col + tl.arange(0, COLS)
    inside = (r[:, None] >= 0) & (r[:, None] < rows) & (c[None, :] < cols)
    pointers = base + r.to(tl.int64)[:, None] * stride_row + c[None, :] * stride_col
    tl.store(pointers, tile.to(base.dtype.element_ty), mask=inside)
'''
