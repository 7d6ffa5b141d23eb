"""Owns TL5xx: whether a softmax keeps, rescales, divides and scales its state rightly, by data flow."""

from __future__ import annotations

import math
from dataclasses import replace

from harness.tl import ir
from harness.tl.checks.flow import Flows
from harness.tl.checks.misuse import KINDS
from harness.tl.checks.narrow import Narrow
from harness.tl.checks.scale import Scales
from harness.tl.checks.values import LOWEST, NO_DEGREE, PLAIN, SUM, UNKNOWN, Flow, constant
from harness.tl.diagnostics import Finding, finding
from harness.tl.syntax import Pos


def check_softmax(program: ir.Program) -> list[Finding]:
    """What is wrong with the softmaxes of each kernel."""
    found: dict[tuple[str, Pos], Finding] = {}
    for kernel in program.kernels:
        walk = _Walk(found)
        walk.block(kernel.body)
        walk.scales.compare_shifts()
        walk.narrow.finish(kernel)
    return list(found.values())


class _Walk:
    """Runs a kernel on flows: loops twice, so that what the first round leaves meets the second."""

    def __init__(self, found: dict[tuple[str, Pos], Finding]) -> None:
        self.found = found
        self.tiles: dict[ir.Tile, Flow] = {}
        self.flows = Flows(self.tiles, self._function, self._mismatch, self._misuse)
        self.node: ir.Node | None = None
        self.loops: list[set[ir.Tile]] = []  # what each loop around writes
        self.scales = Scales(self.report)
        self.narrow = Narrow(self.report)

    def report(self, code: str, pos: Pos, message: str, fix: str = "") -> None:
        self.found.setdefault((code, pos), finding(code, pos, message, fix))

    # --- statements ---

    def block(self, body: tuple[ir.Node, ...]) -> None:
        for node in body:
            if isinstance(node, ir.For):
                self.loops.append({t for n in ir.nodes(node.body) for t in ir.writes(n)})
                for _ in range(2):
                    self.block(node.body)
                self.loops.pop()
            elif isinstance(node, ir.If):
                before = dict(self.tiles)
                self.block(node.then)
                one = dict(self.tiles)
                self._set(before)
                self.block(node.otherwise)
                other = dict(self.tiles)
                self._set(
                    {t: self.flows.join(one.get(t, UNKNOWN), other.get(t, UNKNOWN)) for t in {**one, **other}}
                )
            else:
                self.node = node
                self.flows.pos = _pos(node)
                self._step(node)
                self.narrow.written(node, self.tiles)

    def _set(self, tiles: dict[ir.Tile, Flow]) -> None:
        self.tiles.clear()
        self.tiles.update(tiles)

    def _step(self, node: ir.Node) -> None:
        tiles, flows = self.tiles, self.flows
        match node:
            case ir.Init(tile=tile, value=number):
                tiles[tile] = self._given(flows.of(number)) if number is not None else UNKNOWN
            case ir.Load(tile=tile, matrix=matrix):
                tiles[tile] = UNKNOWN if matrix.workspace else PLAIN
            case ir.Move(tile=tile, target=target):
                tiles[target] = flows.read(tile)
            case ir.Gemm():
                self._gemm(node)
            case ir.Map(result=result, expr=expr):
                value = flows.of(expr)
                if isinstance(expr, ir.Op) and expr.fn in ("exp", "exp2"):
                    for tile in ir.refs(expr):
                        self._once(tile.name, flows.read(tile))
                self._started(value, result, ir.refs(expr))
                self._late_mask(expr)
                self._upside_down(expr)
                tiles[result] = self._given(value) if value.const is not None else value
            case ir.Reduce(fn=fn, expr=expr, result=result, start=start):
                first = flows.of(start) if start is not None else None
                what = flows.of(expr)
                if fn == "sum" and what.score and not what.factor and node.across is not None:
                    self._misuse("raw")
                value = flows.reduce(fn, what, first)
                self._started(value, result, ir.refs(start) if start is not None else ())
                tiles[result] = value
            case ir.Mask(tile=tile, result=result):
                value = flows.read(tile)
                if value.probability:
                    self._masked_late(tile)
                tiles[result] = replace(value, const=None, masked=(*value.masked, flows.pos))
            case ir.Softmax():
                self._softmax(node)
            case ir.Store(tile=tile, matrix=matrix):
                self._store(flows.read(tile), tile, matrix)

    def _given(self, value: Flow) -> Flow:
        """A number that fills a tile; it is remembered where it was given."""
        return replace(value, origin=self.flows.pos)

    def _gemm(self, node: ir.Gemm) -> None:
        flows = self.flows
        product = flows.gemm(flows.read(node.a.tile), flows.read(node.b.tile))
        if node.contracted is not None:
            raw = [
                o.tile for o in (node.a, node.b) if flows.read(o.tile).score and not flows.read(o.tile).factor
            ]
            for tile in raw:
                self.report(
                    "TL509",
                    flows.pos,
                    f"the scores `{tile.name}` enter the product with the values as they are",
                )
        if not node.accumulate:
            self.tiles[node.result] = product
            return
        old = flows.read(node.result)
        if old.const is not None and old.const != 0:
            self._wrong_start(node.result, old, "0")
        known = old.parts is not None and product.parts is not None
        if old.factor and product.factor and known and old.unnormalised < product.unnormalised:
            self.report(
                "TL504",
                flows.pos,
                f"`{node.result.name}` is divided by the softmax's sum while the loop still adds to it",
            )
        self.tiles[node.result] = product if old.const is not None else flows.add(old, product)

    def _softmax(self, node: ir.Softmax) -> None:
        flows, tiles = self.flows, self.tiles
        self._once(node.tile.name, flows.read(node.tile))
        scores, m, total = flows.read(node.tile), flows.read(node.m), flows.read(node.l)
        if m.const is not None and m.const > LOWEST:
            self._wrong_start(node.m, m, "-inf")
        if total.const is not None and total.const != 0:
            self._wrong_start(node.l, total, "0")
        self._function("Softmax", scores)
        known = scores.parts is not None and not scores.parts and m.parts is not None and len(m.parts) < 2
        version = flows.fresh(m) if known else None
        minus = {SUM: 1, **{key: -n for key, n in version.items()}} if version is not None else None
        result = Flow(minus, True, True, degree=NO_DEGREE)
        alpha = Flow({**(m.parts or {}), **_negated(version)}, True, degree=NO_DEGREE) if version else UNKNOWN
        for tile in node.rescale:
            first = flows.read(tile)
            if first.const is not None and first.const != 0:
                self._wrong_start(tile, first, "0")
            tiles[tile] = flows.multiply(flows.read(tile), alpha)
        if node.alpha is not None:
            tiles[node.alpha] = alpha
        carried = constant(0) if total.const is not None else flows.multiply(total, alpha)
        tiles[node.l] = flows.add(carried, replace(result, probability=False))
        tiles[node.m] = Flow(version, degree=(1.0, 0.0))
        tiles[node.result] = result

    # --- findings ---

    def _started(self, value: Flow, result: ir.Tile, read: tuple[ir.Tile, ...]) -> None:
        """TL502 of a maximum or a sum spelled out: a number that the loop goes on from."""
        if not self.loops or value.const is not None:
            return
        if result.shape[1] != ir.Const(1):
            old = self.flows.read(result)
            if value.factor and result in read and old.const is not None and old.const != 0:
                self._wrong_start(result, old, "0")  # an accumulator that is rescaled
            return
        maximum = not value.factor and bool(value.parts)
        total = value.factor and value.unnormalised > 0
        if not maximum and not total:
            return
        extreme = isinstance(self.node, ir.Reduce) or (
            isinstance(self.node, ir.Map) and _takes_maximum(self.node.expr)
        )
        for tile in read:
            old = self.flows.read(tile)
            if old.const is None or tile not in self.loops[-1] or tile.shape[1] != ir.Const(1):
                continue
            if maximum and extreme and old.const > LOWEST:
                self._wrong_start(tile, old, "-inf")
            elif total and -math.inf < old.const and old.const != 0 and old.const > LOWEST:
                self._wrong_start(tile, old, "0")

    def _wrong_start(self, tile: ir.Tile, old: Flow, wanted: str) -> None:
        what = "maximum" if wanted == "-inf" else "sum" if tile.shape[1] == ir.Const(1) else "accumulator"
        self.report(
            "TL502",
            old.origin,
            f"the {what} `{tile.name}` starts at {old.const:g}, not at {wanted}",
            f"let `{tile.name}` start at {wanted}: init {wanted}",
        )

    def _mismatch(self, old: Flow, new: Flow) -> None:
        """Two terms of a sum that are relative to different maxima."""
        node = self.node
        if isinstance(node, ir.Gemm):
            name = node.result.name
            self.report(
                "TL501",
                _pos(node),
                f"`{name}` accumulates products relative to a new maximum, but what it "
                "holds is not brought to it",
                f"add `and rescale {name}` to the Softmax, or multiply `{name}` "
                "by exp(old maximum - new maximum) before this",
            )
        elif isinstance(node, ir.Map | ir.Reduce):
            name = node.result.name
            self.report(
                "TL501",
                _pos(node),
                f"`{name}` adds terms relative to different maxima",
                f"multiply `{name}` by exp(old maximum - new maximum) first",
            )

    def _misuse(self, kind: str, pos: Pos | None = None) -> None:
        if kind == "subtracted" and not (
            isinstance(self.node, ir.Map) and self.node.result in ir.refs(self.node.expr)
        ):
            return  # not of a sum that runs
        code, message, fix = KINDS[kind]
        self.report(code, pos or self.flows.pos, message, fix)

    def _upside_down(self, expr: ir.Expr) -> None:
        """A sum divided by an accumulator."""
        for part in ir.walk(expr):
            if isinstance(part, ir.Op) and part.fn == "div" and len(part.args) == 2:
                sums, wide = (
                    [t for t in ir.refs(a) if self.flows.read(t).unnormalised > 0] for a in part.args
                )
                vectors = all(t.shape[1] == ir.Const(1) for t in ir.refs(part.args[0]))
                if sums and vectors and any(t.shape[1] != ir.Const(1) for t in wide):
                    self._misuse("upside down")

    def _once(self, name: str, value: Flow) -> None:
        if value.probability and not value.score:
            self.report("TL508", self.flows.pos, f"`{name}` holds what a softmax made already")

    def _masked_late(self, tile: ir.Tile) -> None:
        self.report(
            "TL505", self.flows.pos, f"`{tile.name}` holds what the softmax made; -inf in it is no mask"
        )

    def _late_mask(self, expr: ir.Expr) -> None:
        """where(condition, probabilities, -inf)."""
        for part in ir.walk(expr):
            if isinstance(part, ir.Op) and part.fn == "where" and len(part.args) == 3:
                hidden = [a for a in part.args[1:] if isinstance(a, ir.Const) and a.value <= LOWEST]
                tiles = [t for a in part.args[1:] for t in ir.refs(a) if self.flows.read(t).probability]
                wide = [t for t in tiles if t.shape[1] != ir.Const(1)]
                if hidden and wide:
                    self._masked_late(wide[0])

    def _store(self, value: Flow, tile: ir.Tile, matrix: ir.Matrix) -> None:
        if matrix.workspace or not value.factor or value.parts is None:
            return
        if value.unnormalised > 0:
            self.report(
                "TL503", self.flows.pos, f"`{tile.name}` is stored but never divided by the softmax's sum"
            )
        elif value.unnormalised < 0:
            self.report(
                "TL504",
                self.flows.pos,
                f"`{tile.name}` is divided by the softmax's sum {1 - value.unnormalised} times",
            )

    def _function(self, fn: str, x: Flow) -> None:
        self.scales.function(fn, x, self.flows.pos)


def _pos(node: ir.Node) -> Pos:
    return node.source.pos if node.source is not None else Pos(1, 1)


def _negated(parts: object) -> dict[int, int]:
    return {key: -n for key, n in parts.items()} if isinstance(parts, dict) else {}


def _takes_maximum(expr: ir.Expr) -> bool:
    return isinstance(expr, ir.Op) and expr.fn == "max"
