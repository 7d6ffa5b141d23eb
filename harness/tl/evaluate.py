"""Owns the value of index arithmetic: sizes, bounds, coordinates, conditions, on integers or arrays."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

from harness.tl import ir

_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "floordiv": operator.floordiv,
    "ceildiv": lambda a, b: -(-a // b),
    "mod": operator.mod,
    "div": operator.truediv,
    "pow": operator.pow,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "eq": operator.eq,
    "ne": operator.ne,
}


def evaluate(expr: ir.Expr, env: Mapping[str, Any]) -> Any:
    """The value of an index expression where `env` gives each symbol's; raises KeyError for a missing one."""
    match expr:
        case ir.Const(value=value):
            return value
        case ir.Sym(name=name):
            return env[name]
        case ir.Op(fn=fn, args=args):
            values = [evaluate(arg, env) for arg in args]
            if fn in _BINARY:
                return reduce(_BINARY[fn], values)
            match fn:
                case "min":
                    return min(values)
                case "max":
                    return max(values)
                case "neg":
                    return -values[0]
                case "not":
                    return not values[0]
                case "and":
                    return all(values)
                case "or":
                    return any(values)
                case "abs":
                    return abs(values[0])
                case "where":
                    return values[1] if values[0] else values[2]
    raise ValueError(f"{type(expr).__name__} {expr} is no index arithmetic")


def substitute(expr: ir.Expr, values: Mapping[str, ir.Expr]) -> ir.Expr:
    """The expression with symbols replaced; arithmetic on constants is carried out."""
    match expr:
        case ir.Sym(name=name) if name in values:
            return values[name]
        case ir.Op(fn=fn, args=args):
            return op(fn, *(substitute(arg, values) for arg in args))
        case ir.Place():
            return ir.Place(expr.role, expr.axis, substitute(expr.base, values))
        case ir.Element():
            return ir.Element(expr.tensor, tuple(substitute(i, values) for i in expr.indices))
        case _:
            return expr


def op(fn: str, *args: ir.Expr) -> ir.Expr:
    """An operation, simplified where that is exact: on integers, and the neutral elements."""
    if all(isinstance(a, ir.Const) and isinstance(a.value, int) for a in args) and fn != "div":
        try:
            value = evaluate(ir.Op(fn, args), {})
        except (ValueError, ZeroDivisionError):
            return ir.Op(fn, args)
        return ir.Const(value) if isinstance(value, int) else ir.Op(fn, args)
    zero, one = ir.Const(0), ir.Const(1)
    match fn, args:
        case ("add", (x, y)) if y == zero:
            return x
        case ("add", (x, y)) if x == zero:
            return y
        case ("sub", (x, y)) if y == zero:
            return x
        case ("mul", (x, y)) if zero in (x, y) and not any(
            isinstance(p, ir.Ref) for a in args for p in ir.walk(a)
        ):
            return zero
        case ("mul" | "floordiv" | "ceildiv" | "div", (x, y)) if y == one:
            return x
        case ("mul", (x, y)) if x == one:
            return y
    return ir.Op(fn, args)
