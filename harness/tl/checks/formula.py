"""Owns TL507 of the whole formula: whether probabilities are the exponential of the task's scores.

The scores are traced from the product of queries and keys to the product with the values, as a function
of one number, and compared with the task's own function. Nothing is said where they depend on more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from harness.tl import ir
from harness.tl.checks.lanes import Array
from harness.tl.checks.values import LOWEST
from harness.tl.diagnostics import Finding, finding
from harness.tl.problem import TaskLike, all_workloads, scalars
from harness.tl.syntax import Pos

_PRODUCT, _VECTOR = ir.Sym("#product"), ir.Sym("#vector")
_RAW = ir.Sym("#raw")
_SCORES = np.linspace(-24.0, 24.0, 13)  # of which an exponential is still a number in f64
_TOLERANCE = 0.05
_MOST_WORKLOADS = 3
_LARGEST = 200  # parts of a formula
_UNKNOWN = object()
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "pow": np.power,
    "neg": np.negative,
    "abs": np.abs,
    "exp": np.exp,
    "exp2": np.exp2,
    "log": np.log,
    "log2": np.log2,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "reciprocal": np.reciprocal,
    "max": np.maximum,
    "min": np.minimum,
}


def check_formula(program: ir.Program, task: TaskLike) -> list[Finding]:
    """Where what multiplies the values is not the exponential of the task's scores."""
    change = getattr(task, "score_mod", _UNKNOWN)
    if change is _UNKNOWN or getattr(task, "oracle", None) is not None:
        return []
    found: dict[Pos, Finding] = {}
    for kernel in program.kernels:
        trace = _Trace()
        trace.run(kernel.body)
        for formula, pos in trace.entering:
            if pos not in found and not _known(formula, task, change):
                text = "the scores under this exponential are not those of the task"
                fix = "compare them with the task's formula, factor by factor"
                found[pos] = finding("TL507", pos, text, fix)
    return list(found.values())


class _Trace:
    """What each tile is as a function of the product; tiles that are not known are left out."""

    def __init__(self) -> None:
        self.tiles: dict[ir.Tile, ir.Expr] = {}
        self.made: dict[ir.Tile, Pos] = {}  # where the exponential was taken
        self.entering: dict[tuple[ir.Expr, Pos], None] = {}

    def run(self, body: tuple[ir.Node, ...]) -> None:
        for node in body:
            if isinstance(node, ir.For):
                for tile in {t for n in ir.nodes(node.body) for t in ir.writes(n)}:
                    self.tiles.pop(tile, None)  # of another round
                self.run(node.body)
            elif isinstance(node, ir.If):
                before = dict(self.tiles)
                self.run(node.then)
                one, self.tiles = self.tiles, before
                self.run(node.otherwise)
                self.tiles = {t: e for t, e in self.tiles.items() if one.get(t) == e}
            else:
                self._step(node)

    def _step(self, node: ir.Node) -> None:
        pos = node.source.pos if node.source is not None else Pos(1, 1)
        value: ir.Expr | None = None
        result: ir.Tile | None = None
        match node:
            case ir.Load(tile=tile):
                result, value = tile, _RAW
            case ir.Move(tile=tile, target=target):
                result, value = target, self.tiles.get(tile)
                self._made(target, (tile,), pos)
            case ir.Gemm():
                result, value = node.result, self._gemm(node, pos)
            case ir.Map(expr=expr):
                result, value = node.result, self._of(expr)
                self._made(result, () if _exponential(expr) else ir.refs(expr), pos)
            case ir.Mask(tile=tile, cond=cond):
                result, value = node.result, None if ir.refs(cond) else self.tiles.get(tile)
                self._made(result, (tile,), pos)
            case ir.Softmax(tile=tile):
                result, under = node.result, self.tiles.get(tile)
                value = ir.Op("exp", (under,)) if under is not None else None
                self.made[result] = pos
        for tile in ir.writes(node):
            self.tiles.pop(tile, None)
        if result is not None and value is not None and sum(1 for _ in ir.walk(value)) <= _LARGEST:
            self.tiles[result] = value

    def _made(self, result: ir.Tile, parts: tuple[ir.Tile, ...], pos: Pos) -> None:
        self.made[result] = next((self.made[t] for t in parts if t in self.made), pos)

    def _gemm(self, node: ir.Gemm, pos: Pos) -> ir.Expr | None:
        a, b = self.tiles.get(node.a.tile), self.tiles.get(node.b.tile)
        if node.contracted is not None:
            if a is not None and b == _RAW and _PRODUCT in ir.walk(a):
                self.entering[a, self.made.get(node.a.tile, pos)] = None
            return None
        if node.accumulate or node.a.columns is not None or node.b.columns is not None:
            return None
        return _PRODUCT if a == _RAW and b == _RAW else None

    def _of(self, expr: ir.Expr) -> ir.Expr | None:
        """An expression of the product, of scalars, and of vectors (all taken for one number)."""
        match expr:
            case ir.Const() | ir.Sym():
                return expr
            case ir.Ref(tile=tile):
                return _VECTOR if tile.shape[1] == ir.Const(1) else self.tiles.get(tile)
            case ir.Op(fn="where", args=(cond, a, b)) if not ir.refs(cond):
                hidden = [
                    x for x in (a, b) if isinstance(x, ir.Const) and (x.value <= LOWEST or x.value == 0)
                ]
                return self._of(b if a in hidden else a) if len(hidden) == 1 else None
            case ir.Op(fn=fn, args=(x,)) if fn.startswith("cast_"):
                return self._of(x)
            case ir.Op(fn=fn, args=args) if fn in _FUNCTIONS:
                parts = [self._of(x) for x in args]
                known = tuple(p for p in parts if p is not None)
                return ir.Op(fn, known) if len(known) == len(args) else None
        return None


def _exponential(expr: ir.Expr) -> bool:
    return any(isinstance(x, ir.Op) and x.fn in ("exp", "exp2") for x in ir.walk(expr))


_KNOWN: dict[tuple[ir.Expr, int], tuple[TaskLike, bool]] = {}


def _known(formula: ir.Expr, task: TaskLike, change: Any) -> bool:
    """Whether the formula agrees with the task's; kept, since most programs of a task have the same."""
    key = (formula, id(task))
    if key not in _KNOWN or _KNOWN[key][0] is not task:
        if len(_KNOWN) > 256:
            _KNOWN.clear()
        _KNOWN[key] = task, _agrees(formula, task, change)
    return _KNOWN[key][1]


def _agrees(formula: ir.Expr, task: TaskLike, change: Any) -> bool:
    """Whether log(formula) is the task's score plus what is the same for a whole row; True if not known."""
    import torch

    for workload in all_workloads(task)[:_MOST_WORKLOADS]:
        values = scalars(workload)
        wanted = _SCORES
        if change is not None:
            scores, zero = (
                torch.from_numpy(_SCORES).reshape(1, 1, -1),
                torch.zeros(1, 1, 1, dtype=torch.int64),
            )
            wanted, moved = (
                change(scores, zero, zero + at, zero, workload).double().numpy().reshape(-1) for at in (0, 1)
            )
            if not np.allclose(wanted, moved):
                return True  # positions decide
        rows = [
            _logarithm(formula, {**values, "#product": _SCORES / values["scale"], "#vector": v})
            for v in (1.0, 2.0)
        ]
        if any(row is None for row in rows):
            return True
        got, other = (row - row[0] for row in rows if row is not None)
        if not np.allclose(got, other, atol=_TOLERANCE):
            return True  # a vector is more than a shift or a factor
        if not np.allclose(got, wanted - wanted[0], atol=_TOLERANCE, rtol=1e-3):
            return False
    return True


def _logarithm(formula: ir.Expr, values: Mapping[str, Any]) -> Array | None:
    with np.errstate(all="ignore"):
        try:
            found: Array = np.log(_value(formula, values))
        except (KeyError, TypeError, ValueError, ArithmeticError):
            return None
    return found if found.shape == _SCORES.shape and not np.isnan(found).any() else None


def _value(expr: ir.Expr, values: Mapping[str, Any]) -> Any:
    match expr:
        case ir.Const(value=value):
            return float(value)
        case ir.Sym(name=name):
            return np.float64(values[name]) if name != "#product" else values[name]
        case ir.Op(fn=fn, args=args):
            first, *rest = (_value(x, values) for x in args)
            if not rest:
                return _FUNCTIONS[fn](first)
            for x in rest:
                first = _FUNCTIONS[fn](first, x)
            return first
    raise KeyError(expr)
