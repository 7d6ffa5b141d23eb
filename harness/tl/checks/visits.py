"""Owns which (query, key) pairs reach which accumulator: an abstract run of a kernel over small cases.

A tile holds one of: rows of queries, scores with the places that are not masked, or sums over keys.
The values are not computed; nothing is said (Beyond) where this does not tell what happens.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from harness.tl import ir
from harness.tl.checks.flow import LOWEST
from harness.tl.checks.lanes import Array, Beyond, Lanes

_LOSES_MASK = frozenset("tanh sigmoid relu abs reciprocal pow sqrt rsqrt log log2".split())
_ONE = ir.Const(1)


@dataclass(frozen=True, slots=True)
class Loaded:
    """Rows of a task tensor, from position `row` of each round on."""

    role: str | None
    row: Array


@dataclass(frozen=True, slots=True)
class Scores:
    """`allow`: where it is not masked (rounds, rows, columns), None: everywhere. `exp`: after exp."""

    allow: Array | None = None
    exp: bool = False
    row: Array | None = None
    divisors: tuple[Sums, ...] = ()


@dataclass(frozen=True, slots=True)
class Entry:
    """Keys `base` + 0, 1, ... enter a sum where `allow`."""

    lanes: Lanes
    allow: Array | None
    base: Array
    row: Array | None
    shape: tuple[ir.Expr, ir.Expr]
    node: ir.Node


@dataclass(eq=False, slots=True)
class Sums:
    """An accumulator or a running sum; `lanes`: where it started."""

    lanes: Lanes
    entries: list[Entry] = field(default_factory=list)
    divisors: list[Sums] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Stored:
    """One Store to an output with what it holds; `sums` None: not known."""

    node: ir.Store
    lanes: Lanes
    row: Array
    sums: tuple[tuple[Entry, ...], ...] | None


class Visits:
    """Runs one kernel; `stores` are its stores to outputs, `masks` its masks, `loops` the loop of each node."""

    def __init__(self, extents: dict[tuple[ir.Expr, ir.Expr], tuple[int, int]]) -> None:
        self.extents = extents
        self.stores: list[Stored] = []
        self.masks: list[ir.Node] = []
        self.loops: dict[int, ir.For] = {}
        self._around: list[ir.For] = []

    def run(self, body: tuple[ir.Node, ...], lanes: Lanes) -> None:
        for node in body:
            match node:
                case ir.For():
                    self._loop(node, lanes)
                case ir.If():
                    self._branch(node, lanes)
                case _:
                    self._step(node, lanes)

    # --- contents ---

    def get(self, tile: ir.Tile, lanes: Lanes) -> object:
        """What a tile holds in these rounds; Beyond where it was made in the round before."""
        at: Lanes | None = lanes
        index: Array | None = None
        carried = False
        while at is not None:
            if tile in at.tiles:
                held = at.tiles[tile]
                if isinstance(held, Beyond) or (carried and isinstance(held, Scores)):
                    raise Beyond
                return held if index is None else _taken(held, index)
            carried = carried or tile in at.written
            if at.up is not None:
                index = at.up if index is None else at.up[index]
            at = at.parent
        return None

    def shape(self, tile: ir.Tile, lanes: Lanes) -> tuple[int, int]:
        """The most rows and columns that the tile has in any case."""
        if tile.shape not in self.extents:
            rows, columns = (int(lanes.scalar(x).max(initial=1)) for x in tile.shape)
            self.extents[tile.shape] = rows, columns
        return self.extents[tile.shape]

    # --- control ---

    def _loop(self, node: ir.For, lanes: Lanes) -> None:
        inner, last = lanes.unfolded(node)
        if inner.n == 0:
            return
        self._around.append(node)
        self.run(node.body, inner)
        self._around.pop()
        for tile, held in inner.tiles.items():
            if isinstance(held, Sums) and held.lanes is inner:  # begins anew in each round: the last one stays
                kept = Sums(lanes, divisors=held.divisors)
                for entry in held.entries:
                    path = entry.lanes.path(inner)
                    if path is None:
                        raise Beyond
                    ends = last[path][:, None, None]
                    allow = ends if entry.allow is None else entry.allow & ends
                    kept.entries.append(Entry(entry.lanes, allow, entry.base, entry.row, entry.shape, entry.node))
                lanes.tiles[tile] = kept
            else:
                lanes.tiles[tile] = Beyond() if isinstance(held, Scores) else held if isinstance(held, Sums) else None

    def _branch(self, node: ir.If, lanes: Lanes) -> None:
        holds = lanes.scalar(node.cond).astype(bool)
        for index, body in ((np.flatnonzero(holds), node.then), (np.flatnonzero(~holds), node.otherwise)):
            part = lanes.part(index)
            self.run(body, part)
            for tile, held in part.tiles.items():
                before = self.get(tile, lanes)
                if isinstance(held, Scores):
                    was = before if isinstance(before, Scores) else Scores()
                    shape = (lanes.n, *self.shape(tile, lanes))
                    allow = np.ones(shape, bool) if was.allow is None else np.broadcast_to(was.allow, shape).copy()
                    allow[index] = True if held.allow is None else held.allow
                    row = was.row if was.row is not None else None
                    lanes.tiles[tile] = Scores(allow, held.exp or was.exp, row, held.divisors)
                elif isinstance(held, Sums) and before is not None and held is not before:
                    raise Beyond
                elif isinstance(held, Sums):
                    lanes.tiles[tile] = held
                else:
                    lanes.tiles[tile] = None

    # --- statements ---

    def _step(self, node: ir.Node, lanes: Lanes) -> None:
        tiles = lanes.tiles
        if self._around:
            self.loops[id(node)] = self._around[0]
        match node:
            case ir.Init(tile=tile, value=value):
                tiles[tile] = Sums(lanes) if value == ir.Const(0) else None
            case ir.Load(tile=tile, matrix=matrix, row=row):
                tiles[tile] = Loaded(matrix.row_role, lanes.scalar(row)) if node.via is None else None
            case ir.Move(tile=tile, target=target):
                tiles[target] = self.get(tile, lanes)
            case ir.Gemm():
                self._gemm(node, lanes)
            case ir.Map():
                self._map(node, lanes)
            case ir.Reduce():
                self._reduce(node, lanes)
            case ir.Mask(tile=tile, cond=cond, result=result):
                self.masks.append(node)
                held = self.get(tile, lanes)
                if isinstance(held, Scores):
                    holds = lanes.values(cond, self.shape(tile, lanes)).astype(bool)
                    held = Scores(_both(held.allow, holds), held.exp, held.row, held.divisors)
                tiles[result] = held
            case ir.Softmax():
                scores = self.get(node.tile, lanes)
                if not isinstance(scores, Scores) or node.across is None:
                    raise Beyond
                tiles[node.result] = Scores(scores.allow, True, scores.row)
                if node.alpha is not None:
                    tiles[node.alpha] = None
                base = lanes.scalar(node.across.base)
                self._add(node.l, Entry(lanes, scores.allow, base, scores.row, node.tile.shape, node), lanes)
            case ir.Store(tile=tile, matrix=matrix, row=row):
                if not matrix.workspace:
                    held = self.get(tile, lanes)
                    parts = [held, *held.divisors] if isinstance(held, Sums) and held.entries else []
                    known = tuple(tuple(part.entries) for part in parts) or None
                    self.stores.append(Stored(node, lanes, lanes.scalar(row), known))

    def _add(self, tile: ir.Tile, entry: Entry, lanes: Lanes) -> Sums:
        held = self.get(tile, lanes)
        sums = held if isinstance(held, Sums) else Sums(lanes)
        sums.entries.append(entry)
        lanes.tiles[tile] = sums
        return sums

    def _gemm(self, node: ir.Gemm, lanes: Lanes) -> None:
        a, b = self.get(node.a.tile, lanes), self.get(node.b.tile, lanes)
        result = node.result
        if node.contracted is not None:
            if not (isinstance(a, Scores) and a.exp) or isinstance(b, Scores) or node.a.transposed or node.a.columns:
                raise Beyond
            base = lanes.scalar(node.contracted.base)
            entry = Entry(lanes, a.allow, base, a.row, node.a.tile.shape, node)
            if not node.accumulate:
                lanes.tiles[result] = Sums(lanes)
            sums = self._add(result, entry, lanes)
            sums.divisors.extend(d for d in a.divisors if d not in sums.divisors)
            return
        if isinstance(a, Scores | Sums) or isinstance(b, Scores | Sums):
            raise Beyond
        if node.accumulate and isinstance(self.get(result, lanes), Scores):
            return
        if isinstance(a, Loaded) and a.role == "seq_k":
            raise Beyond
        row = a.row if isinstance(a, Loaded) and a.role == "seq_q" and not node.a.transposed else None
        lanes.tiles[result] = Scores(row=row)

    def _map(self, node: ir.Map, lanes: Lanes) -> None:
        result, tiles = node.result, lanes.tiles
        held = {tile: self.get(tile, lanes) for tile in ir.refs(node.expr)}
        wide = result.shape[1] != _ONE
        sums = list(dict.fromkeys(x for t, x in held.items() if isinstance(x, Sums) and (t.shape[1] != _ONE) == wide))
        below = [x for t, x in held.items() if isinstance(x, Sums) and wide and t.shape[1] == _ONE and x.entries]
        if any(isinstance(x, Scores) for x in held.values()):
            if not wide:
                tiles[result] = None
                return
            allow, kind = self._allowed(node.expr, lanes, self.shape(result, lanes))
            rows = [x.row for x in held.values() if isinstance(x, Scores)]
            tiles[result] = Scores(allow, kind == 2, rows[0], tuple(below))
        elif node.expr == ir.Const(0):
            tiles[result] = Sums(lanes)
        elif sums:
            current = self.get(result, lanes)
            target = sums[0]
            if len(sums) > 1:
                target = next((x for x in sums if x is current), Sums(lanes))
                for other in sums:
                    if other is not target:
                        target.entries.extend(other.entries)
                        target.divisors.extend(other.divisors)
            if _divides(node.expr):
                target.divisors.extend(x for x in below if x not in target.divisors)
            tiles[result] = target
        else:
            loaded = [x for x in held.values() if isinstance(x, Loaded)]
            tiles[result] = loaded[0] if len(loaded) == 1 else None

    def _reduce(self, node: ir.Reduce, lanes: Lanes) -> None:
        tracked = [x for t in ir.refs(node.expr) if isinstance(x := self.get(t, lanes), Scores)]
        if node.fn == "max" or not tracked:
            lanes.tiles[node.result] = None
            return
        rows, columns = (int(lanes.scalar(x).max(initial=1)) for x in node.shape)
        allow, kind = self._allowed(node.expr, lanes, (rows, columns))
        if kind != 2 or node.across is None:
            raise Beyond
        entry = Entry(lanes, allow, lanes.scalar(node.across.base), tracked[0].row, node.shape, node)
        before = [x for t in (ir.refs(node.start) if node.start is not None else ())
                  if isinstance(x := self.get(t, lanes), Sums)]  # fmt: skip
        lanes.tiles[node.result] = before[0] if before else Sums(lanes)
        self._add(node.result, entry, lanes)

    def _allowed(self, expr: ir.Expr, lanes: Lanes, shape: tuple[int, int]) -> tuple[Array | None, int]:
        """Where an expression of scores is not masked, and whether it is of scores (1) or of their exp (2)."""
        if isinstance(expr, ir.Ref):
            held = self.get(expr.tile, lanes)
            return (held.allow, 1 + held.exp) if isinstance(held, Scores) else (None, 0)
        if not isinstance(expr, ir.Op):
            return None, 0
        parts = [self._allowed(arg, lanes, shape) for arg in expr.args]
        kind = max((k for _, k in parts), default=0)
        if expr.fn == "where" and kind:
            return self._chosen(expr, parts, kind, lanes, shape), kind
        allow: Array | None = None
        for arg, (part, of) in zip(expr.args, parts, strict=True):
            allow = _both(allow, part)
            if kind and not of and expr.fn in ("add", "sub", "mul") and _is_mask(arg):
                values = lanes.values(arg, shape)
                if expr.fn == "mul" and kind == 2:
                    allow = _both(allow, values != 0)
                elif expr.fn != "mul":
                    allow = _both(allow, values > LOWEST if expr.fn == "add" else values < -LOWEST)
        if expr.fn in _LOSES_MASK and kind == 1:
            allow = None
        return allow, 2 if expr.fn in ("exp", "exp2") and kind else kind

    def _chosen(
        self, expr: ir.Op, parts: list[tuple[Array | None, int]], kind: int, lanes: Lanes, shape: tuple[int, int]
    ) -> Array | None:
        if ir.refs(expr.args[0]):
            return _both(parts[1][0], parts[2][0])
        holds = lanes.values(expr.args[0], shape).astype(bool)
        ways = []
        for arg, (allow, _) in zip(expr.args[1:], parts[1:], strict=True):
            number = arg.value if isinstance(arg, ir.Const) else None
            dead = number is not None and (number <= LOWEST or (number == 0 and kind == 2))
            ways.append(False if dead else True if allow is None else allow)
        return np.where(holds, *ways)


def _is_mask(expr: ir.Expr) -> bool:
    """Whether positions decide over it and it is known: a mask that is added or multiplied."""
    inside = list(ir.walk(expr))
    return any(isinstance(x, ir.Place) for x in inside) and not any(isinstance(x, ir.Ref | ir.Element) for x in inside)


def _divides(expr: ir.Expr) -> bool:
    return any(isinstance(x, ir.Op) and x.fn in ("div", "mul") for x in ir.walk(expr))


def _both(a: Array | None, b: Array | None) -> Array | None:
    return b if a is None else a if b is None else a & b


def _taken(held: object, index: Array) -> object:
    match held:
        case Loaded(role=role, row=row):
            return Loaded(role, row[index])
        case Scores(allow=allow, exp=exp, row=row, divisors=divisors):
            whole = allow is not None and len(allow) > 1
            taken = allow[index] if allow is not None and whole else allow
            return Scores(taken, exp, row[index] if row is not None else None, divisors)
    return held
