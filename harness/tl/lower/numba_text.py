"""Owns how a resolved expression is written in Python that Numba compiles: types, names, operators."""

from __future__ import annotations

import builtins
import keyword
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import Enum

from harness.tl import ir
from harness.tl.aliases import DTYPES

ATOM, PRODUCT, SUM, COMPARISON, CHOICE = 5, 4, 3, 2, 0


class Kind(Enum):
    """What a scalar is in the generated code: int64, float32 or a truth value."""

    INT = "int"
    FLOAT = "float"
    BOOL = "bool"


@dataclass(frozen=True, slots=True)
class Text:
    """A Python expression, its kind, and how tightly it binds."""

    code: str
    kind: Kind
    binding: int = ATOM
    uses: frozenset[str] = frozenset()  # functions of `numba_ops` in it

    def inside(self, binding: int) -> str:
        """The code, in parentheses where something that binds so tightly would tear it apart."""
        return self.code if self.binding >= binding else f"({self.code})"


class NoText(ValueError):
    """An expression for which there is no code; the caller knows the statement."""


class Names:
    """Python identifiers for what a program names: unique, no keywords, nothing the generated code uses."""

    def __init__(self, reserved: Collection[str] = ()) -> None:
        self._taken = {*keyword.kwlist, *dir(builtins), "np", *reserved}
        self._known: dict[tuple[str, str], str] = {}

    def __call__(self, kind: str, name: str) -> str:
        """The identifier for a thing of that kind ("symbol", "tile", "tensor", ...) and name."""
        if (kind, name) not in self._known:
            self._known[kind, name] = self.fresh(name)
        return self._known[kind, name]

    def fresh(self, name: str) -> str:
        """An identifier like the name that nothing else has."""
        base = "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in name)
        if not base or base[0].isdigit():
            base = f"_{base}"
        while base in self._taken:
            base += "_"
        self._taken.add(base)
        return base


_OPERATORS = {
    "add": ("+", SUM),
    "mul": ("*", PRODUCT),
    "sub": ("-", SUM),
    "floordiv": ("//", PRODUCT),
    "mod": ("%", PRODUCT),
}
_COMPARISONS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
_FUNCTIONS = {"exp": "exp", "exp2": "exp2", "tanh": "tanh", "sigmoid": "sigmoid"}
_NUMPY = {"log": "np.log", "log2": "np.log2", "sqrt": "np.sqrt"}
CASTS = {"fp16": "round_fp16", "bf16": "round_bf16", "fp32": "", "operand": "", "fp64": ""}


@dataclass(frozen=True, slots=True)
class Writer:
    """Writes expressions of one place of a kernel.

    `symbol` and `element` give the code of a scalar and of a tensor's element; `tile` and `place`
    that of the element of a tile or the position that the surrounding loops stand at (None where
    there are none: a scalar).
    """

    symbol: Callable[[str], Text]
    element: Callable[[str, tuple[Text, ...]], Text]
    tile: Callable[[ir.Tile], str] | None = None
    offsets: Mapping[int, str] | None = None  # axis -> loop variable

    def write(self, expr: ir.Expr) -> Text:
        """The code; raises NoText."""
        match expr:
            case ir.Const(value=value):
                return _number(value)
            case ir.Sym(name=name):
                return self.symbol(name)
            case ir.Ref(tile=tile):
                if self.tile is None:
                    raise NoText(f"the tile {tile.name} is no scalar")
                return Text(self.tile(tile), Kind.FLOAT)
            case ir.Place(axis=axis, base=base):
                if self.offsets is None:
                    raise NoText("positions of a tile are no scalar")
                first, offset = self.write(base), self.offsets[axis]
                if offset == "0":
                    return first
                return Text(f"{first.inside(SUM)} + {offset}", Kind.INT, SUM, first.uses)
            case ir.Element(tensor=tensor, indices=indices):
                return self.element(tensor, tuple(self.write(index) for index in indices))
            case ir.Op(fn=fn, args=args):
                return self._op(fn, [self.write(arg) for arg in args])

    def index(self, expr: ir.Expr) -> str:
        """The code of a whole number; raises NoText where the expression is none."""
        text = self.write(expr)
        if text.kind is not Kind.INT:
            raise NoText(f"`{text.code}` is no whole number")
        return text.code

    def value(self, expr: ir.Expr) -> Text:
        """The code of a float32."""
        return as_float(self.write(expr))

    def condition(self, expr: ir.Expr) -> Text:
        """The code of a truth value."""
        return as_bool(self.write(expr))

    def _op(self, fn: str, args: list[Text]) -> Text:
        uses = frozenset(name for arg in args for name in arg.uses)
        if fn.startswith("cast_"):
            word = fn.removeprefix("cast_")
            name = DTYPES.get(word, word)
            if name not in CASTS:
                raise NoText(f"values cannot be rounded to {word}")
            return _call(CASTS[name], (as_float(args[0]),), uses) if CASTS[name] else as_float(args[0])
        if fn in ("and", "or"):
            sign = " & " if fn == "and" else " | "
            joined = sign.join(f"({as_bool(arg).code})" for arg in args)
            return Text(joined, Kind.BOOL, COMPARISON, uses)
        if fn == "not":
            return Text(f"not ({as_bool(args[0]).code})", Kind.BOOL, CHOICE, uses)
        args = [_number_of(arg) for arg in args] if fn != "where" else args
        whole = all(arg.kind is Kind.INT for arg in args)
        if fn == "where":
            return _where(args, uses)
        if fn in ("max", "min"):
            return _extreme(fn, args, uses, whole)
        if fn == "ceildiv":
            return Text(f"-(-{args[0].inside(ATOM)} // {args[1].inside(ATOM)})", Kind.INT, PRODUCT, uses)
        if not whole:
            args = [as_float(arg) for arg in args]
        if fn == "sub" and not whole and not _finite(args[1]):
            return _call("subtract", args, uses)
        if fn in _OPERATORS:
            sign, binding = _OPERATORS[fn]
            code = args[0].inside(binding)
            for arg in args[1:]:
                code += f" {sign} {arg.inside(binding + 1)}"
            return Text(code, Kind.INT if whole else Kind.FLOAT, binding, uses)
        if fn in _COMPARISONS:
            a, b = (arg.inside(SUM) for arg in args)
            return Text(f"{a} {_COMPARISONS[fn]} {b}", Kind.BOOL, COMPARISON, uses)
        return _function(fn, args, uses, whole)


def _function(fn: str, args: list[Text], uses: frozenset[str], whole: bool) -> Text:
    kind = Kind.INT if whole else Kind.FLOAT
    match fn:
        case "neg":
            return Text(f"-{args[0].inside(ATOM)}", kind, PRODUCT, uses)
        case "abs":
            return Text(f"abs({args[0].code})", kind, ATOM, uses)
        case "floor":
            return args[0] if whole else Text(f"np.floor({args[0].code})", Kind.FLOAT, ATOM, uses)
        case "pow" if whole and args[1].code.isdigit():
            return Text(f"{args[0].inside(ATOM)} ** {args[1].code}", Kind.INT, PRODUCT, uses)
    args = [as_float(arg) for arg in args]
    code = args[0].code
    if fn == "pow":
        return Text(f"{args[0].inside(ATOM)} ** {args[1].inside(ATOM)}", Kind.FLOAT, PRODUCT, uses)
    if fn == "div":
        return _call("divide", args, uses)
    if fn == "reciprocal":
        return _call("divide", (Text("np.float32(1.0)", Kind.FLOAT), args[0]), uses)
    if fn == "rsqrt":
        return Text(f"np.float32(1.0) / np.sqrt({code})", Kind.FLOAT, PRODUCT, uses)
    if fn == "relu":
        return _call("larger", (args[0], Text("np.float32(0.0)", Kind.FLOAT)), uses)
    if fn in _FUNCTIONS:
        return _call(_FUNCTIONS[fn], args, uses)
    if fn in _NUMPY:
        return Text(f"{_NUMPY[fn]}({code})", Kind.FLOAT, ATOM, uses)
    raise NoText(f"there is no code for the operation {fn}")


def as_float(text: Text) -> Text:
    """The same value as a float32."""
    if text.kind is Kind.FLOAT:
        return text
    if text.kind is Kind.BOOL:
        return Text(f"np.float32({text.code})", Kind.FLOAT, ATOM, text.uses)
    digits = text.code.removeprefix("-")
    if digits.isdigit():
        return Text(f"np.float32({float(int(text.code))!r})", Kind.FLOAT, ATOM, text.uses)
    # through 32 bits, which a loop over positions can be vectorised with
    return Text(f"np.float32(np.int32({text.code}))", Kind.FLOAT, ATOM, text.uses)


def as_bool(text: Text) -> Text:
    """Whether it holds: a number does where it is not 0."""
    return (
        text if text.kind is Kind.BOOL else Text(f"{text.inside(SUM)} != 0", Kind.BOOL, COMPARISON, text.uses)
    )


def _number_of(text: Text) -> Text:
    """A truth value as 0 or 1, anything else as it is."""
    return Text(f"np.int64({text.code})", Kind.INT, ATOM, text.uses) if text.kind is Kind.BOOL else text


def _number(value: int | float) -> Text:
    if isinstance(value, bool):
        return Text(str(value), Kind.BOOL)
    if isinstance(value, int):
        return Text(str(value), Kind.INT, ATOM if value >= 0 else PRODUCT)
    if math.isinf(value):
        infinity = Text("NEG_INF", Kind.FLOAT, ATOM, frozenset({"NEG_INF"}))
        return infinity if value < 0 else Text("-NEG_INF", Kind.FLOAT, PRODUCT, infinity.uses)
    return Text(f"np.float32({value!r})", Kind.FLOAT)


def _finite(text: Text) -> bool:
    """Whether the code is certainly not -inf: a number or a position."""
    return text.code.startswith("np.float32(") and text.binding == ATOM


def _where(args: list[Text], uses: frozenset[str]) -> Text:
    condition, a, b = as_bool(args[0]), _number_of(args[1]), _number_of(args[2])
    if a.kind is Kind.INT and b.kind is Kind.INT:
        code = f"{a.inside(COMPARISON)} if {condition.code} else {b.inside(COMPARISON)}"
        return Text(code, Kind.INT, CHOICE, uses)
    return _call("choose", (condition, as_float(a), as_float(b)), uses)


def _extreme(fn: str, args: list[Text], uses: frozenset[str], whole: bool) -> Text:
    if whole:
        if len(args) == 1:
            return args[0]
        return Text(f"{fn}({', '.join(arg.code for arg in args)})", Kind.INT, ATOM, uses)
    result = as_float(args[0])
    for arg in args[1:]:
        result = _call("larger" if fn == "max" else "smaller", (result, as_float(arg)), uses)
    return result


def _call(name: str, args: Collection[Text], uses: frozenset[str]) -> Text:
    return Text(f"{name}({', '.join(arg.code for arg in args)})", Kind.FLOAT, ATOM, uses | {name})
