"""Owns the resolved form of a program: what the checker proves, the interpreter runs and compilers lower.

Everything that the text may leave open is settled here: aliases, levels, shapes, where each tile
comes from, the state of a bare softmax, the grid. A tile always has two axes: a vector over rows is
(n, 1), a vector over columns (1, n). Every expression is one of the six nodes below.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from harness.tl.syntax import Level, Pos, Statement

# --- expressions -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Const:
    """A number; -inf occurs."""

    value: int | float


@dataclass(frozen=True, slots=True)
class Sym:
    """A scalar: a size, a task parameter, `scale`, a tile parameter, a grid or a loop variable."""

    name: str


@dataclass(frozen=True, slots=True)
class Op:
    """A function of its arguments. Index arithmetic and element-wise arithmetic share the node.

    On integers: add sub mul floordiv ceildiv mod min max neg lt le gt ge eq ne and or not.
    On values, besides: div pow abs exp exp2 log log2 sqrt rsqrt tanh sigmoid relu reciprocal
    floor where(cond, a, b), cast_<dtype>(x) which rounds; cast_operand rounds to the task's dtype.
    """

    fn: str
    args: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Ref:
    """The value of a tile, in an element-wise expression; a vector broadcasts."""

    tile: Tile


@dataclass(frozen=True, slots=True)
class Place:
    """Absolute positions along one axis of the result: base + 0, 1, 2, ... down (0) or across (1)."""

    role: str  # the size that the axis runs over, "seq_q" or "seq_k"
    axis: Literal[0, 1]
    base: Expr


@dataclass(frozen=True, slots=True)
class Element:
    """One element of a task tensor, such as slope[h]."""

    tensor: str
    indices: tuple[Expr, ...]


Expr = Const | Sym | Op | Ref | Place | Element


# --- storage ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Matrix:
    """A two-dimensional view of a tensor in device memory: all but the last two kept axes are indexed.

    `tensor` names a task tensor or a workspace. `axes` are the tensor's axes in memory order, one
    of: an index expression (that axis is fixed), or "row" / "col". A vector has no "col".
    """

    name: str
    tensor: str
    axes: tuple[Expr | Literal["row", "col"], ...]
    rows: Expr  # extents
    cols: Expr  # 1 for a vector
    row_role: str | None  # the sizes the axes run over
    col_role: str | None
    workspace: tuple[Expr, ...] = ()  # full shape, of a workspace (f32 unless dtype says otherwise)
    dtype: str | None = None


@dataclass(frozen=True, slots=True)
class Tile:
    """A two-dimensional piece of fast memory. `dtype`: what the program asks it to be rounded to."""

    name: str
    level: Level
    shape: tuple[Expr, Expr]
    dtype: str | None = None

    @property
    def key(self) -> str:
        """Unique in its kernel; usable as an identifier."""
        return self.name if self.level is Level.REGISTER else f"{self.name}_{self.level.value}"


@dataclass(frozen=True, slots=True)
class Axis:
    """Where the elements along an axis come from: positions base + 0, 1, ... of a size.

    Elements at or past that size are dead: no reduction, softmax or GEMM counts them.
    """

    role: str
    base: Expr


# --- operations -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Init:
    """The tile takes a constant value everywhere, or holds nothing to rely on (None)."""

    tile: Tile
    value: Expr | None
    source: Statement | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Load:
    """tile[r, c] = matrix[row + r, col + c], or `pad` where that is outside the matrix.

    `via` (a vector over the same rows) gathers: matrix[via[row + r], col + c].
    """

    tile: Tile
    matrix: Matrix
    row: Expr
    col: Expr
    pad: Expr = Const(0)
    via: Matrix | None = None
    source: Statement | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Store:
    """matrix[row + r, col + c] = tile[r, c], rounded to the matrix's dtype; what lies outside is dropped."""

    tile: Tile
    matrix: Matrix
    row: Expr
    col: Expr
    source: Statement | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Move:
    """target = tile, between shared and register (or a plain assignment of one tile to another)."""

    tile: Tile
    target: Tile
    source: Statement | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Operand:
    """A tile as it enters a GEMM: first its columns [start, stop), then transposed."""

    tile: Tile
    transposed: bool = False
    columns: tuple[Expr, Expr] | None = None


@dataclass(frozen=True, slots=True)
class Gemm:
    """result (+)= a @ b, operands rounded to the task's dtype, sums in f32.

    `contracted` is where the summed axis comes from, if from a sequence: dead positions do not count.
    """

    a: Operand
    b: Operand
    result: Tile
    accumulate: bool
    contracted: Axis | None = None
    source: Statement | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Map:
    """result = expr element by element, in f32; what is narrower than the result broadcasts."""

    result: Tile
    expr: Expr
    source: Statement | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Reduce:
    """result[r] = max or sum over columns of tile[r, :], combined with `start`[r] where given.

    `across` says where the columns come from, if from a sequence.
    """

    fn: Literal["max", "sum"]
    expr: Expr  # what is reduced, with two axes
    shape: tuple[Expr, Expr]  # of expr
    result: Tile
    start: Expr | None = None
    across: Axis | None = None
    source: Statement | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Mask:
    """result = tile where cond holds, -inf elsewhere."""

    tile: Tile
    cond: Expr
    result: Tile
    source: Statement | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Softmax:
    """One step of the online softmax over the columns of `tile`.

    m' = max(m, rowmax tile); a = exp(m - m'); result = exp(tile - m'); l = a l + rowsum result;
    every tensor of `rescale` *= a; alpha = a where asked; m = m'. exp(-inf - -inf) is 0.
    """

    tile: Tile
    m: Tile
    l: Tile  # noqa: E741 - the field's name for it
    result: Tile
    rescale: tuple[Tile, ...] = ()
    alpha: Tile | None = None
    across: Axis | None = None
    source: Statement | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Reshape:
    """An accumulator becomes a GEMM operand; no value changes."""

    tile: Tile
    source: Statement | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class For:
    """var runs from start up to, not including, stop."""

    var: str
    start: Expr
    stop: Expr
    step: Expr
    body: tuple[Node, ...]
    source: Statement | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class If:
    cond: Expr
    then: tuple[Node, ...]
    otherwise: tuple[Node, ...] = ()
    source: Statement | None = field(default=None, compare=False)


Node = Init | Load | Store | Move | Gemm | Map | Reduce | Mask | Softmax | Reshape | For | If


# --- the whole --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GridAxis:
    """One index of the grid. `role`: "batch", "heads" or "rows" where its use says so."""

    name: str
    extent: Expr
    role: str | None = None


@dataclass(frozen=True, slots=True)
class Kernel:
    name: str
    grid: tuple[GridAxis, ...]
    matrices: tuple[Matrix, ...]
    tiles: tuple[Tile, ...]
    body: tuple[Node, ...]
    pos: Pos = field(default=Pos(1, 1), compare=False)


@dataclass(frozen=True, slots=True)
class Program:
    """A resolved program. `parameters`: tile parameters with their choices; `schedule`: key -> choices.

    `text` is what it was read from, where that is known; it has no meaning of its own.
    """

    name: str
    task: str
    kernels: tuple[Kernel, ...]
    parameters: tuple[tuple[str, tuple[int, ...]], ...]
    schedule: tuple[tuple[str, tuple[int | str, ...]], ...] = ()
    text: str = field(default="", compare=False, repr=False)

    @property
    def defaults(self) -> dict[str, int]:
        """The first choice of each tile parameter."""
        return {name: choices[0] for name, choices in self.parameters}


def nodes(body: tuple[Node, ...]) -> Iterator[Node]:
    """Every operation, those in loops and branches too, in the order of the text."""
    for node in body:
        yield node
        if isinstance(node, For):
            yield from nodes(node.body)
        elif isinstance(node, If):
            yield from nodes(node.then)
            yield from nodes(node.otherwise)


def parts(expr: Expr) -> tuple[Expr, ...]:
    """The direct parts of an expression."""
    match expr:
        case Op(args=args):
            return args
        case Place(base=base):
            return (base,)
        case Element(indices=indices):
            return indices
        case _:
            return ()


def walk(expr: Expr) -> Iterator[Expr]:
    """The expression and all its parts."""
    yield expr
    for part in parts(expr):
        yield from walk(part)


def refs(expr: Expr) -> tuple[Tile, ...]:
    """The tiles that an element-wise expression reads, each once."""
    return tuple(dict.fromkeys(part.tile for part in walk(expr) if isinstance(part, Ref)))


def reads(node: Node) -> tuple[Tile, ...]:
    """The tiles whose values an operation needs (a loop or a branch itself needs none)."""
    match node:
        case Store(tile=tile) | Move(tile=tile) | Reshape(tile=tile):
            return (tile,)
        case Gemm():
            return (node.a.tile, node.b.tile, *((node.result,) if node.accumulate else ()))
        case Map(expr=expr):
            return refs(expr)
        case Reduce():
            return refs(node.expr) + (refs(node.start) if node.start is not None else ())
        case Mask():
            return tuple(dict.fromkeys((node.tile, *refs(node.cond))))
        case Softmax():
            return (node.tile, node.m, node.l, *node.rescale)
        case _:
            return ()


def writes(node: Node) -> tuple[Tile, ...]:
    """The tiles that an operation gives a value."""
    match node:
        case Init(tile=tile) | Load(tile=tile):
            return (tile,)
        case Move(target=target):
            return (target,)
        case Gemm(result=result) | Map(result=result) | Reduce(result=result) | Mask(result=result):
            return (result,)
        case Softmax():
            return (node.result, node.m, node.l, *node.rescale, *((node.alpha,) if node.alpha else ()))
        case _:
            return ()
