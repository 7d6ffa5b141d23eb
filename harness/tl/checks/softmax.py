"""Owns TL5xx: whether a softmax keeps, rescales, divides and scales its state rightly, by data flow."""

from __future__ import annotations

import math
from dataclasses import replace

from harness.tl import ir
from harness.tl.checks.flow import (
    LOWEST,
    NO_DEGREE,
    PLAIN,
    SUM,
    UNKNOWN,
    Degree,
    Flow,
    Flows,
    constant,
    join,
)
from harness.tl.diagnostics import Finding, finding
from harness.tl.syntax import Pos

_WANTED: dict[str, Degree] = {"exp": (1.0, 0.0), "exp2": (1.0, 1.0), "Softmax": (1.0, 0.0)}


def check_softmax(program: ir.Program) -> list[Finding]:
    """What is wrong with the softmaxes of each kernel."""
    found: dict[tuple[str, Pos], Finding] = {}
    for kernel in program.kernels:
        walk = _Walk(found)
        walk.block(kernel.body)
        walk.compare_shifts()
    return list(found.values())


class _Walk:
    """Runs a kernel on flows: loops twice, so that what the first round leaves meets the second."""

    def __init__(self, found: dict[tuple[str, Pos], Finding]) -> None:
        self.found = found
        self.tiles: dict[ir.Tile, Flow] = {}
        self.flows = Flows(self.tiles, self._function, self._mismatch)
        self.node: ir.Node | None = None
        self.loops: list[set[ir.Tile]] = []  # what each loop around writes
        self.shifts: list[tuple[Pos, bool, Degree]] = []  # exp: where, of a matrix?, degree of its maxima

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
                self._set({t: join(one.get(t, UNKNOWN), other.get(t, UNKNOWN)) for t in {**one, **other}})
            else:
                self.node = node
                self.flows.pos = _pos(node)
                self._step(node)

    def _set(self, tiles: dict[ir.Tile, Flow]) -> None:
        self.tiles.clear()
        self.tiles.update(tiles)

    def _step(self, node: ir.Node) -> None:
        tiles, flows = self.tiles, self.flows
        match node:
            case ir.Init(tile=tile, value=value):
                tiles[tile] = self._given(flows.of(value)) if value is not None else UNKNOWN
            case ir.Load(tile=tile, matrix=matrix):
                tiles[tile] = UNKNOWN if matrix.workspace else PLAIN
            case ir.Move(tile=tile, target=target):
                tiles[target] = flows.read(tile)
            case ir.Gemm():
                self._gemm(node)
            case ir.Map(result=result, expr=expr):
                value = flows.of(expr)
                self._started(value, result, ir.refs(expr))
                self._late_mask(expr)
                tiles[result] = self._given(value) if value.const is not None else value
            case ir.Reduce(fn=fn, expr=expr, result=result, start=start):
                first = flows.of(start) if start is not None else None
                value = flows.reduce(fn, flows.of(expr), first)
                self._started(value, result, ir.refs(start) if start is not None else ())
                tiles[result] = value
            case ir.Mask(tile=tile, result=result):
                if flows.read(tile).is_probability:
                    self._masked_late(tile)
                tiles[result] = replace(flows.read(tile), const=None)
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
        if not node.accumulate:
            self.tiles[node.result] = product
            return
        old = flows.read(node.result)
        if old.const is not None and old.const != 0:
            self._wrong_start(node.result, old, "0")
        self.tiles[node.result] = product if old.const is not None else flows.add(old, product)

    def _softmax(self, node: ir.Softmax) -> None:
        flows, tiles = self.flows, self.tiles
        scores, m, total = flows.read(node.tile), flows.read(node.m), flows.read(node.l)
        if m.const is not None and m.const > LOWEST:
            self._wrong_start(node.m, m, "-inf")
        if total.const is not None and total.const != 0:
            self._wrong_start(node.l, total, "0")
        self._function("Softmax", scores)
        known = scores.parts is not None and not scores.parts and m.parts is not None and len(m.parts) < 2
        version = flows.fresh() if known else None
        minus = {SUM: 1, **{key: -n for key, n in version.items()}} if version is not None else None
        result = Flow(minus, True, degree=NO_DEGREE)
        alpha = Flow({**(m.parts or {}), **_negated(version)}, True, degree=NO_DEGREE) if version else UNKNOWN
        for tile in node.rescale:
            tiles[tile] = flows.multiply(flows.read(tile), alpha)
        if node.alpha is not None:
            tiles[node.alpha] = alpha
        carried = constant(0) if total.const is not None else flows.multiply(total, alpha)
        tiles[node.l] = flows.add(carried, result)
        tiles[node.m] = Flow(version, degree=(1.0, 0.0))
        tiles[node.result] = result

    # --- findings ---

    def _started(self, value: Flow, result: ir.Tile, read: tuple[ir.Tile, ...]) -> None:
        """TL502 of a maximum or a sum spelled out: a number that the loop goes on from."""
        if not self.loops or result.shape[1] != ir.Const(1) or value.const is not None:
            return
        maximum = not value.factor and bool(value.parts)
        if not maximum and not value.is_probability:
            return
        extreme = isinstance(self.node, ir.Reduce) or (isinstance(self.node, ir.Map) and _takes_maximum(self.node.expr))
        for tile in read:
            old = self.flows.read(tile)
            if old.const is None or tile not in self.loops[-1] or tile.shape[1] != ir.Const(1):
                continue
            if maximum and extreme and old.const > LOWEST:
                self._wrong_start(tile, old, "-inf")
            elif value.is_probability and -math.inf < old.const and old.const != 0 and old.const > LOWEST:
                self._wrong_start(tile, old, "0")

    def _wrong_start(self, tile: ir.Tile, old: Flow, wanted: str) -> None:
        what = "maximum" if wanted == "-inf" else "sum" if tile.shape[1] == ir.Const(1) else "accumulator"
        self.report("TL502", old.origin, f"the {what} `{tile.name}` starts at {old.const:g}, not at {wanted}",
                    f"let `{tile.name}` start at {wanted}: init {wanted}")  # fmt: skip

    def _mismatch(self, old: Flow, new: Flow) -> None:
        """Two terms of a sum that are relative to different maxima."""
        node = self.node
        if isinstance(node, ir.Gemm):
            name = node.result.name
            self.report("TL501", _pos(node), f"`{name}` accumulates products relative to a new maximum, but what it "
                        "holds is not brought to it", f"add `and rescale {name}` to the Softmax, or multiply `{name}` "
                        "by exp(old maximum - new maximum) before this")  # fmt: skip
        elif isinstance(node, ir.Map | ir.Reduce):
            name = node.result.name
            self.report("TL501", _pos(node), f"`{name}` adds terms relative to different maxima",
                        f"multiply `{name}` by exp(old maximum - new maximum) first")  # fmt: skip

    def _masked_late(self, tile: ir.Tile) -> None:
        self.report("TL505", self.flows.pos, f"`{tile.name}` holds what the softmax made; -inf in it is no mask")

    def _late_mask(self, expr: ir.Expr) -> None:
        """where(condition, probabilities, -inf)."""
        for part in ir.walk(expr):
            if isinstance(part, ir.Op) and part.fn == "where" and len(part.args) == 3:
                hidden = [a for a in part.args[1:] if isinstance(a, ir.Const) and a.value <= LOWEST]
                tiles = [t for a in part.args[1:] for t in ir.refs(a) if self.flows.read(t).is_probability]
                wide = [t for t in tiles if t.shape[1] != ir.Const(1)]
                if hidden and wide:
                    self._masked_late(wide[0])

    def _store(self, value: Flow, tile: ir.Tile, matrix: ir.Matrix) -> None:
        if matrix.workspace or not value.factor or value.parts is None:
            return
        if value.unnormalised > 0:
            self.report("TL503", self.flows.pos, f"`{tile.name}` is stored but never divided by the softmax's sum")
        elif value.unnormalised < 0:
            self.report("TL504", self.flows.pos, f"`{tile.name}` is divided by the softmax's sum {1 - value.unnormalised} times")

    def _function(self, fn: str, x: Flow) -> None:
        """TL506, TL507: the powers of scale and of log2(e) where it matters."""
        pos = self.flows.pos
        if fn in ("exp", "exp2") and not x.factor and x.parts:
            degree = x.shift if x.score else x.degree
            if degree is not None:
                power = degree[1] - _WANTED[fn][1]
                self.shifts.append((pos, x.score, (degree[0], power)))
        if not x.score or x.degree is None or x.factor:
            return
        if fn == "tanh":
            if x.degree[0] == 0:
                self.report("TL507", pos, "tanh takes scores that are not multiplied by scale")
            return
        if fn not in _WANTED:
            return
        scale, power = x.degree[0], x.degree[1] - _WANTED[fn][1]
        if scale > 1:
            self.report("TL506", x.scaled[-1] if x.scaled else pos, f"scale is in the scores {scale:g} times where {fn} takes them")
        elif scale < 1:
            self.report("TL507", pos, f"{fn} takes scores that are not multiplied by scale")
        elif power < 0:
            self.report("TL507", pos, "exp2 takes scores that are not multiplied by log2(e)",
                        "multiply the scores by scale * 1.4426950408889634, or use exp")  # fmt: skip
        elif power > 0:
            self.report("TL506", pos, f"log2(e) is in the scores where {fn} takes them", "use exp2 with it, or exp without")

    def compare_shifts(self) -> None:
        """The maxima in exp(m - m_new) must be scaled as in exp(S - m_new)."""
        wanted = {degree for _, matrix, degree in self.shifts if matrix}
        if len(wanted) != 1:
            return
        (right,) = wanted
        for pos, matrix, degree in self.shifts:
            if not matrix and degree != right:
                code = "TL507" if degree < right else "TL506"
                self.report(code, pos, "the maxima are not scaled here as they are in the exponential of the scores",
                            "multiply their difference by the same factor in both")  # fmt: skip


def _pos(node: ir.Node) -> Pos:
    return node.source.pos if node.source is not None else Pos(1, 1)


def _negated(parts: object) -> dict[int, int]:
    return {key: -n for key, n in parts.items()} if isinstance(parts, dict) else {}


def _takes_maximum(expr: ir.Expr) -> bool:
    return isinstance(expr, ir.Op) and expr.fn == "max"
