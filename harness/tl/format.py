"""Owns the canonical text of a tree: `parse(format(p)) == p`, and formatting it again changes nothing."""

from __future__ import annotations

from collections.abc import Callable

from harness.tl import syntax as s
from harness.tl.parse import comment_start
from harness.tl.syntax import Expr, Statement

_BINDING = {"or": 1, "and": 2, "not": 3, "cmp": 4, "+": 5, "-": 5, "*": 6, "/": 6, "//": 6, "%": 6, "@": 6}
_UNARY, _POWER, _POSTFIX = 7, 8, 9


def format_program(program: s.Program) -> str:
    """The whole program, one statement a line, four spaces for each block."""
    parts = []
    for kernel in program.kernels:
        lines = [f"Kernel {kernel.name}"] if kernel.name else []
        _block(kernel.body, 0, lines)
        parts.append("\n".join(lines))
    return "\n\n".join(part for part in parts if part) + "\n"


def format_statement(statement: Statement) -> str:
    """One statement on one line; of a block its first line."""
    text = _statement(statement, format_expr)
    if isinstance(statement, s.Comment) or comment_start(text, 0)[0] is None:
        return text
    return _statement(statement, _guarded)  # else a division would be read as the start of a comment


def _statement(statement: Statement, show: Callable[[Expr], str]) -> str:
    """`show` formats what may stand outside brackets."""
    match statement:
        case s.Comment(text=text):
            return f"# {text}".rstrip()
        case s.Let(name=name, value=value):
            return f"Let {name} = {show(value)}"
        case s.Tile(parameters=parameters):
            return "Tile " + ", ".join(_parameter(*p) for p in parameters)
        case s.Grid(axes=axes):
            return "Grid " + ", ".join(f"{name} = {show(e)}" for name, e in axes)
        case s.Allocate():
            return _allocate(statement, show)
        case s.Copy():
            return _copy(statement, show)
        case s.Compute():
            return _compute(statement, show)
        case s.Infix(name=name, op=op, value=value):
            return f"Compute {name} {op} {show(value)}"
        case s.Reshape(name=name, source=source, target=target):
            return f"Reshape {name} from {_shape(source)} to {_shape(target)}"
        case s.For(var=var, start=start, stop=stop, step=step):
            tail = f" step {show(step)}" if step is not None else ""
            return f"for {var} = {show(start)} : {show(stop)}{tail}"
        case s.If(condition=condition):
            return f"if {show(condition)}"
        case s.Schedule(items=items):
            return "Schedule " + ", ".join(_item(*item) for item in items)


def format_expr(expr: Expr | s.Slice, binding: int = 0) -> str:
    """The expression with no more parentheses than it needs inside something that binds that tightly."""
    text, own = _expr(expr)
    return f"({text})" if own < binding else text


def _guarded(expr: Expr) -> str:
    """The expression with no `//` outside brackets."""
    text = format_expr(expr)
    at, _ = comment_start(f"compute {text}", 0)
    return text if at is None else f"({text})"


def _expr(expr: Expr | s.Slice) -> tuple[str, int]:
    match expr:
        case s.Num(value=value):
            return _number(value), 10
        case s.Name(id=name):
            return name, 10
        case s.Unary(op="not", x=x):
            return f"not {format_expr(x, 3)}", 3
        case s.Unary(x=x):
            return f"-{format_expr(x, _UNARY)}", _UNARY
        case s.Binary(op="**", left=left, right=right):
            return f"{format_expr(left, _POSTFIX)} ** {format_expr(right, _UNARY)}", _POWER
        case s.Binary(op=op, left=left, right=right):
            own = _BINDING[op]
            return f"{format_expr(left, own)} {op} {format_expr(right, own + 1)}", own
        case s.Compare(ops=ops, operands=operands):
            first, *rest = (format_expr(x, 5) for x in operands)
            return first + "".join(f" {op} {x}" for op, x in zip(ops, rest, strict=True)), 4
        case s.Call(fn=fn, args=args):
            return f"{fn}({', '.join(format_expr(a) for a in args)})", 10
        case s.Index(base=base, subscripts=subscripts):
            return f"{format_expr(base, _POSTFIX)}[{', '.join(format_expr(x) for x in subscripts)}]", _POSTFIX
        case s.Slice(start=start, stop=stop):
            return f"{format_expr(start) if start else ''}:{format_expr(stop) if stop else ''}", 10
        case s.Transpose(x=x):
            return f"{format_expr(x, _POSTFIX)}^T", _POSTFIX


def _block(body: tuple[Statement, ...], depth: int, lines: list[str]) -> None:
    indent = "    " * depth
    section = ""
    for n, statement in enumerate(body):
        if isinstance(statement, s.Comment) and statement.inline and lines:
            lines[-1] += f"  {format_statement(statement)}"
            continue
        before, section = section, _section(body[n:])
        if not depth and before and section != before:
            lines.append("")
        lines.append(indent + format_statement(statement))
        if isinstance(statement, s.For):
            _block(statement.body, depth + 1, lines)
            lines.append(indent + "end")
        elif isinstance(statement, s.If):
            _block(statement.then, depth + 1, lines)
            if statement.otherwise:
                lines.append(indent + "else")
                _block(statement.otherwise, depth + 1, lines)
            lines.append(indent + "end")


def _section(rest: tuple[Statement, ...]) -> str:
    """The part of a kernel to which the next statement belongs; a blank line parts two of them."""
    first = next((x for x in rest if not isinstance(x, s.Comment)), None)
    match first:
        case s.Tile() | s.Grid():
            return "shape"
        case s.Allocate():
            return "memory"
        case s.Schedule():
            return "schedule"
        case _:
            return "work"


def _number(value: int | float) -> str:
    return str(value) if isinstance(value, int) else repr(float(value))


def _shape(shape: tuple[Expr, ...]) -> str:
    return f"({', '.join(format_expr(e) for e in shape)})"


def _parameter(name: str, choices: tuple[int, ...]) -> str:
    return f"{name} = {choices[0]}" if len(choices) == 1 else f"{name} in {{{', '.join(map(str, choices))}}}"


def _item(key: str, values: tuple[int | str, ...]) -> str:
    if values == ("true",):
        return key
    return f"{key} {values[0]}" if len(values) == 1 else f"{key} in {{{', '.join(map(str, values))}}}"


def _allocate(a: s.Allocate, show: Callable[[Expr], str]) -> str:
    out = f"Allocate {a.name} in {a.level}"
    out += f" {_shape(a.shape)}" if a.shape else ""
    out += f" {a.dtype}" if a.dtype else ""
    if a.offset:
        out += f" with offset {_shape(a.offset) if len(a.offset) > 1 else show(a.offset[0])}"
    out += f" init {show(a.init)}" if a.init is not None else ""
    return out + (" workspace" if a.workspace else "")


def _copy(c: s.Copy, show: Callable[[Expr], str]) -> str:
    out = f"Copy {c.name}"
    out += f" {_shape(c.shape)}" if c.shape else ""
    if c.coordinate:
        out += f" in coordinate [{', '.join(f'{axis} = {format_expr(e)}' for axis, e in c.coordinate)}]"
    out += f" from {c.source} to {c.target}"
    out += f" pad {show(c.pad)}" if c.pad is not None else ""
    return out + (f" via {c.via}" if c.via else "")


def _compute(c: s.Compute, show: Callable[[Expr], str]) -> str:
    get = ", ".join(("new " if g.new else "") + g.name for g in c.get)
    operands = ", ".join(show(e) for e in c.operands)
    more = c.accumulate or c.rescale or c.where or c.to
    if c.op == "Assign" and len(c.operands) == 1 and c.get and not more:
        return f"Copy {operands} and get {get}"
    out = f"Compute {c.op}" + (f" {operands}" if operands else "")
    out += f" to {c.to}" if c.to else ""
    out += f" where {show(c.where)}" if c.where is not None else ""
    out += f" and get {get}" if get else ""
    out += f" and accumulate {c.accumulate}" if c.accumulate else ""
    return out + (f" and rescale {', '.join(c.rescale)}" if c.rescale else "")
