"""Owns turning the parser's tree into the syntax tree: one method for each rule of the grammar."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lark import Token, Tree

from harness.tl import syntax as s
from harness.tl.syntax import Expr, Level, Pos, Statement

_LEVELS = {"g": Level.GLOBAL, "s": Level.SHARED, "r": Level.REGISTER}
_COMPARISONS = {"≤": "<=", "≥": ">=", "≠": "!="}
# What parse.py puts in place of `#` or `//`: a comment after a statement, and one on a line of its own.
INLINE, ALONE = "\x02", "\x01"
# Deeper than any program needs, and shallow enough for everything that walks the tree recursively.
_DEEPEST = 60
_MOST_DIGITS = 18


class Unreadable(Exception):
    """What the grammar accepts and no program can mean."""

    def __init__(self, pos: Pos, message: str) -> None:
        super().__init__(message)
        self.pos, self.message = pos, message


class Builder:
    """Builds a program from lark's tree; `pos` maps an offset of the text to its position."""

    def __init__(self, pos: Callable[[int], Pos]) -> None:
        self._pos_of = pos
        self._depth = 0

    def program(self, tree: Tree[Token]) -> s.Program:
        kernels: list[s.Kernel] = []
        name, pos, body = None, Pos(1, 1), list[Statement]()
        for node in self._lines(tree.children):
            if isinstance(node, s.Kernel):
                if name is not None or any(not isinstance(x, s.Comment) for x in body):
                    kernels.append(s.Kernel(name, tuple(body), pos=pos))
                    body = []
                name, pos = node.name, node.pos
            else:
                body.append(node)
        kernels.append(s.Kernel(name, tuple(body), pos=pos))
        return s.Program(tuple(kernels))

    def _lines(self, nodes: list[Any]) -> list[Any]:
        """Statements with their comments between them."""
        return [self._comment(n) if isinstance(n, Token) else self.statement(n) for n in nodes]

    def _body(self, header: Tree[Token], body: Tree[Token]) -> tuple[Statement, ...]:
        first = [self._comment(token) for token in header.children]
        return (*first, *self._lines(body.children))

    def _comment(self, token: Any) -> s.Comment:
        return s.Comment(token[1:].lstrip("#/").strip(), token[0] == INLINE, pos=self._at(token))

    def _at(self, node: Any) -> Pos:
        while not isinstance(node, Token):
            node = node.children[0]
        return self._pos_of(node.start_pos or 0)

    def statement(self, node: Tree[Token]) -> Statement:
        """The statement; its first token is its keyword."""
        method: Callable[[list[Any]], Statement] = getattr(self, f"_{node.data}")
        pos = self._at(node)
        self._descend(pos)
        out = replace(method(node.children[1:]), pos=pos)
        self._depth -= 1
        return out

    def _descend(self, pos: Pos) -> None:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise Unreadable(pos, f"more than {_DEEPEST} levels of nesting")

    # --- statements ---

    def _kernel(self, parts: list[Any]) -> Any:
        return s.Kernel(str(parts[0]), ())

    def _let(self, parts: list[Any]) -> Statement:
        name, value = parts
        return s.Let(str(name), self.expr(value))

    def _tile(self, parts: list[Any]) -> Statement:
        def parameter(part: Any) -> tuple[str, tuple[int, ...]]:
            name, *choices = part.children
            for choice in choices:
                if not choice.isdigit():
                    raise Unreadable(self._at(choice), f"`{choice}` is no whole number")
            return str(name), tuple(int(self._number(c)) for c in choices)

        return s.Tile(tuple(parameter(part) for part in parts))

    def _grid(self, parts: list[Any]) -> Statement:
        return s.Grid(tuple((str(p.children[0]), self.expr(p.children[1])) for p in parts))

    def _allocate(self, parts: list[Any]) -> Statement:
        name, level, *rest = parts
        out = s.Allocate(str(name), _level(level), ())
        for part in rest:
            match part.data:
                case "shape":
                    out = replace(out, shape=self._exprs(part))
                case "dtype":
                    out = replace(out, dtype=str(part.children[0]).lower())
                case "offset":
                    out = replace(out, offset=self._exprs(part))
                case "init":
                    out = replace(out, init=self.expr(part.children[0]))
                case "workspace":
                    out = replace(out, workspace=True)
        return out

    def _copy(self, parts: list[Any]) -> Statement:
        name, *rest = parts
        levels = [_level(part) for part in rest if isinstance(part, Token)]
        out = s.Copy(str(name), levels[0], levels[1])
        for part in rest:
            if isinstance(part, Token):
                continue
            match part.data:
                case "shape":
                    out = replace(out, shape=self._exprs(part))
                case "coordinate":
                    places = tuple((str(p.children[0]), self.expr(p.children[1])) for p in _trees(part))
                    out = replace(out, coordinate=places)
                case "pad":
                    out = replace(out, pad=self.expr(part.children[0]))
                case "via":
                    out = replace(out, via=str(part.children[0]))
        return out

    def _copy_get(self, parts: list[Any]) -> Statement:
        value, gets = parts
        return s.Compute("Assign", (self.expr(value),), self._gets(gets))

    def _compute(self, parts: list[Any]) -> Statement:
        name, *rest = parts
        out = s.Compute(str(name))
        for part in rest:
            match part.data:
                case "operands":
                    out = replace(out, operands=self._exprs(part))
                case "get":
                    out = replace(out, get=self._gets(part.children[0]))
                case "accumulate":
                    out = replace(out, accumulate=str(part.children[0]))
                case "rescale":
                    out = replace(out, rescale=tuple(str(c) for c in part.children))
                case "where":
                    out = replace(out, where=self.expr(part.children[0]))
                case "to":
                    out = replace(out, to=str(part.children[0]).lower())
        return out

    def _gets(self, node: Any) -> tuple[s.Get, ...]:
        return tuple(s.Get(str(got.children[-1]), len(got.children) == 2) for got in node.children)

    def _infix(self, parts: list[Any]) -> Statement:
        name, op, value = parts
        return s.Infix(str(name), self.expr(value), str(op))

    def _reshape(self, parts: list[Any]) -> Statement:
        name, source, target = parts
        return s.Reshape(str(name), self._exprs(source), self._exprs(target))

    def _for_(self, parts: list[Any]) -> Statement:
        var, bounds, header, body = parts
        start, stop, step = self._bounds(bounds)
        return s.For(str(var), start, stop, self._body(header, body), step)

    def _bounds(self, node: Any) -> tuple[Expr, Expr, Expr | None]:
        parts = list(node.children)
        step = self.expr(parts.pop().children[0]) if parts[-1].data == "step" else None
        ends = [self.expr(part) for part in parts]
        stop = ends[-1]
        start: Expr = ends[0] if len(ends) == 2 else s.Num(0)
        if isinstance(stop, s.Call) and stop.fn == "range" and len(stop.args) <= 3:  # Python's habit
            given = stop.args
            start, stop = (s.Num(0), given[0]) if len(given) == 1 else (given[0], given[1])
            step = given[2] if len(given) == 3 else step
        return start, stop, step

    def _if_(self, parts: list[Any]) -> Statement:
        condition, header, body, *otherwise = parts
        rest: tuple[Statement, ...] = ()
        if otherwise:
            rest = self._body(*_trees(otherwise[0]))
        return s.If(self.expr(condition), self._body(header, body), rest)

    def _schedule(self, parts: list[Any]) -> Statement:
        def item(part: Any) -> tuple[str, tuple[int | str, ...]]:
            key, *values = part.children
            words: list[Any] = [v.children[0] if isinstance(v, Tree) else v for v in values]
            choices = (int(self._number(w)) if w.isdigit() else str(w).lower() for w in words)
            return str(key).lower(), tuple(choices) or ("true",)

        return s.Schedule(tuple(item(part) for part in parts))

    # --- expressions ---

    def _exprs(self, node: Any) -> tuple[Expr, ...]:
        return tuple(self.expr(part) for part in node.children)

    def expr(self, node: Any) -> Expr:
        pos = self._at(node)
        self._descend(pos)
        out = self._expr(node, node.children, pos)
        self._depth -= 1
        return out

    def _expr(self, node: Any, c: list[Any], pos: Pos) -> Expr:
        match node.data:
            case "number":
                return s.Num(self._number(c[0]), pos=pos)
            case "name":
                return s.Name(str(c[0]), pos=pos)
            case "sign":
                x = self.expr(c[1])
                return s.Unary("-", x, pos=pos) if c[0] == "-" else x
            case "not_":
                return s.Unary("not", self.expr(c[0]), pos=pos)
            case "binary":
                return s.Binary(str(c[1]), self.expr(c[0]), self.expr(c[2]), pos=pos)
            case "power":
                return s.Binary("**", self.expr(c[0]), self.expr(c[1]), pos=pos)
            case "and_" | "or_":
                return s.Binary(node.data[:-1], self.expr(c[0]), self.expr(c[1]), pos=pos)
            case "compare":
                ops = tuple(_COMPARISONS.get(str(t), str(t)) for t in c[1::2])
                return s.Compare(ops, tuple(self.expr(x) for x in c[::2]), pos=pos)
            case "call":
                return s.Call(str(c[0]), tuple(self.expr(x) for x in c[1:]), pos=pos)
            case "transpose":
                return s.Transpose(self.expr(c[0]), pos=pos)
            case "index":
                return s.Index(self.expr(c[0]), tuple(self._subscript(x) for x in c[1:]), pos=pos)
        raise AssertionError(f"grammar rule {node.data} builds no expression")

    def _subscript(self, node: Any) -> Expr | s.Slice:
        if node.data != "slice_":
            return self.expr(node)
        ends: dict[str, Expr] = {str(part.data): self.expr(part.children[0]) for part in node.children}
        pos = self._at(node) if ends else s.NOWHERE  # a bare `:` leaves nothing in lark's tree
        return s.Slice(ends.get("slice_start"), ends.get("slice_stop"), pos=pos)

    def _number(self, token: Any) -> int | float:
        if math.isinf(float(token)) or (token.isdigit() and len(token) > _MOST_DIGITS):
            raise Unreadable(self._at(token), "the number is too large")
        return int(token) if token.isdigit() else float(token)


def _trees(node: Any) -> list[Tree[Token]]:
    return [part for part in node.children if isinstance(part, Tree)]


def _level(token: Any) -> Level:
    return _LEVELS[str(token)[0].lower()]
