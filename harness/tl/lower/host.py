"""Owns what the host side of every compiled candidate says alike: its signature, sizes, index arithmetic."""

from __future__ import annotations

from harness.tl import ir
from harness.tl.lower.lowered import LowerError
from harness.tl.lower.python_layout import WIDTH, call
from harness.tl.problem import SIZES, TaskLike


def declaration(task: TaskLike) -> list[str]:
    parameters = [f"{t.name}: Tensor" for t in task.tensors]
    parameters += ["*", "scale: float", *(f"{p.name}: {p.type}" for p in task.parameters)]
    one = f"def attention({', '.join(parameters)}) -> None:"
    head = [one] if len(one) <= WIDTH else call("def attention", [parameters], 0, ") -> None:")
    about = f"Write the attention of `{task.name}` to `{task.tensors[-1].name}` on the current stream."
    return [*head, f'    """{about}"""']


def sizes(task: TaskLike) -> list[str]:
    """Every size from the first input that has it."""
    lines: list[str] = []
    known: set[str] = set()
    for tensor in task.tensors:
        fresh = {a for a in tensor.axes if a in SIZES and a not in known}
        if fresh and tensor.role == "input":
            names = ", ".join(a if a in fresh else "_" for a in tensor.axes)
            lines.append(f"{names}{',' if len(tensor.axes) == 1 else ''} = {tensor.name}.shape")
            known |= fresh
    return lines


def largest(task: TaskLike, *sizes: str) -> str:
    found = [size for size in sizes if any(size in t.axes for t in task.tensors)]
    return f"max({', '.join(found)})" if len(found) > 1 else found[0]


def python_text(expr: ir.Expr, cdiv: str = "triton.cdiv") -> str:
    """The host's text of an index expression: Python's own division already rounds down."""
    match expr:
        case ir.Op(fn="floordiv", args=(a, b)):
            return f"({python_text(a, cdiv)} // {python_text(b, cdiv)})"
        case ir.Op(fn="ceildiv", args=(a, b)):
            return f"{cdiv}({python_text(a, cdiv)}, {python_text(b, cdiv)})"
        case ir.Op(fn="min" | "max" as fn, args=args):
            return f"{fn}({', '.join(python_text(a, cdiv) for a in args)})"
        case ir.Op(fn="add" | "sub" | "mul" | "mod" | "div" as fn, args=args):
            sign = {"add": "+", "sub": "-", "mul": "*", "mod": "%", "div": "/"}[fn]
            return f"({f' {sign} '.join(python_text(a, cdiv) for a in args)})"
        case ir.Op(fn="neg", args=(a,)):
            return f"(-{python_text(a, cdiv)})"
        case ir.Const(value=value):
            return str(value)
        case ir.Sym(name=name):
            return name
    raise LowerError(f"{expr} has no host text")
