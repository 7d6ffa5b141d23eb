"""Owns the step from a written expression to a resolved one: index arithmetic, and values of tiles."""

from __future__ import annotations

import math
from collections.abc import Callable

from harness.tl import aliases, ir
from harness.tl import syntax as s
from harness.tl.evaluate import op
from harness.tl.scope import NOT_KNOWN, UNKNOWN, Axes, Scope
from harness.tl.shapes import Same
from harness.tl.syntax import Level, Pos

Shape = tuple[ir.Expr, ir.Expr]
ONE = ir.Const(1)
SCALAR: Shape = (ONE, ONE)
NAUGHT = ir.Const(0)  # what an expression in error stands for, so that the search for errors goes on
_ARITHMETIC = {"+": "add", "-": "sub", "*": "mul", "//": "floordiv", "%": "mod", "**": "pow"}
_COMPARE = {"<": "lt", "<=": "le", ">": "gt", ">=": "ge", "==": "eq", "!=": "ne"}
_CEILING = frozenset("cdiv ceil_div ceildiv div_up".split())
_REDUCED = frozenset({"RowMax", "RowSum", "Max", "Sum"})


class Expressions:
    """Resolves expressions of one kernel. `hoist` gives a tile that holds a row reduction or a product."""

    def __init__(self, scope: Scope, hoist: Callable[[str, tuple[s.Expr, ...], Pos], ir.Tile | None]) -> None:
        self.scope = scope
        self._hoist = hoist

    # --- index arithmetic ---

    def index(self, expr: s.Expr, length: str = "seq_k") -> ir.Expr:
        """A shape, bound, offset, coordinate or condition; `/` is floor division."""
        scope = self.scope
        match expr:
            case s.Num(value=value):
                if isinstance(value, float) and not value.is_integer():
                    scope.report("TL007", expr.pos, f"{value} is no whole number")
                return ir.Const(int(value))
            case s.Name(id=name):
                if name in scope.lets:
                    return self.index(scope.lets[name], length)
                found = scope.symbol(name, expr.pos, length)
                if found is None and scope.sketch:
                    return UNKNOWN  # a sketch needs no sizes
                if found is None:
                    self._unknown(name, expr.pos)
                return found or NAUGHT
            case s.Unary(op="not", x=x):
                return op("not", self.index(x, length))
            case s.Unary(x=x):
                return op("neg", self.index(x, length))
            case s.Binary(op="/", left=left, right=right):
                return op("floordiv", self.index(left, length), self.index(right, length))
            case s.Binary(op="and" | "or" as fn, left=left, right=right):
                return op(fn, self.index(left, length), self.index(right, length))
            case s.Binary(op=fn, left=left, right=right) if fn in _ARITHMETIC:
                return op(_ARITHMETIC[fn], self.index(left, length), self.index(right, length))
            case s.Compare():
                return self._chain(expr, [self.index(x, length) for x in expr.operands])
            case s.Call():
                return self._index_call(expr, length)
        scope.report(
            "TL007", expr.pos, "this is no index arithmetic", "write it with sizes, indices and + - * /"
        )
        return NAUGHT

    def _index_call(self, expr: s.Call, length: str) -> ir.Expr:
        fn, args = expr.fn.lower(), expr.args
        if fn == "ceil" and len(args) == 1:
            (x,) = args
            if isinstance(x, s.Binary) and x.op == "/":
                return op("ceildiv", self.index(x.left, length), self.index(x.right, length))
            return self.index(x, length)
        if fn in _CEILING and len(args) == 2:
            return op("ceildiv", self.index(args[0], length), self.index(args[1], length))
        if fn in ("floor", "int") and len(args) == 1:
            return self.index(args[0], length)
        if fn in ("min", "max", "minimum", "maximum") and args:
            values = [self.index(x, length) for x in args]
            return values[0] if len(values) == 1 else op(fn[:3], *values)
        if fn == "abs" and len(args) == 1:
            return op("abs", self.index(args[0], length))
        self.scope.report("TL007", expr.pos, f"`{expr.fn}` is no function of index arithmetic",
                          "there are ceil, floor, min, max, abs")  # fmt: skip
        return NAUGHT

    def _chain(self, expr: s.Compare, values: list[ir.Expr]) -> ir.Expr:
        links = [op(_COMPARE[o], a, b) for o, a, b in zip(expr.ops, values[:-1], values[1:], strict=True)]
        return links[0] if len(links) == 1 else ir.Op("and", tuple(links))

    def _unknown(self, name: str, pos: Pos) -> None:
        if self.scope.sketch:
            return  # a sketch may name a size that only the code will compute
        near = aliases.nearest(name, self.scope.known_names())
        self.scope.report("TL105", pos, f"nothing is called `{name}` here", near)

    # --- values ---

    def value(self, expr: s.Expr, axes: Axes | None = None, masking: bool = False) -> tuple[ir.Expr, Shape]:
        """An element-wise expression with its shape; `axes`: where its rows and columns come from."""
        return self._value(expr, self.axes_of(expr) if axes is None else axes, masking)

    def axes_of(self, expr: s.Expr) -> Axes:
        """Where rows and columns of an expression come from: as for the tiles in it."""
        rows: ir.Axis | None = None
        cols: ir.Axis | None = None
        for part in s.walk(expr):
            tile = self.scope.tile(part.id) if isinstance(part, s.Name) else None
            if tile is not None:
                axes = self.scope.content(tile).axes
                rows, cols = rows or axes[0], cols or axes[1]
        return rows, cols

    def layout_of(self, expr: s.Expr) -> str:
        """The register layout an element-wise result has: that of the matrix among its operands."""
        for part in s.walk(expr):
            tile = self.scope.tile(part.id) if isinstance(part, s.Name) else None
            if tile is not None and tile.shape[1] != ONE and self.scope.content(tile).layout:
                return self.scope.content(tile).layout
        return ""

    def _value(self, expr: s.Expr, axes: Axes, masking: bool) -> tuple[ir.Expr, Shape]:
        match expr:
            case s.Num(value=value):
                return ir.Const(value), SCALAR
            case s.Name():
                return self._name(expr, axes, masking)
            case s.Unary(op="-", x=x):
                inner, shape = self._value(x, axes, masking)
                if isinstance(inner, ir.Const):
                    return ir.Const(-inner.value), SCALAR
                return ir.Op("neg", (inner,)), shape
            case s.Unary(x=x):
                inner, shape = self._value(x, axes, masking)
                return ir.Op("not", (inner,)), shape
            case s.Binary(op="@", left=left, right=right):
                tile = self._hoist("GEMM", (left, right), expr.pos)
                return (ir.Ref(tile), tile.shape) if tile is not None else (NAUGHT, SCALAR)
            case s.Binary(op=fn, left=left, right=right):
                name = {"/": "div", "and": "and", "or": "or"}.get(fn) or _ARITHMETIC[fn]
                return self._apply(name, (left, right), axes, masking, expr.pos)
            case s.Compare():
                parts = [self._value(x, axes, masking) for x in expr.operands]
                return self._chain(expr, [p[0] for p in parts]), self.joint([p[1] for p in parts], expr.pos)
            case s.Call():
                return self._call(expr, axes, masking)
            case s.Index(base=s.Name(id=name), subscripts=subscripts) if self._tensor(name) is not None:
                indices = tuple(NAUGHT if isinstance(x, s.Slice) else self.index(x) for x in subscripts)
                return ir.Element(str(self._tensor(name)), indices), SCALAR
        self.scope.report("TL007", expr.pos, "this has no value element by element",
                          "transposes and slices belong to the operands of a GEMM")  # fmt: skip
        return NAUGHT, SCALAR

    def _apply(
        self, fn: str, args: tuple[s.Expr, ...], axes: Axes, masking: bool, pos: Pos
    ) -> tuple[ir.Expr, Shape]:
        parts = [self._value(x, axes, masking) for x in args]
        shape = self.joint([p[1] for p in parts], pos)
        values = tuple(p[0] for p in parts)
        if any(isinstance(v, ir.Const) and not isinstance(v.value, int) for v in values) or fn == "div":
            return ir.Op(fn, values), shape
        return op(fn, *values), shape

    def _call(self, expr: s.Call, axes: Axes, masking: bool) -> tuple[ir.Expr, Shape]:
        word, args, pos = expr.fn, expr.args, expr.pos
        if word.lower() == "float" and len(args) == 1:
            return self._value(args[0], axes, masking)
        named = aliases.operation(word)
        if named in _REDUCED and len(args) == 1:
            tile = self._hoist("RowMax" if "Max" in named else "RowSum", args, pos)
            return (ir.Ref(tile), tile.shape) if tile is not None else (NAUGHT, SCALAR)
        if named == "GEMM" and len(args) == 2:
            tile = self._hoist("GEMM", args, pos)
            return (ir.Ref(tile), tile.shape) if tile is not None else (NAUGHT, SCALAR)
        fn = aliases.FUNCTIONS.get(word.lower())
        if fn is None and named in aliases.ELEMENTWISE:
            fn = aliases.ELEMENTWISE[named][0]
        if fn is None and word.lower() in aliases.DTYPES and len(args) == 1:
            fn = f"cast_{aliases.DTYPES[word.lower()]}"
        if fn is None:
            near = aliases.nearest(word, (*aliases.FUNCTIONS, *map(str.lower, aliases.ELEMENTWISE)))
            self.scope.report("TL006", pos, f"there is no function `{word}`", near)
            return NAUGHT, SCALAR
        return self._apply(fn, args, axes, masking, pos)

    def _name(self, expr: s.Name, axes: Axes, masking: bool) -> tuple[ir.Expr, Shape]:
        scope, name, pos, word = self.scope, expr.id, expr.pos, expr.id.lower()
        tile = scope.tile(name)
        position = (
            "seq_q" if word in aliases.QUERY_POSITIONS else "seq_k" if word in aliases.KEY_POSITIONS else ""
        )
        matrix = scope.matrix(name) if name != word else None
        if (
            position
            and (masking or (tile is None and matrix is None))
            and name not in (*scope.loops, *scope.grid, *scope.lets)
        ):
            if word not in ("q", "k"):
                scope.note("TL004", pos, name, f"is read as `{position[-1]}`, the position")
            return self._position(position, axes, pos)
        if tile is not None:
            return ir.Ref(self.read(tile, pos)), tile.shape
        if name in scope.lets:
            return self._value(scope.lets[name], axes, masking)
        if word in aliases.INFINITIES:
            return ir.Const(math.inf), SCALAR
        if word in aliases.NEGATIVE_INFINITIES:
            return ir.Const(-math.inf), SCALAR
        if word in aliases.CONSTANTS:
            return ir.Const(aliases.CONSTANTS[word]), SCALAR
        matrix = scope.matrix(name)
        if matrix is not None:
            scope.report("TL301", pos, f"`{name}` is in global memory; Compute works on tiles",
                         f"Copy {name} ... from global to shared first")  # fmt: skip
            return NAUGHT, SCALAR
        if name in ("b", "h"):
            known = scope.grid_of("batch" if name == "b" else "heads")
            if known is not None:
                return known, SCALAR
        symbol = scope.symbol(name, pos, "seq_k")
        if symbol is None:
            near = aliases.nearest(name, scope.known_names())
            scope.report("TL101", pos, f"nothing called `{name}` was made before this", near)
            return NAUGHT, SCALAR
        return symbol, SCALAR

    def _position(self, role: str, axes: Axes, pos: Pos) -> tuple[ir.Expr, Shape]:
        for at, axis in enumerate(axes):
            if axis is not None and axis.role == role:
                shape = (UNKNOWN, ONE) if at == 0 else (ONE, UNKNOWN)
                return ir.Place(role, 0 if at == 0 else 1, axis.base), shape
        if not self.scope.sketch:
            moved = NOT_KNOWN in axes
            why = "differ from one way through the program to another" if moved else "come from no sequence"
            self.scope.report(
                "TL207", pos, f"the {'query' if role == 'seq_q' else 'key'} positions here {why}"
            )
        return NAUGHT, SCALAR

    def read(self, tile: ir.Tile, pos: Pos) -> ir.Tile:
        """The tile, which must hold something by now."""
        scope = self.scope
        scope.used.add(tile)
        if not scope.content(tile).held and not scope.sketch:
            scope.report("TL107", pos, f"`{tile.name}` in {tile.level} holds nothing yet",
                         "give it `init`, Fill it, or compute it before it is read")  # fmt: skip
            scope.hold(tile)  # say so once
        return tile

    def joint(self, shapes: list[Shape], pos: Pos) -> Shape:
        """What the shapes broadcast to; a mismatch is reported."""
        result = list(SCALAR)
        for shape in shapes:
            for at in (0, 1):
                size = shape[at]
                if result[at] in (ONE, UNKNOWN):
                    result[at] = size if result[at] == ONE or size != ONE else result[at]
                elif size != ONE:
                    self.fit(size, result[at], pos, "TL202", "rows" if at == 0 else "columns")
        return result[0], result[1]

    def fit(self, a: ir.Expr, b: ir.Expr, pos: Pos, code: str, what: str, fix: str = "") -> bool:
        """Whether two sizes agree; reports where they do not, or only do for some shapes."""
        match self.scope.same(a, b):
            case Same.ALWAYS:
                return True
            case Same.SOMETIMES:
                self.scope.report(
                    "TL206", pos, f"{show(a)} {what} and {show(b)} agree only for some shapes of the task"
                )
                return True
            case Same.NEVER:
                self.scope.report(code, pos, f"{show(a)} {what} meet {show(b)}", fix)
                return False

    def _tensor(self, name: str) -> str | None:
        """The task tensor of that name, if it is one that is not used as a matrix."""
        known = [t.name for t in self.scope.task.tensors if t.name.lower() == name.lower()]
        return known[0] if known and self.scope.tile(name, Level.REGISTER) is None else None


_INFIX = {"add": "+", "sub": "-", "mul": "*", "floordiv": "/", "mod": "%", "div": "/"}


def show(expr: ir.Expr) -> str:
    """An index expression as a person would write it."""
    match expr:
        case ir.Const(value=value):
            return str(value)
        case ir.Sym(name=name):
            return name
        case ir.Op(fn="ceildiv", args=(a, b)):
            return f"ceil({show(a)} / {show(b)})"
        case ir.Op(fn=fn, args=args) if fn in _INFIX:
            return f" {_INFIX[fn]} ".join(f"({show(a)})" if isinstance(a, ir.Op) else show(a) for a in args)
        case ir.Op(fn=fn, args=args):
            return f"{fn}({', '.join(map(show, args))})"
    return "?"
