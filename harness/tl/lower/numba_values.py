"""Owns loops over the elements of tiles in a Numba kernel: Map, Mask, Reduce, rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass

from harness.tl import ir
from harness.tl.aliases import DTYPES
from harness.tl.lower.numba_scope import Scope
from harness.tl.lower.numba_text import CASTS, Kind, NoText, Text, Writer

Shape = tuple[ir.Expr, ir.Expr]
Named = Callable[[ir.Tile], str]  # the array of a tile


def rounding(dtype: str | None) -> str:
    """The function that rounds to a dtype; empty for float32 and wider."""
    name = DTYPES.get((dtype or "fp32").lower(), dtype or "fp32")
    if name not in CASTS:
        raise NoText(f"values cannot be rounded to {dtype}")
    return CASTS[name]


def rounded(text: Text, holder: ir.Tile | ir.Matrix) -> Text:
    """The value as a tile or a matrix with that dtype holds it."""
    function = rounding(holder.dtype)
    return Text(f"{function}({text.code})", Kind.FLOAT, uses=text.uses | {function}) if function else text


@dataclass(frozen=True)
class Loops:
    """Loops over a shape, ready for expressions: what is the same along a row is read before its loop."""

    scope: Scope
    shape: Shape
    named: Named

    @property
    def flat(self) -> bool:
        """Whether there is one row only."""
        return self.scope.module.one(self.shape[0])

    @property
    def narrow(self) -> bool:
        """Whether there is one column only."""
        return self.scope.module.one(self.shape[1])

    @property
    def writer(self) -> Writer:
        offsets = {0: "0" if self.flat else "r", 1: "0" if self.narrow else "c"}
        return Writer(self.scope.symbol, self.scope.element, self.at, offsets)

    def at(self, tile: ir.Tile) -> str:
        """The element of a tile (or of what broadcasts) that the loops stand at."""
        name, (tall, wide) = self.named(tile), self._extended(tile)
        if wide:
            return f"{self.scope.names('row of tile', f'{name}_row')}[c]"
        if tall and not self.narrow:
            return self.scope.names("element of tile", f"{name}_r")
        return f"{name}[{'r' if tall else '0'}, 0]"

    def _extended(self, tile: ir.Tile) -> tuple[bool, bool]:
        """Whether the tile has rows and columns of its own; one that fits neither is an error."""
        module = self.scope.module
        for side, extent, what in zip(tile.shape, self.shape, ("rows", "columns"), strict=True):
            if not module.one(side):
                self.scope.require(side, extent, f"{tile.name} has other {what} than the result")
        return not module.one(tile.shape[0]), not module.one(tile.shape[1])

    def run(self, tiles: Iterable[ir.Tile], body: Callable[[], None]) -> None:
        """Emits the loops over rows and columns around the body; `tiles` are those it mentions."""
        with ExitStack() as stack:
            self.rows(stack, tiles)
            if not self.narrow:
                stack.enter_context(self.scope.block(f"for c in range({self.scope.index(self.shape[1])}):"))
            body()

    def rows(self, stack: ExitStack, tiles: Iterable[ir.Tile]) -> None:
        """Emits the loop over rows, and reads what each row needs."""
        scope = self.scope
        if not self.flat:
            stack.enter_context(scope.block(f"for r in range({scope.index(self.shape[0])}):"))
        for name, (tall, wide) in {self.named(t): self._extended(t) for t in tiles}.items():
            if wide:
                row = scope.names("row of tile", f"{name}_row")
                scope.line(f"{row} = {name}[{'r' if tall and not self.flat else '0'}]")
            elif tall and not self.narrow:
                scope.line(f"{scope.names('element of tile', f'{name}_r')} = {name}[r, 0]")


def map_(result: ir.Tile, expr: ir.Expr, scope: Scope, named: Named) -> None:
    """result = expr, element by element."""
    loops = Loops(scope, result.shape, named)
    value = scope.use(rounded(loops.writer.value(expr), result))
    tiles = dict.fromkeys((result, *ir.refs(expr)))
    loops.run(tiles, lambda: scope.line(f"{_target(loops, result)} = {value}"))


def mask(node: ir.Mask, scope: Scope, named: Named) -> None:
    """result = tile where the condition holds, -inf elsewhere."""
    result, loops = node.result, Loops(scope, node.result.shape, named)
    condition = loops.writer.condition(node.cond)
    uses = condition.uses | {"choose", "NEG_INF"}
    chosen = Text(f"choose({condition.code}, {loops.at(node.tile)}, NEG_INF)", Kind.FLOAT, uses=uses)
    value = scope.use(rounded(chosen, result))
    tiles = dict.fromkeys((result, node.tile, *ir.refs(node.cond)))
    loops.run(tiles, lambda: scope.line(f"{_target(loops, result)} = {value}"))


def _target(loops: Loops, result: ir.Tile) -> str:
    """Where a value is stored: the element itself, never a copy of it."""
    name = loops.named(result)
    return loops.at(result) if not loops.narrow else f"{name}[{'0' if loops.flat else 'r'}, 0]"


def reduce(node: ir.Reduce, scope: Scope, named: Named) -> None:
    """result[r] = max or sum over the columns that count, combined with start[r]."""
    loops = Loops(scope, node.shape, named)
    scope.require(
        node.result.shape[0], node.shape[0], f"{node.result.name} has other rows than what it sums up"
    )
    value = scope.use(loops.writer.value(node.expr))
    count = live(node.across, node.shape[1], scope)
    rows = Loops(scope, (node.shape[0], ir.Const(1)), named)
    start = None if node.start is None else scope.use(rows.writer.value(node.start))
    target = f"{named(node.result)}[{'0' if loops.flat else 'r'}, 0]"
    with ExitStack() as stack:
        loops.rows(stack, ir.refs(node.expr))
        first = "NEG_INF" if node.fn == "max" else "np.float32(0.0)"
        scope.module.uses |= {"NEG_INF", "larger"} if node.fn == "max" else set()
        scope.line(f"total = {start or first}")
        columns = "0" if loops.narrow else "c"
        with scope.block(f"for {'c' if columns == 'c' else '_'} in range({count}):"):
            scope.line(f"total = larger(total, {value})" if node.fn == "max" else f"total += {value}")
        total = rounded(Text("total", Kind.FLOAT), node.result)
        scope.line(f"{target} = {scope.use(total)}")


def live(across: ir.Axis | None, columns: ir.Expr, scope: Scope) -> str:
    """Code for how many of the columns lie inside the sequence that they come from."""
    whole = scope.within(columns, 0)
    if across is None:
        return whole
    size, base = (
        scope.index(ir.Sym(across.role)),
        scope.index(ir.Op("sub", (ir.Sym(across.role), across.base))),
    )
    code = size if across.base == ir.Const(0) else base
    scope.line(f"live = {scope.call('clip', code, whole)}")
    return "live"


def round_tile(tile: ir.Tile, name: str, scope: Scope) -> None:
    """Rounds a tile that has just been written to its own dtype, where it has a narrower one."""
    function = rounding(tile.dtype)
    if not function:
        return
    with (
        scope.block(f"for r in range({name}.shape[0]):"),
        scope.block(f"for c in range({name}.shape[1]):"),
    ):
        scope.line(f"{name}[r, c] = {scope.call(function, f'{name}[r, c]')}")
