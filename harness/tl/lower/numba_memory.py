"""Owns how a Numba kernel reads and writes device memory: Load and Store, with tails, pads and gathers."""

from __future__ import annotations

from dataclasses import dataclass

from harness.tl import ir
from harness.tl.lower.numba_scope import Scope
from harness.tl.lower.numba_text import SUM, Kind, NoText, Text
from harness.tl.lower.numba_values import rounded


@dataclass(frozen=True, slots=True)
class Window:
    """Code for the part of a tile that lies inside a matrix: offsets [first, last) along an axis."""

    base: str  # position in the matrix of the tile's element 0
    first: str
    last: str
    whole: bool  # certainly all of it


def load(node: ir.Load, scope: Scope, name: str) -> None:
    """tile = the matrix's part, `pad` outside."""
    tile, matrix = node.tile, node.matrix
    over = node.via if node.via is not None else matrix
    rows = _window(scope, over, "row", node.row, tile.shape[0], "row", "rows", "first", node.via is not None)
    cols = _window(scope, matrix, "col", node.col, tile.shape[1], "col", "cols", "first_col")
    guards = _fixed_inside(scope, matrix) + (_fixed_inside(scope, node.via) if node.via is not None else [])
    rows = _guarded(scope, rows, guards)
    pad = scope.use(rounded(scope.scalars.value(node.pad), tile))
    if node.via is not None:
        scope.line(f"{name}[:] = {pad}")
    elif not (rows.whole and cols.whole):
        _fill_outside(scope, name, pad, tile, rows, cols)
    _read(node, scope, name, rows, cols)


def _guarded(scope: Scope, rows: Window, guards: list[str]) -> Window:
    """No rows where a fixed index (a head that does not exist, say) lies outside the tensor."""
    if not guards:
        return rows
    scope.line(f"rows = {rows.last} if {' and '.join(guards)} else 0")
    return Window(rows.base, rows.first, "rows", False)


def _fill_outside(scope: Scope, name: str, pad: str, tile: ir.Tile, rows: Window, cols: Window) -> None:
    outside = []
    for window, extent in ((rows, tile.shape[0]), (cols, tile.shape[1])):
        if not window.whole:
            if window.first != "0":
                outside.append(f"{window.first} > 0")
            outside.append(f"{window.last} < {scope.within(extent, SUM)}")
    with scope.block(f"if {' or '.join(outside)}:"):
        scope.line(f"{name}[:] = {pad}")


def _read(node: ir.Load, scope: Scope, name: str, rows: Window, cols: Window) -> None:
    matrix, tile = node.matrix, node.tile
    with scope.block(f"for r in range({_bounds(rows)}):"):
        position = _at(rows.base, "r")
        if node.via is not None:
            spec = scope.module.tensor(node.via.tensor)
            if spec is None or spec.dtype is None or "int" not in spec.dtype:
                raise NoText(
                    f"{node.via.tensor} does not hold integers, so no rows can be gathered through it"
                )
            index = f"{scope.tensor(node.via.tensor)}[{_subscript(scope, node.via, position)}]"
            position = scope.names("gathered row", node.via.name)
            scope.line(f"{position} = {index}")
            extent = _extent(scope, matrix, "row")
            with scope.block(f"if 0 <= {position} < {extent}:"):
                _read_row(scope, name, tile, matrix, position, cols)
        else:
            _read_row(scope, name, tile, matrix, position, cols)


def _read_row(scope: Scope, name: str, tile: ir.Tile, matrix: ir.Matrix, position: str, cols: Window) -> None:
    source = f"{scope.tensor(matrix.tensor)}[{_subscript(scope, matrix, position)}]"
    if "col" not in matrix.axes:
        value = scope.use(rounded(Text(source, Kind.FLOAT), tile))
        scope.line(f"{name}[r, 0] = {value}")
        return
    row = scope.names("row of matrix", f"{matrix.tensor}_row")
    scope.line(f"{row} = {source}")
    target = scope.names("row of tile", f"{name}_row")
    scope.line(f"{target} = {name}[r]")
    with scope.block(f"for c in range({_bounds(cols)}):"):
        value = scope.use(rounded(Text(f"{row}[{_at(cols.base, 'c')}]", Kind.FLOAT), tile))
        scope.line(f"{target}[c] = {value}")


def store(node: ir.Store, scope: Scope, name: str) -> None:
    """The matrix's part = tile; what lies outside is dropped."""
    matrix, tile = node.matrix, node.tile
    spec = scope.module.tensor(matrix.tensor)
    if spec is not None and spec.role != "output":
        raise NoText(f"{matrix.tensor} is an input of the task, which a kernel must not write")
    rows = _window(scope, matrix, "row", node.row, tile.shape[0], "row", "rows", "first")
    cols = _window(scope, matrix, "col", node.col, tile.shape[1], "col", "cols", "first_col")
    rows = _guarded(scope, rows, _fixed_inside(scope, matrix))
    _write(node, scope, name, rows, cols)


def _write(node: ir.Store, scope: Scope, name: str, rows: Window, cols: Window) -> None:
    matrix = node.matrix
    target = f"{scope.tensor(matrix.tensor)}[{_subscript(scope, matrix, _at(rows.base, 'r'))}]"
    with scope.block(f"for r in range({_bounds(rows)}):"):
        if "col" not in matrix.axes:
            scope.line(f"{target} = {scope.use(rounded(Text(f'{name}[r, 0]', Kind.FLOAT), matrix))}")
            return
        row = scope.names("row of matrix", f"{matrix.tensor}_row")
        tile_row = scope.names("row of tile", f"{name}_row")
        scope.line(f"{row}, {tile_row} = {target}, {name}[r]")
        with scope.block(f"for c in range({_bounds(cols)}):"):
            value = scope.use(rounded(Text(f"{tile_row}[c]", Kind.FLOAT), matrix))
            scope.line(f"{row}[{_at(cols.base, 'c')}] = {value}")


def _bounds(window: Window) -> str:
    return window.last if window.first == "0" else f"{window.first}, {window.last}"


def _at(base: str, offset: str) -> str:
    return offset if base == "0" else f"{base} + {offset}"


def _window(
    scope: Scope,
    matrix: ir.Matrix,
    axis: str,
    base: ir.Expr,
    count: ir.Expr,
    name: str,
    last: str,
    first: str,
    gathered: bool = False,
) -> Window:
    """Emits the code for where a tile begins and how much of it lies inside, unless that is certain."""
    if axis not in matrix.axes and not gathered:
        scope.require(count, ir.Const(1), f"{matrix.name} is a vector without a {axis} axis")
    whole_extent = matrix.rows if axis == "row" else matrix.cols
    exact = axis not in matrix.axes or _axis_size(scope, matrix, axis) == whole_extent
    if base == ir.Const(0) and scope.module.same(count, whole_extent) and exact:
        return Window("0", "0", scope.index(count), True)
    start = scope.index(base)
    if start not in ("0", "row", "col") and not start.isidentifier():
        scope.line(f"{name} = {start}")
        start = name
    size = scope.within(count, 0)
    scope.line(f"{last} = {scope.call('clip', f'{_extent(scope, matrix, axis)} - {start}', size)}")
    if scope.natural(base):
        return Window(start, "0", last, False)
    scope.line(f"{first} = {scope.call('clip', f'-{start}', size)}")
    return Window(start, first, last, False)


def _axis_size(scope: Scope, matrix: ir.Matrix, axis: str) -> ir.Expr | None:
    """The extent of the tensor along the axis that serves as rows or columns."""
    at = matrix.axes.index(axis)
    if matrix.workspace:
        return matrix.workspace[at]
    spec = scope.module.tensor(matrix.tensor)
    return ir.Sym(spec.axes[at]) if spec is not None and at < len(spec.axes) else None


def _extent(scope: Scope, matrix: ir.Matrix, axis: str) -> str:
    """Rows or columns of the matrix; where its tensor may have fewer, no more than that."""
    extent = matrix.rows if axis == "row" else matrix.cols
    if axis not in matrix.axes:
        return "1"
    if _axis_size(scope, matrix, axis) == extent:
        return scope.within(extent, SUM)
    array = scope.tensor(matrix.tensor)
    return f"min({scope.index(extent)}, {array}.shape[{matrix.axes.index(axis)}])"


def _subscript(scope: Scope, matrix: ir.Matrix, row: str) -> str:
    """The subscript that gives one row of the matrix."""
    spec = scope.module.tensor(matrix.tensor)
    if spec is not None and len(spec.axes) != len(matrix.axes):
        raise NoText(
            f"{matrix.name} indexes {len(matrix.axes)} axes of {matrix.tensor}, which has {len(spec.axes)}"
        )
    parts = []
    for axis in matrix.axes:
        if axis == "row":
            parts.append(row)
        elif axis == "col":
            parts.append(":")
        else:
            assert not isinstance(axis, str)
            parts.append(scope.index(axis))
    while parts[-1] == ":":
        parts.pop()
    return ", ".join(parts)


def _fixed_inside(scope: Scope, matrix: ir.Matrix) -> list[str]:
    """Conditions that the fixed indices lie inside the tensor, where that is not certain."""
    spec = scope.module.tensor(matrix.tensor)
    conditions = []
    for at, index in enumerate(matrix.axes):
        if isinstance(index, str):
            continue
        size = ir.Sym(spec.axes[at]) if spec is not None else matrix.workspace[at]
        if not _certainly(scope, index, size):
            array = scope.tensor(matrix.tensor)
            conditions.append(f"0 <= {scope.within(index, SUM)} < {array}.shape[{at}]")
    return conditions


def _certainly(scope: Scope, index: ir.Expr, size: ir.Expr) -> bool:
    """Whether an index is inside an axis of that size, as batch, head and kv head of the grid are."""
    extents = {axis.name: axis.extent for axis in scope.kernel.grid}
    match index:
        case ir.Sym(name=name) if name in extents and name not in scope.loops:
            return scope.module.same(extents[name], size)
        case ir.Op(fn="floordiv", args=(ir.Sym(name=name), ir.Sym(name="group"))) if name in extents:
            return extents[name] == ir.Sym("heads") and size == ir.Sym("kv_heads")
        case ir.Const(value=0):
            return True
    return False
