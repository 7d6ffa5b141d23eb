"""Owns where the result of a Compute statement goes: the tile that takes it, or a new one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from harness.tl import ir
from harness.tl import syntax as s
from harness.tl.expressions import ONE, Expressions, Shape, show
from harness.tl.scope import NOT_KNOWN, UNKNOWN, Axes, Scope
from harness.tl.syntax import Level, Pos


class Results(ABC):
    """What every kind of Compute statement needs; `emit` takes the operations in order."""

    def __init__(self, scope: Scope, emit: Callable[[ir.Node], None]) -> None:
        self.scope = scope
        self.emit = emit
        self.expressions = Expressions(scope, self._hoist)
        self.statement: s.Compute | s.Infix | None = None
        self.bare: dict[str, list[ir.Softmax]] = {}  # loop variable -> softmaxes with a state of their own
        self._temporaries = 0

    @abstractmethod
    def _hoist(self, what: str, args: tuple[s.Expr, ...], pos: Pos) -> ir.Tile | None:
        """A tile for a reduction or a product inside an expression."""

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

    def _sequence(self, axis: ir.Axis | None, pos: Pos) -> ir.Axis | None:
        if axis == NOT_KNOWN:
            self.scope.report(
                "TL207", pos, "the key positions here differ from one way through the program to another"
            )
            return None
        return axis if axis is not None and axis.role == "seq_k" else None

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
            self.scope.report(
                "TL007", expr.pos, f"a tile is needed here; {what}", "allocate or copy the tile first"
            )
