"""Owns how generated code looks: needless parentheses, line breaks, comments. Knows Python, not Triton."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterable, Sequence

WIDTH = 110


def statement(code: str, depth: int) -> list[str]:
    """The lines of a statement, a comment or the head of a block, `depth` blocks deep."""
    indent = "    " * depth
    if code.startswith("#"):
        return _comment(code, indent)
    if code in ("", "else:"):
        return [f"{indent}{code}".rstrip()]
    code, mark, remark = code.partition("  # ")
    head = code.endswith(":")
    (node,) = ast.parse(f"{code} pass" if head else code).body
    one = indent + _line(node) + mark + remark
    if len(one) <= WIDTH or head:
        return [one]
    above = [f"{indent}# {remark}"] if mark else []
    match node:
        case ast.Assign(targets=[target], value=value):
            return [*above, *_broken(value, f"{_tuple(target)} = ", "", depth)]
        case ast.Expr(value=value):
            return [*above, *_broken(value, "", "", depth)]
    return [*above, indent + _line(node)]


def expression(code: str) -> str:
    """The expression with no more parentheses than it needs."""
    return _text(ast.parse(code, mode="eval").body)


def call(head: str, groups: Iterable[Sequence[str]], depth: int, tail: str = ")") -> list[str]:
    """A call or a signature of many arguments; every group begins a line and takes as many as it needs.

    A formatter would give each argument a line, so it is told to leave these alone.
    """
    indent = "    " * depth
    lines: list[str] = []
    for group in groups:
        line = f"{indent}   "
        for part in group:
            if line.strip() and len(line) + len(part) + 2 > WIDTH:
                lines.append(line)
                line = f"{indent}   "
            line += f" {part},"
        if group:
            lines.append(line)
    return [f"{indent}{head}(", *lines, f"{indent}{tail}  # fmt: skip"]


def _comment(text: str, indent: str) -> list[str]:
    """Long ones over several lines, an aside (after two spaces) on one of its own."""
    if len(indent + text) <= WIDTH:
        return [indent + text]
    main, _, aside = text.partition("  ")
    hanging = f"{indent}#     "
    wrapper = textwrap.TextWrapper(WIDTH, indent, hanging, break_long_words=False, break_on_hyphens=False)
    lines = wrapper.wrap(main)
    return [*lines, hanging + aside] if aside else lines


def _line(node: ast.stmt) -> str:
    """The statement in one line; of a block the head."""
    match node:
        case ast.Assign(targets=[target], value=ast.Tuple(elts=[_, _, *_] as values)):
            return f"{_tuple(target)} = {', '.join(map(_text, values))}"
    return _text(node).removesuffix("\n    pass")


def _tuple(target: ast.expr) -> str:
    """The target of an assignment, a tuple's without parentheses."""
    return _text(target)[1:-1] if isinstance(target, ast.Tuple) and len(target.elts) > 1 else _text(target)


def _text(node: ast.AST) -> str:
    return ast.unparse(node).replace("'", '"').replace("e+", "e")


def _broken(node: ast.expr, before: str, after: str, depth: int, inside: bool = False) -> list[str]:
    """An expression over several lines, as ruff breaks it; `inside`: brackets around it stand already."""
    indent = "    " * depth
    if len(one := indent + before + _text(node) + after) <= WIDTH:
        return [one]
    if isinstance(node, ast.Call):
        head = f"{before}{_text(node.func)}"
        arguments = [_text(a) for a in (*node.args, *node.keywords)]
        if len(body := f"{indent}    {', '.join(arguments)}") <= WIDTH:
            return [f"{indent}{head}(", body, f"{indent}){after}"]
        lines = [line for a in node.args for line in _broken(a, "", ",", depth + 1, True)]
        for k in node.keywords:
            lines += _broken(k.value, f"{k.arg}=", ",", depth + 1, True)
        return [f"{indent}{head}(", *lines, f"{indent}){after}"]
    if not inside:
        return [f"{indent}{before}(", *_broken(node, "", "", depth + 1, True), f"{indent}){after}"]
    (_, first), *rest = _operands(node)
    parts = [(before, first), *rest]
    ends = [""] * len(rest) + [after]
    return [line for part, end in zip(parts, ends, strict=True) for line in _operand(*part, end, depth)]


def _operands(node: ast.expr) -> list[tuple[str, str]]:
    """The chain of like operators that the expression is: before each operand, its operator."""
    chained = False
    match node:
        case ast.BinOp(left=left, op=op):
            sums = ast.Add | ast.Sub
            chained = isinstance(left, ast.BinOp) and (
                type(left.op) is type(op) or (isinstance(left.op, sums) and isinstance(op, sums))
            )
        case ast.Compare(left=left, ops=[_]):
            pass
        case _:
            return [("", _text(node))]
    whole, first = _text(node), _text(left)
    if not whole.startswith(f"{first} "):
        first = f"({first})"
    operator, rest = whole[len(first) + 1 :].split(" ", 1)
    return [*(_operands(left) if chained else [("", first)]), (f"{operator} ", rest)]


def _operand(operator: str, text: str, after: str, depth: int) -> list[str]:
    """One operand; what stands in parentheses is broken further if it must be."""
    indent = "    " * depth
    if len(one := f"{indent}{operator}{text}{after}") > WIDTH:
        inner = ast.parse(text, mode="eval").body
        if text == f"({_text(inner)})":
            return [f"{indent}{operator}(", *_broken(inner, "", "", depth + 1, True), f"{indent}){after}"]
        if isinstance(inner, ast.BinOp):
            return _broken(inner, operator, after, depth, True)
    return [one]
