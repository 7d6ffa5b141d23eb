"""Owns the Triton text of expressions: index arithmetic, and values of tiles element by element."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from harness.tl import ir
from harness.tl.lower.lowered import LowerError
from harness.tl.syntax import Statement

ONE = ir.Const(1)
LOG2_E = "LOG2_E"
_INFIX = {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
    "eq": "==",
    "ne": "!=",
}
_DTYPES = {"fp16": "tl.float16", "bf16": "tl.bfloat16", "fp32": "tl.float32"}


@dataclass
class Values:
    """Writes expressions of one kernel, with parentheses to be safe: the layout drops what is too many."""

    names: dict[ir.Tile, str]  # each tile's variable
    block: Callable[[ir.Expr], str]  # the constexpr that holds a (padded) axis size
    minus_infinity: frozenset[ir.Tile]  # tiles that may hold -inf
    element: Callable[[ir.Element], str]
    operand_typed: set[ir.Tile] = field(default_factory=set)  # tiles in the element type of the inputs
    pending: dict[ir.Tile, str] = field(default_factory=dict)  # factors still open on scores
    stands_on: tuple[ir.Expr, ir.Expr] | None = None  # shape of the result, which positions run along
    renamed: Mapping[str, str] = field(default_factory=dict)  # loop variables that stand for another text

    # --- index arithmetic ---

    def index(self, expr: ir.Expr) -> str:
        """An integer expression; `/` rounds down also below zero."""
        match expr:
            case ir.Const(value=value):
                return str(int(value)) if value >= 0 else f"({int(value)})"
            case ir.Sym(name=name):
                return self.renamed.get(name, name)
            case ir.Op(fn=fn, args=args) if fn in _INFIX:
                parts = [self.index(a) for a in args]
                return f"({f' {_INFIX[fn]} '.join(parts)})"
            case ir.Op(fn="floordiv" | "ceildiv" as fn, args=(a, b)):
                if fn == "floordiv":
                    return (
                        f"({self.index(a)} // {self.index(b)})"
                        if _natural(a)
                        else f"floor_div({self.index(a)}, {self.index(b)})"
                    )
                call = "tl.cdiv" if _natural(a) else "ceil_div"
                return f"{call}({self.index(a)}, {self.index(b)})"
            case ir.Op(fn="min" | "max" as fn, args=(first, *rest)):
                text = self.index(first)
                for arg in rest:
                    text = f"tl.{fn}imum({text}, {self.index(arg)})"
                return text
            case ir.Op(fn="mod", args=(a, b)):
                if not _natural(a):
                    return (
                        f"({self.index(a)} - floor_div({self.index(a)}, {self.index(b)}) * {self.index(b)})"
                    )
                return f"({self.index(a)} % {self.index(b)})"
            case ir.Op(fn="neg", args=(a,)):
                return f"(-{self.index(a)})"
            case ir.Op(fn="and" | "or" as fn, args=args):
                return "(" + f" {'&' if fn == 'and' else '|'} ".join(self.index(a) for a in args) + ")"
            case ir.Op(fn="not", args=(a,)):
                return f"({self.index(a)} == 0)"
            case ir.Op(fn="abs", args=(a,)):
                return f"tl.abs({self.index(a)})"
            case ir.Op(fn="where", args=(c, a, b)):
                return f"tl.where({self.index(c)}, {self.index(a)}, {self.index(b)})"
        raise LowerError(f"{expr} is no index arithmetic")

    # --- values ---

    def value(self, expr: ir.Expr, wide: bool, source: Statement | None) -> str:
        """A value in f32; `wide`: the result has two axes, so vectors need a second one."""
        match expr:
            case ir.Const(value=value):
                return number(value)
            case ir.Sym(name=name):
                return self.renamed.get(name, name)
            case ir.Ref(tile=tile):
                return self.ref(tile, wide)
            case ir.Place():
                return self.place(expr, wide)
            case ir.Element():
                return self.element(expr)
            case ir.Op(fn="exp" | "exp2" as fn, args=(x,)):
                return self._exponential(fn, x, wide, source)
            case ir.Op(fn="sub", args=(a, b)):
                return f"({self.value(a, wide, source)} - {self._finite(b, wide, source)})"
            case ir.Op(fn="div", args=(a, b)):
                return self._quotient(a, b, wide, source)
            case ir.Op(fn=fn, args=args) if fn in _INFIX:
                return f"({f' {_INFIX[fn]} '.join(self.value(a, wide, source) for a in args)})"
            case ir.Op(fn=fn, args=args):
                return self._call(fn, args, wide, source)
        raise LowerError("no value", source)

    def ref(self, tile: ir.Tile, wide: bool) -> str:
        """A tile's value with what is still open on it, in f32."""
        text = self.names[tile]
        if tile in self.operand_typed:
            text = f"{text}.to(tl.float32)"
        if tile in self.pending:
            text = f"({text} * {self.pending[tile]})"
        if wide and tile.shape[1] == ONE:
            return f"{text}[:, None]"
        if wide and tile.shape[0] == ONE:
            return f"{text}[None, :]"
        return text

    def place(self, expr: ir.Place, wide: bool) -> str:
        """Positions along an axis of the result."""
        if self.stands_on is None:
            raise LowerError("positions need a tile to stand on")
        extent = self.stands_on[expr.axis]
        text = f"({self.index(expr.base)} + tl.arange(0, {self.block(extent)}))"
        if not wide:
            return text
        return f"{text}[:, None]" if expr.axis == 0 else f"{text}[None, :]"

    def _finite(self, expr: ir.Expr, wide: bool, source: Statement | None) -> str:
        """What is taken away: -inf counts as nothing, so that -inf - -inf stays -inf."""
        if isinstance(expr, ir.Ref) and expr.tile in self.minus_infinity:
            narrow = self.ref(expr.tile, False)
            text = f"finite({narrow})"
            if wide and ONE in expr.tile.shape:
                return f"{text}[:, None]" if expr.tile.shape[1] == ONE else f"{text}[None, :]"
            return text
        text = self.value(expr, wide, source)
        if any(isinstance(p, ir.Ref) and p.tile in self.minus_infinity for p in ir.walk(expr)):
            return f"finite({text})"
        return text

    def _exponential(self, fn: str, x: ir.Expr, wide: bool, source: Statement | None) -> str:
        """exp is exp2 of a product; of a difference, both sides take the factor and meet in one FMA."""
        factor = f" * {LOG2_E}" if fn == "exp" else ""
        if factor and isinstance(x, ir.Op) and x.fn == "sub":
            a, b = x.args
            taken = f"{self._finite(b, wide, source)}{factor}"
            if isinstance(a, ir.Ref) and a.tile in self.pending:
                scores = self.ref(a.tile, wide) if wide and ONE in a.tile.shape else self.names[a.tile]
                return f"tl.math.exp2({scores} * ({self.pending[a.tile]}{factor}) - {taken})"
            return f"tl.math.exp2({self.value(a, wide, source)}{factor} - {taken})"
        return f"tl.math.exp2({self.value(x, wide, source)}{factor})"

    def _quotient(self, a: ir.Expr, b: ir.Expr, wide: bool, source: Statement | None) -> str:
        if any(isinstance(p, ir.Ref) for p in ir.walk(b)):
            if isinstance(b, ir.Ref) and wide and ONE in b.tile.shape:
                at = "[:, None]" if b.tile.shape[1] == ONE else "[None, :]"
                return f"({self.value(a, wide, source)} * inverse({self.ref(b.tile, False)}){at})"
            return f"({self.value(a, wide, source)} * inverse({self.value(b, wide, source)}))"
        return f"({self.value(a, wide, source)} / {self.value(b, wide, source)})"

    def _call(self, fn: str, args: tuple[ir.Expr, ...], wide: bool, source: Statement | None) -> str:
        parts = [self.value(a, wide, source) for a in args]
        x = parts[0]
        if fn in ("max", "min"):
            text = parts[0]
            for part in parts[1:]:
                text = f"tl.{fn}imum({text}, {part})"
            return text
        if fn in ("and", "or"):
            return "(" + f" {'&' if fn == 'and' else '|'} ".join(parts) + ")"
        if fn == "pow":
            return _power(parts[0], args[1], parts[1])
        if fn.startswith("cast_"):
            dtype = "OPERAND" if fn == "cast_operand" else _DTYPES.get(fn.removeprefix("cast_"))
            if dtype is None:
                raise LowerError(f"Triton code for {fn.removeprefix('cast_')} is not written", source)
            return f"({parts[0]}).to({dtype}).to(tl.float32)"
        simple = {
            "neg": f"(-{parts[0]})",
            "not": f"(~{parts[0]})",
            "abs": f"tl.abs({x})",
            "log": f"(tl.math.log2({x}) * 0.6931471805599453)",
            "log2": f"tl.math.log2({x})",
            "sqrt": f"tl.sqrt({x})",
            "rsqrt": f"tl.math.rsqrt({x})",
            "tanh": f"tanh({x})",
            "sigmoid": f"(1.0 / (1.0 + tl.math.exp2({parts[0]} * (-{LOG2_E}))))",
            "relu": f"tl.maximum({x}, 0.0)",
            "reciprocal": f"inverse({x})",
            "floor": f"tl.floor({x})",
            "floordiv": f"tl.floor({parts[0]} / {parts[-1]})",
            "ceildiv": f"tl.ceil({parts[0]} / {parts[-1]})",
        }
        if fn == "where":
            return f"tl.where({x}, {parts[1]}, {parts[2]})"
        if fn == "mod":
            return f"({parts[0]} % {parts[1]})"
        if fn not in simple:
            raise LowerError(f"there is no Triton code for {fn}", source)
        return simple[fn]


def number(value: float) -> str:
    """A literal; infinities by name."""
    if value == math.inf:
        return 'float("inf")'
    if value == -math.inf:
        return 'float("-inf")'
    return repr(value) if value >= 0 else f"({value!r})"


def _power(base: str, exponent: ir.Expr, text: str) -> str:
    known = exponent.value if isinstance(exponent, ir.Const) else None
    if known in (1, 2, 3):
        return "(" + " * ".join([base] * int(known)) + ")"
    if known == 0.5:
        return f"tl.sqrt({base})"
    if known == -0.5:
        return f"tl.math.rsqrt({base})"
    if known == -1:
        return f"inverse({base})"
    return f"tl.math.exp2({text} * tl.math.log2({base}))"


def _natural(expr: ir.Expr) -> bool:
    """Whether an index expression is never negative, sizes and indices being so."""
    match expr:
        case ir.Const(value=value):
            return value >= 0
        case ir.Sym():
            return True
        case ir.Op(fn="add" | "mul" | "floordiv" | "ceildiv" | "mod" | "min", args=args):
            return all(_natural(a) for a in args)
        case ir.Op(fn="max", args=args):
            return any(_natural(a) for a in args)
    return False
