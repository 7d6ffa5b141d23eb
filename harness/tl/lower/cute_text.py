"""Owns the C++ text of expressions: index arithmetic, and values of tiles element by element."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from harness.tl import ir
from harness.tl.lower.lowered import LowerError
from harness.tl.syntax import Statement

ONE = ir.Const(1)
ATOM, UNARY, PRODUCT, SUM, ORDER, EQUAL, AND, OR, CHOICE = 9, 8, 7, 6, 5, 4, 3, 2, 1
_INFIX = {
    "add": ("+", SUM),
    "sub": ("-", SUM),
    "mul": ("*", PRODUCT),
    "lt": ("<", ORDER),
    "le": ("<=", ORDER),
    "gt": (">", ORDER),
    "ge": (">=", ORDER),
    "eq": ("==", EQUAL),
    "ne": ("!=", EQUAL),
    "and": ("&&", AND),
    "or": ("||", OR),
}
_CASTS = {"cast_operand": "T", "cast_fp16": "half_t", "cast_bf16": "bfloat16_t", "cast_fp32": "float"}
# Functions of one number, by the name that `tile.cuh` or CUDA has for them.
_CALLS = {
    "abs": "fabsf",
    "log2": "log2_",
    "sqrt": "sqrtf",
    "rsqrt": "rsqrtf",
    "tanh": "tanh_",
    "sigmoid": "sigmoid",
    "reciprocal": "inverse",
    "floor": "floorf",
}


@dataclass(frozen=True, slots=True)
class Cpp:
    """A C++ expression and how tightly it binds."""

    code: str
    binding: int = ATOM

    def inside(self, binding: int) -> str:
        """The code, in parentheses where something that binds so tightly would tear it apart."""
        return self.code if self.binding >= binding else f"({self.code})"


def infix(sign: str, binding: int, parts: list[Cpp]) -> Cpp:
    """Operands joined by a sign; all but the first must bind more tightly: + and - group to the left."""
    first, *rest = parts
    more = binding if sign in ("&&", "||") else binding + 1
    text = f" {sign} ".join([first.inside(binding), *(p.inside(more) for p in rest)])
    return Cpp(text, binding)


def call(name: str, *parts: Cpp) -> Cpp:
    return Cpp(f"{name}({', '.join(p.code for p in parts)})")


def index(expr: ir.Expr) -> Cpp:
    """An integer expression; a quotient rounds down also below zero."""
    match expr:
        case ir.Const(value=value):
            return Cpp(str(int(value)), ATOM if value >= 0 else UNARY)
        case ir.Sym(name=name):
            return Cpp(name)
        case ir.Op(fn=fn, args=args) if fn in _INFIX:
            sign, binding = _INFIX[fn]
            return infix(sign, binding, [index(a) for a in args])
        case ir.Op(fn="floordiv", args=(a, b)):
            if natural(a):
                return infix("/", PRODUCT, [index(a), index(b)])
            return call("floor_div", index(a), index(b))
        case ir.Op(fn="ceildiv", args=(a, b)):
            return call("ceil_div", index(a), index(b))
        case ir.Op(fn="min" | "max" as fn, args=(first, *rest)):
            code = index(first)
            for arg in rest:
                code = call("least" if fn == "min" else "most", code, index(arg))
            return code
        case ir.Op(fn="mod", args=(a, b)):
            if natural(a):
                return infix("%", PRODUCT, [index(a), index(b)])
            part = infix("*", PRODUCT, [call("floor_div", index(a), index(b)), index(b)])
            return infix("-", SUM, [index(a), part])
        case ir.Op(fn="neg", args=(a,)):
            return Cpp(f"-{index(a).inside(UNARY)}", UNARY)
        case ir.Op(fn="not", args=(a,)):
            return Cpp(f"!{index(a).inside(UNARY)}", UNARY)
        case ir.Op(fn="abs", args=(a,)):
            return call("abs", index(a))
        case ir.Op(fn="where", args=(c, a, b)):
            return _choice(index(c), index(a), index(b))
    raise LowerError(f"{expr} is no index arithmetic")


def natural(expr: ir.Expr) -> bool:
    """Whether an index expression is never negative, sizes and indices being so."""
    match expr:
        case ir.Const(value=value):
            return value >= 0
        case ir.Sym():
            return True
        case ir.Op(fn="add" | "mul" | "floordiv" | "ceildiv" | "mod" | "min", args=args):
            return all(natural(a) for a in args)
        case ir.Op(fn="max", args=args):
            return any(natural(a) for a in args)
    return False


def number(value: float) -> Cpp:
    """A float literal; infinities by name."""
    if math.isinf(value):
        return Cpp("kInfinity") if value > 0 else Cpp("-kInfinity", UNARY)
    text = repr(float(value))
    return Cpp(f"{text}f", ATOM if value >= 0 else UNARY)


def _choice(c: Cpp, a: Cpp, b: Cpp) -> Cpp:
    return Cpp(f"{c.inside(OR)} ? {a.inside(OR)} : {b.inside(OR)}", CHOICE)


@dataclass
class Values:
    """Writes values in f32 as the body of `each` has them: element (mm, nn, ee) or, of a row, (mm, hh)."""

    element: Callable[[ir.Tile, bool], Cpp]  # a tile's element, in a context with columns or without
    place: Callable[[ir.Place, bool], Cpp]  # a position along an axis of the result
    minus_infinity: frozenset[ir.Tile]  # tiles that may hold -inf
    floats: frozenset[str]  # scalars that are no whole numbers
    pending: dict[ir.Tile, str] = field(default_factory=dict)  # factors still open on scores

    def value(self, expr: ir.Expr, wide: bool, source: Statement | None = None) -> Cpp:
        """`wide`: the result has columns. Raises LowerError."""
        match expr:
            case ir.Const(value=value):
                return number(value)
            case ir.Sym(name=name):
                return Cpp(name)
            case ir.Ref(tile=tile):
                return self.ref(tile, wide)
            case ir.Place():
                return self.place(expr, wide)
            case ir.Element():
                raise LowerError("single elements of a tensor have no CuTe code yet", source)
            case ir.Op(fn="exp" | "exp2" as fn, args=(x,)):
                return self._exponential(fn, x, wide, source)
            case ir.Op(fn="sub", args=(a, b)):
                return infix("-", SUM, [self.value(a, wide, source), self._finite(b, wide, source)])
            case ir.Op(fn="div", args=(a, b)):
                return self._quotient(a, b, wide, source)
            case ir.Op(fn=fn, args=args) if fn in _INFIX:
                sign, binding = _INFIX[fn]
                return infix(sign, binding, [self.value(a, wide, source) for a in args])
            case ir.Op(fn=fn, args=args):
                return self._call(fn, args, wide, source)
        raise LowerError("no value", source)

    def ref(self, tile: ir.Tile, wide: bool) -> Cpp:
        """A tile's element with the factor that is still open on it."""
        code = self.element(tile, wide)
        if tile in self.pending:
            return infix("*", PRODUCT, [code, Cpp(self.pending[tile])])
        return code

    def _finite(self, expr: ir.Expr, wide: bool, source: Statement | None) -> Cpp:
        """What is taken away: -inf counts as nothing, so that -inf - -inf stays -inf."""
        code = self.value(expr, wide, source)
        if any(isinstance(p, ir.Ref) and p.tile in self.minus_infinity for p in ir.walk(expr)):
            return call("finite", code)
        return code

    def _exponential(self, fn: str, x: ir.Expr, wide: bool, source: Statement | None) -> Cpp:
        """exp is exp2 of a product; of a difference, both sides take the factor and meet in one FMA."""
        if fn == "exp2":
            return call("exp2_", self.value(x, wide, source))
        log2 = Cpp("kLog2E")
        if not (isinstance(x, ir.Op) and x.fn == "sub"):
            return call("exp2_", infix("*", PRODUCT, [self.value(x, wide, source), log2]))
        a, b = x.args
        taken = infix("*", PRODUCT, [self._finite(b, wide, source), log2])
        if isinstance(a, ir.Ref) and a.tile in self.pending:
            factor = Cpp(f"({self.pending[a.tile]} * kLog2E)")
            left = infix("*", PRODUCT, [self.element(a.tile, wide), factor])
        else:
            left = infix("*", PRODUCT, [self.value(a, wide, source), log2])
        return call("exp2_", infix("-", SUM, [left, taken]))

    def _quotient(self, a: ir.Expr, b: ir.Expr, wide: bool, source: Statement | None) -> Cpp:
        """By a tile's value 0 gives 0; whole numbers divide as numbers do."""
        top, bottom = self.value(a, wide, source), self.value(b, wide, source)
        if ir.refs(b):
            return infix("*", PRODUCT, [top, call("inverse", bottom)])
        return infix("/", PRODUCT, [top, call("float", bottom)])

    def _call(self, fn: str, args: tuple[ir.Expr, ...], wide: bool, source: Statement | None) -> Cpp:
        parts = [self.value(a, wide, source) for a in args]
        x = parts[0]
        if fn in ("max", "min"):
            code = call("float", x)
            for part in parts[1:]:
                code = call(f"f{fn}f", code, call("float", part))
            return code if len(parts) > 1 else x
        if fn in _CALLS:
            return call(_CALLS[fn], x)
        if fn in _CASTS:
            return call(f"rounded<{_CASTS[fn]}>", x)
        match fn:
            case "neg":
                return Cpp(f"-{x.inside(UNARY)}", UNARY)
            case "not":
                return Cpp(f"!{x.inside(UNARY)}", UNARY)
            case "log":
                return infix("*", PRODUCT, [call("log2_", x), Cpp("0.6931471805599453f")])
            case "relu":
                return call("fmaxf", x, Cpp("0.f"))
            case "where":
                return _choice(*parts)
            case "pow":
                return self._power(x, args[1], parts[1])
            case "floordiv" | "ceildiv":
                quotient = infix("/", PRODUCT, [call("float", x), parts[1]])
                return call("floorf" if fn == "floordiv" else "ceilf", quotient)
            case "mod":
                floor = call("floorf", infix("/", PRODUCT, [call("float", x), parts[1]]))
                return infix("-", SUM, [x, infix("*", PRODUCT, [floor, parts[1]])])
        raise LowerError(f"there is no CuTe code for {fn}", source)

    def _power(self, base: Cpp, exponent: ir.Expr, code: Cpp) -> Cpp:
        known = exponent.value if isinstance(exponent, ir.Const) else None
        if known in (1, 2, 3):
            return infix("*", PRODUCT, [base] * int(known))
        if known == 0.5:
            return call("sqrtf", base)
        if known == -0.5:
            return call("rsqrtf", base)
        if known == -1:
            return call("inverse", base)
        return call("exp2_", infix("*", PRODUCT, [code, call("log2_", base)]))
