"""Owns which tiles of a Hopper kernel are copied by the producer, and in which pieces of columns.

A channel is a ring of places in shared memory for one tile. A tile's columns come in several pieces where the
program takes slices of them, or where their number is far from a power of two: pieces have powers of two.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace

from harness.tl import ir
from harness.tl.evaluate import evaluate
from harness.tl.lower.gluon_view import View
from harness.tl.lower.gluon_ways import Ways
from harness.tl.lower.lowered import LowerError
from harness.tl.lower.python_layout import expression
from harness.tl.lower.triton_values import ONE
from harness.tl.problem import TaskLike, all_workloads
from harness.tl.syntax import Level

ZERO = ir.Const(0)


@dataclass(frozen=True, slots=True)
class Piece:
    """Columns [start, stop) of a tile, as many as `width`; `suffix` names what belongs to it."""

    suffix: str
    start: ir.Expr
    stop: ir.Expr
    width: ir.Expr


@dataclass(frozen=True, slots=True)
class Channel:
    """The places of a tile. `grouped`: a consumer has its own, of 64 rows; `looped`: a loop fills them.

    `several`: there may be more than one place though no loop fills them; `each`: every thread of a consumer
    may give a place back by itself.
    """

    name: str
    tile: ir.Tile  # of the block
    grouped: bool
    looped: bool
    pieces: tuple[Piece, ...]
    several: bool = False
    each: bool = False

    @property
    def places(self) -> str:
        """How many a consumer goes through."""
        return "STAGES" if self.looped else "Q_STAGES" if self.several else "1"

    @property
    def all_places(self) -> str:
        if not self.grouped:
            return self.places
        return "CONSUMERS" if self.places == "1" else f"CONSUMERS * {self.places}"

    @property
    def arrivals(self) -> str:
        """How many make a place empty."""
        consumers = "1" if self.grouped else "CONSUMERS"
        if not self.each:
            return consumers
        return "ARRIVALS" if self.grouped else "CONSUMERS * ARRIVALS"

    def place(self, consumer: str) -> str:
        """Index of the place that a consumer, or the producer for it, is at."""
        if not self.grouped:
            return f"{self.name}_place"
        if self.places == "1":
            return consumer
        return expression(f"{consumer} * {self.places} + {self.name}_place")

    def release(self, consumer: str) -> str:
        """Statement that lets the producer fill the place again."""
        empty = f"{self.name}_empty.index({self.place(consumer)})"
        return f"give_back({empty}, ARRIVALS)" if self.each else f"mbarrier.arrive({empty}, count=1)"

    @property
    def onward(self) -> str:
        """Statement that goes to the next place."""
        if self.places == "1":
            return f"{self.name}_turn = {self.name}_turn ^ 1"
        at = f"{self.name}_place, {self.name}_turn"
        return f"{at} = onward({at}, {self.places})"


def channels(view: View, task: TaskLike, ways: Ways) -> dict[ir.Tile, Channel]:
    """The channel of every tile of the block that is copied from global memory. Raises LowerError."""
    kernel = view.whole
    loaded: dict[ir.Tile, ir.Load] = {}
    looped: set[ir.Tile] = set()
    inside = {n for loop in kernel.body if isinstance(loop, ir.For) for n in ir.nodes(loop.body)}
    for node in ir.nodes(kernel.body):
        if isinstance(node, ir.Load):
            _check(node, task)
            loaded.setdefault(node.tile, node)
            if node in inside:
                looped.add(node.tile)
    names: dict[ir.Tile, str] = {}
    for tile in loaded:
        name = tile.name.replace("'", "_p")
        while name in names.values():
            name += "_"
        names[tile] = name
    cuts = _cuts(kernel, loaded, task)
    # A thread that read a place itself says nothing of the others' reads; a product is waited for by all.
    alone = {t for n in ir.nodes(kernel.body) if not isinstance(n, ir.Gemm) for t in ir.reads(n)}
    made = {
        tile: Channel(
            names[tile], tile, tile.key in view.grouped, tile in looped, _pieces(tile, cuts[tile]),
            ways.q_stages and tile not in looped, ways.arrivals and tile not in alone,
        )
        for tile in loaded
    }  # fmt: skip
    operands = [o for n in ir.nodes(kernel.body) if isinstance(n, ir.Gemm) for o in (n.a, n.b)]
    for tile, channel in made.items():
        if len(channel.pieces) > 1:  # columns that no product takes need no place
            used = {p for o in operands if o.tile == tile for p in taken(channel, o.columns)}
            made[tile] = replace(channel, pieces=tuple(p for p in channel.pieces if p in used))
    return made


def _check(load: ir.Load, task: TaskLike) -> None:
    tile, matrix = load.tile, load.matrix
    tensor = next((t for t in task.tensors if t.name == matrix.tensor), None)
    reason = None
    if tile.level is not Level.SHARED:
        reason = "a copy to registers has no Gluon code", "copy to shared"
    elif load.via is not None:
        reason = "gathering rows through an index tensor has no Gluon code", ""
    elif load.pad != ZERO:
        reason = "the copy engine fills with zeros only", "pad with 0"
    elif matrix.workspace or tensor is None or tensor.dtype is not None:
        reason = "only tensors of the task in its own type have Gluon code", ""
    elif "col" not in matrix.axes or tile.shape[1] == ONE:
        reason = "copying a vector has no Gluon code", ""
    elif any(isinstance(p, ir.Element) for a in matrix.axes if not isinstance(a, str) for p in ir.walk(a)):
        reason = "an index read from memory selects the matrix", ""
    if reason is not None:
        raise LowerError(reason[0], load.source, reason[1])


# --- pieces -----------------------------------------------------------------------------------------


def _cuts(kernel: ir.Kernel, loaded: Iterable[ir.Tile], task: TaskLike) -> dict[ir.Tile, tuple[ir.Expr, ...]]:
    """Where each tile's columns are cut, its two ends included; both operands of a product alike."""
    found: dict[ir.Tile, dict[ir.Expr, None]] = {t: {} for t in loaded}
    products = [n for n in ir.nodes(kernel.body) if isinstance(n, ir.Gemm)]
    for node in products:
        for operand in (node.a, node.b):
            if operand.columns is not None and operand.tile in found:
                found[operand.tile].update(dict.fromkeys(operand.columns))
    for node in products:
        a, b = node.a, node.b
        known = a.tile in found and b.tile in found
        if known and b.transposed and not a.transposed and a.columns is None and b.columns is None:
            both = {**found[a.tile], **found[b.tile]}
            width = a.tile.shape[1]
            if not both and isinstance(width, ir.Sym) and _uneven(width, task):
                both = {ir.Sym(f"{width.name}_1"): None}
            found[a.tile] = found[b.tile] = both
    samples = [dict(w.sizes) for w in all_workloads(task)] or [{}]
    return {t: _ordered(t, cuts, samples) for t, cuts in found.items()}


def _uneven(width: ir.Sym, task: TaskLike) -> bool:
    """Whether some shape of the task has a width that two powers of two hold better than one."""
    sizes = [w.sizes[width.name] for w in all_workloads(task) if width.name in w.sizes]
    return any(n > 32 and n & (n - 1) and 4 * n <= 3 * (1 << n.bit_length()) for n in sizes)


def _ordered(tile: ir.Tile, cuts: Iterable[ir.Expr], samples: list[dict[str, int]]) -> tuple[ir.Expr, ...]:
    ends = [ZERO, *(c for c in dict.fromkeys(cuts) if c not in (ZERO, tile.shape[1])), tile.shape[1]]
    if len(ends) <= 3:
        return tuple(ends)
    try:
        values = [[int(evaluate(e, sample)) for sample in samples] for e in ends]
    except KeyError:
        raise LowerError(f"where the columns of `{tile.name}` are cut is in no known order") from None
    order = sorted(range(len(ends)), key=lambda n: values[n])
    if any(x > y for a, b in itertools.pairwise(order) for x, y in zip(values[a], values[b], strict=True)):
        raise LowerError(f"where the columns of `{tile.name}` are cut is in no known order")
    return tuple(ends[n] for n in order)


def _pieces(tile: ir.Tile, cuts: tuple[ir.Expr, ...]) -> tuple[Piece, ...]:
    if len(cuts) == 2:
        return (Piece("", ZERO, cuts[1], cuts[1]),)
    out = []
    for n, (start, stop) in enumerate(itertools.pairwise(cuts)):
        width: ir.Expr = ir.Op("sub", (stop, start)) if start != ZERO else stop
        if isinstance(start, ir.Const) and isinstance(stop, ir.Const):
            width = ir.Const(stop.value - start.value)
        if isinstance(start, ir.Sym) and start.name.endswith("_1"):  # cut by us, not by the program
            width = ir.Sym(f"{start.name.removesuffix('_1')}_2")
        out.append(Piece(str(n + 1), start, stop, width))
    return tuple(out)


def taken(channel: Channel, columns: tuple[ir.Expr, ir.Expr] | None) -> tuple[Piece, ...]:
    """The pieces that hold these columns of the tile; all where there is no slice."""
    if columns is None:
        return channel.pieces
    first = [p.start for p in channel.pieces].index(columns[0])
    return channel.pieces[first : [p.stop for p in channel.pieces].index(columns[1]) + 1]
