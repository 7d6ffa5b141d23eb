"""Owns which (query, key) pairs reach which accumulator: an abstract run of a kernel over small cases.

A tile holds one of: rows of queries, scores with the places that are not masked, or sums over keys.
The values are not computed; nothing is said (Beyond) where this does not tell what happens.
"""

from __future__ import annotations

import numpy as np

from harness.tl import ir
from harness.tl.checks.contents import Entry, Loaded, Scores, Stored, Sums, taken
from harness.tl.checks.lanes import Array, Beyond, Lanes
from harness.tl.checks.masks import allowed, both
from harness.tl.checks.values import LOWEST

_ONE = ir.Const(1)


class Visits:
    """Runs one kernel; keeps its stores to outputs, its masks, its softmaxes, and the loop of each node."""

    def __init__(self, extents: dict[tuple[ir.Expr, ir.Expr], tuple[int, int]]) -> None:
        self.extents = extents
        self.stores: list[Stored] = []
        self.masks: list[ir.Node] = []
        self.exps: list[ir.Node] = []
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
                return held if index is None else taken(held, index)
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
            if (
                isinstance(held, Sums) and held.lanes is inner
            ):  # begins anew in each round: the last one stays
                kept = Sums(lanes, divisors=held.divisors)
                for entry in held.entries:
                    path = entry.lanes.path(inner)
                    if path is None:
                        raise Beyond
                    ends = last[path][:, None, None]
                    allow = ends if entry.allow is None else entry.allow & ends
                    kept.entries.append(
                        Entry(entry.lanes, allow, entry.base, entry.row, entry.shape, entry.node)
                    )
                lanes.tiles[tile] = kept
            else:
                lanes.tiles[tile] = (
                    Beyond() if isinstance(held, Scores) else held if isinstance(held, Sums) else None
                )

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
                    allow = (
                        np.ones(shape, bool)
                        if was.allow is None
                        else np.broadcast_to(was.allow, shape).copy()
                    )
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
                tiles[tile] = Sums(lanes) if _number(value) else None
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
                    held = Scores(both(held.allow, holds), held.exp, held.row, held.divisors)
                tiles[result] = held
            case ir.Softmax():
                scores = self.get(node.tile, lanes)
                if not isinstance(scores, Scores) or node.across is None:
                    raise Beyond
                self.exps.append(node)
                tiles[node.result] = Scores(scores.allow, True, scores.row)
                if node.alpha is not None:
                    tiles[node.alpha] = None
                base = lanes.scalar(node.across.base)
                self._add(node.l, Entry(lanes, scores.allow, base, scores.row, node.tile.shape, node), lanes)
            case ir.Store(tile=tile, matrix=matrix, row=row):
                if not matrix.workspace:
                    held = self.get(tile, lanes)
                    parts = [held, *held.divisors] if isinstance(held, Sums) else []
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
            if (
                not (isinstance(a, Scores) and a.exp)
                or isinstance(b, Scores)
                or node.a.transposed
                or node.a.columns
            ):
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
        linear = _linear(node.expr)
        sums = list(
            dict.fromkeys(
                x
                for t, x in held.items()
                if isinstance(x, Sums) and t in linear and (t.shape[1] != _ONE) == wide
            )
        )
        below = [
            x for t, x in held.items() if isinstance(x, Sums) and wide and t.shape[1] == _ONE and x.entries
        ]
        if any(isinstance(x, Scores) for x in held.values()):
            if not wide:
                tiles[result] = None
                return
            allow, kind = self._allowed(node.expr, lanes, self.shape(result, lanes))
            if kind == 2 and not any(isinstance(x, Scores) and x.exp for x in held.values()):
                self.exps.append(node)
            rows = [x.row for x in held.values() if isinstance(x, Scores)]
            tiles[result] = Scores(allow, kind == 2, rows[0], tuple(below))
        elif _number(node.expr):
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
        before = [
            x
            for t in (ir.refs(node.start) if node.start is not None else ())
            if isinstance(x := self.get(t, lanes), Sums)
        ]
        lanes.tiles[node.result] = before[0] if before else Sums(lanes)
        self._add(node.result, entry, lanes)

    def _allowed(self, expr: ir.Expr, lanes: Lanes, shape: tuple[int, int]) -> tuple[Array | None, int]:
        def held(tile: ir.Tile) -> tuple[Array | None, int]:
            content = self.get(tile, lanes)
            return (content.allow, 1 + content.exp) if isinstance(content, Scores) else (None, 0)

        return allowed(expr, lanes, shape, held)


def _number(expr: ir.Expr | None) -> bool:
    """Whether it is a number that a sum may start from, rightly (0) or not."""
    if isinstance(expr, ir.Const):
        return expr.value > LOWEST
    return isinstance(expr, ir.Sym)


def _linear(expr: ir.Expr) -> set[ir.Tile]:
    """The tiles that an expression is a multiple of, or adds up."""
    if isinstance(expr, ir.Ref):
        return {expr.tile}
    if not isinstance(expr, ir.Op):
        return set()
    args = expr.args[1:] if expr.fn == "where" else expr.args
    plain = expr.fn in ("add", "sub", "mul", "div", "neg", "reciprocal", "where") or expr.fn.startswith(
        "cast_"
    )
    bounded = expr.fn in ("max", "min") and any(isinstance(a, ir.Const) for a in args)
    return {t for a in args for t in _linear(a)} if plain or bounded else set()


def _divides(expr: ir.Expr) -> bool:
    return any(isinstance(x, ir.Op) and x.fn in ("div", "mul") for x in ir.walk(expr))
