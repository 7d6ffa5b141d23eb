"""Owns what an expression does to the mask of the scores in it: where they still count."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from harness.tl import ir
from harness.tl.checks.lanes import Array, Lanes
from harness.tl.checks.values import LOWEST

Held = Callable[[ir.Tile], tuple[Array | None, int]]
_LOSES_MASK = frozenset(
    {"tanh", "sigmoid", "relu", "abs", "reciprocal", "pow", "sqrt", "rsqrt", "log", "log2"}
)


def allowed(expr: ir.Expr, lanes: Lanes, shape: tuple[int, int], held: Held) -> tuple[Array | None, int]:
    """Where an expression is not masked, and whether it is of scores (1), of their exp (2) or neither (0)."""
    if isinstance(expr, ir.Ref):
        return held(expr.tile)
    if not isinstance(expr, ir.Op):
        return None, 0
    parts = [allowed(arg, lanes, shape, held) for arg in expr.args]
    kind = max((k for _, k in parts), default=0)
    if expr.fn == "where" and kind:
        return _chosen(expr, parts, kind, lanes, shape), kind
    allow: Array | None = None
    for arg, (part, of) in zip(expr.args, parts, strict=True):
        allow = both(allow, part)
        if kind and not of and expr.fn in ("add", "sub", "mul") and _is_mask(arg):
            values = lanes.values(arg, shape)
            if expr.fn == "mul" and kind == 2:
                allow = both(allow, values != 0)
            elif expr.fn != "mul":
                allow = both(allow, values > LOWEST if expr.fn == "add" else values < -LOWEST)
    if expr.fn in _LOSES_MASK and kind == 1:
        allow = None
    return allow, 2 if expr.fn in ("exp", "exp2") and kind else kind


def _chosen(
    expr: ir.Op,
    parts: list[tuple[Array | None, int]],
    kind: int,
    lanes: Lanes,
    shape: tuple[int, int],
) -> Array | None:
    if ir.refs(expr.args[0]):
        return both(parts[1][0], parts[2][0])
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
    return any(isinstance(x, ir.Place) for x in inside) and not any(
        isinstance(x, ir.Ref | ir.Element) for x in inside
    )


def both(a: Array | None, b: Array | None) -> Array | None:
    return b if a is None else a if b is None else a & b
