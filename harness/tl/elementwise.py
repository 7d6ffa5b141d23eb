"""Owns the value of every expression of a resolved program: index arithmetic and element-wise arithmetic.

A value is a Python number where it is the same for all grid points and elements, else a tensor of
three axes (grid points, rows, columns), each of size 1 where it does not vary along that axis.
Integers stay exact (int64); everything else is float32. Three rules make rows without a key come
out as zeros: sub(x, y) is x where y is -inf, so exp(-inf - -inf) is 0; div(x, y) is 0 where y is 0;
reciprocal(0) is 0. max and min propagate NaN.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import partial, reduce
from typing import Any, Protocol

import torch
from torch import Tensor

from harness.tl import ir
from harness.tl.aliases import DTYPES
from harness.tl.counts import Meter

Value = int | float | Tensor
INF = float("inf")

_TORCH = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
    "fp64": torch.float64,
    "fp8": torch.float8_e4m3fn,
    "int32": torch.int32,
    "int64": torch.int64,
}


class Fault(ValueError):
    """What is wrong, before it is known which statement is to blame."""


class Scope(Protocol):
    """What an expression may see: grid points evaluated together, scalars, tiles, task tensors."""

    points: int
    operand: torch.dtype
    meter: Meter

    @property
    def symbols(self) -> Mapping[str, Value]: ...
    def read(self, tile: ir.Tile) -> Tensor: ...
    def element(self, tensor: str, indices: tuple[Value, ...]) -> Value: ...


def torch_dtype(name: str) -> torch.dtype:
    """The dtype of that name, aliases such as half and f32 too."""
    try:
        return _TORCH[DTYPES.get(name.lower(), name)]
    except KeyError:
        raise Fault(f"values of dtype {name!r} are not known here; known are {', '.join(_TORCH)}") from None


def rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The values as that dtype holds them, as float32 again."""
    return values.to(dtype).to(torch.float32)


def integer(value: Value, what: str) -> int | Tensor:
    """The value, which must be a whole number (of each grid point)."""
    if isinstance(value, Tensor):
        if value.dtype == torch.int64:
            return value
    elif isinstance(value, int):
        return int(value)
    raise Fault(f"{what} is not an integer")


def evaluate(expr: ir.Expr, scope: Scope, shape: tuple[int, int] | None = None) -> Value:
    """The value of the expression; `shape` (rows, columns) is what positions run over, if there is one."""
    match expr:
        case ir.Const(value=value):
            return value
        case ir.Sym(name=name):
            try:
                return scope.symbols[name]
            except KeyError:
                raise Fault(f"`{name}` has no value here") from None
        case ir.Ref(tile=tile):
            return scope.read(tile)
        case ir.Place(axis=axis):
            if shape is None:
                raise Fault("positions of a tile are no scalar")
            along = torch.arange(shape[axis]).view((1, -1, 1) if axis == 0 else (1, 1, -1))
            return along + integer(evaluate(expr.base, scope), f"the first position along {expr.role}")
        case ir.Element(tensor=tensor, indices=indices):
            return scope.element(tensor, tuple(evaluate(i, scope, shape) for i in indices))
        case ir.Op(fn=fn, args=args):
            values = [evaluate(arg, scope, shape) for arg in args]
            _check_shapes(fn, values)
            return _apply(fn, values, scope)
    raise Fault(f"{expr!r} is no expression")


def _check_shapes(fn: str, values: list[Value]) -> None:
    shapes = [v.shape for v in values if isinstance(v, Tensor)]
    if any(len({size for size in sizes if size != 1}) > 1 for sizes in zip(*shapes, strict=True)):
        text = " and ".join(f"({s[1]}, {s[2]})" for s in shapes)
        raise Fault(f"{fn} of tiles whose shapes do not fit: {text}")


def _apply(fn: str, values: list[Value], scope: Scope) -> Value:
    if fn.startswith("cast_") and len(values) == 1:
        name = fn.removeprefix("cast_")
        return _cast(values[0], scope.operand if name == "operand" else torch_dtype(name))
    if fn in ("exp", "exp2"):
        rows, columns = values[0].shape[1:] if isinstance(values[0], Tensor) else (1, 1)
        scope.meter.exponentials += scope.points * rows * columns
    if fn in _FOLDED and values:
        return reduce(_FOLDED[fn], values) if len(values) > 1 else values[0]
    known = _FIXED.get(fn)
    if known is None or len(values) != known[0]:
        raise Fault(f"there is no operation {fn} of {len(values)} operands")
    result: Value = known[1](*values)
    return result


def _number(x: Value) -> Value:
    """A truth value as 0 or 1, anything else as it is."""
    if isinstance(x, Tensor):
        return x.to(torch.int64) if x.dtype == torch.bool else x
    return int(x) if isinstance(x, bool) else x


def _tensor(x: Value) -> Tensor:
    """As a tensor: float32 unless whole numbers."""
    if isinstance(x, Tensor):
        return x
    return torch.full((1, 1, 1), x, dtype=torch.float32 if isinstance(x, float) else torch.int64)


def _float(x: Value) -> Tensor:
    return _tensor(x).to(torch.float32)


def truth(x: Value) -> Tensor:
    """Whether it holds: a number does where it is not 0."""
    values = _tensor(x)
    return values if values.dtype == torch.bool else values != 0


def _cast(x: Value, dtype: torch.dtype) -> Value:
    result = rounded(_float(x), dtype)
    return result if isinstance(x, Tensor) else float(result)


def subtract(x: Tensor, y: Tensor) -> Tensor:
    """x - y, but x where y is -inf."""
    return x - y.masked_fill(y == -INF, 0) if y.is_floating_point() else x - y


def _subtract(x: Value, y: Value) -> Value:
    x, y = _number(x), _number(y)
    if isinstance(y, Tensor):
        return subtract(_tensor(x), y)
    return x if y == -INF else x - y


def _divide(x: Value, y: Value) -> Value:
    x, y = _number(x), _number(y)
    if isinstance(y, Tensor):
        return (x / y).masked_fill(y == 0, 0)
    if y == 0:
        return torch.zeros_like(x, dtype=torch.float32) if isinstance(x, Tensor) else 0.0
    return x / y


def _whole_division(divide: Callable[[Any, Any], Any], x: Value, y: Value) -> Value:
    x, y = _number(x), _number(y)
    if bool((y == 0).any()) if isinstance(y, Tensor) else y == 0:
        raise Fault("integer division by zero")
    result: Value = divide(x, y)
    return result


def _power(x: Value, y: Value) -> Value:
    x, y = _number(x), _number(y)
    if isinstance(y, int) and y >= 0:
        return x**y
    return torch.pow(_float(x), _float(y))


def _extreme(
    choose: Callable[[Tensor, Tensor], Tensor], scalar: Callable[..., Any], x: Value, y: Value
) -> Value:
    x, y = _number(x), _number(y)
    if isinstance(x, Tensor) or isinstance(y, Tensor):
        return choose(_tensor(x), _tensor(y))
    result: Value = x if x != x else y if y != y else scalar(x, y)
    return result


def _arithmetic(function: Callable[[Any, Any], Any], x: Value, y: Value) -> Value:
    result: Value = function(_number(x), _number(y))
    return result


def _logic(function: Callable[[Any, Any], Any], x: Value, y: Value) -> Value:
    if isinstance(x, Tensor) or isinstance(y, Tensor):
        result: Value = function(truth(x), truth(y))
        return result
    return bool(function(bool(x), bool(y)))


def _not(x: Value) -> Value:
    return ~truth(x) if isinstance(x, Tensor) else not x


def _where(condition: Value, a: Value, b: Value) -> Value:
    if not isinstance(condition, Tensor):
        return a if condition else b
    return torch.where(truth(condition), _number(a), _number(b))


def _floor(x: Value) -> Value:
    return (
        torch.floor(x)
        if isinstance(x, Tensor) and x.is_floating_point()
        else x
        if isinstance(x, int | Tensor)
        else x // 1
    )


def _absolute(x: Value) -> Value:
    x = _number(x)
    return torch.abs(x) if isinstance(x, Tensor) else abs(x)


def _function(function: Callable[[Tensor], Tensor], x: Value) -> Value:
    return function(_float(x))


_FOLDED: dict[str, Callable[[Value, Value], Value]] = {
    "add": partial(_arithmetic, operator.add),
    "mul": partial(_arithmetic, operator.mul),
    "max": partial(_extreme, torch.maximum, max),
    "min": partial(_extreme, torch.minimum, min),
    "and": partial(_logic, operator.and_),
    "or": partial(_logic, operator.or_),
}
_FIXED: dict[str, tuple[int, Callable[..., Value]]] = {
    "sub": (2, _subtract),
    "div": (2, _divide),
    "floordiv": (2, partial(_whole_division, operator.floordiv)),
    "ceildiv": (2, partial(_whole_division, lambda x, y: -(-x // y))),
    "mod": (2, partial(_whole_division, operator.mod)),
    "pow": (2, _power),
    **{fn: (2, partial(_arithmetic, getattr(operator, fn))) for fn in ("lt", "le", "gt", "ge", "eq", "ne")},
    "where": (3, _where),
    "not": (1, _not),
    "neg": (1, lambda x: -_number(x)),
    "abs": (1, _absolute),
    "floor": (1, _floor),
    "reciprocal": (1, partial(_divide, 1.0)),
    **{
        fn: (1, partial(_function, getattr(torch, fn)))
        for fn in ("exp", "exp2", "log", "log2", "sqrt", "rsqrt", "tanh", "sigmoid", "relu")
    },
}
