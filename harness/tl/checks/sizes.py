"""Owns TL206 as an error: sizes that meet in a statement and differ for some choice of its tiles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from harness.tl import ir
from harness.tl.diagnostics import Finding, Severity, finding
from harness.tl.evaluate import evaluate
from harness.tl.expressions import show
from harness.tl.problem import TaskLike
from harness.tl.shapes import environments, equal, symbols_of
from harness.tl.syntax import Pos

_ONE = ir.Const(1)
Pair = tuple[ir.Expr, ir.Expr]
Shape = tuple[ir.Expr, ir.Expr]


def check_sizes(program: ir.Program, task: TaskLike) -> list[Finding]:
    """Sizes that some choice makes equal and another makes different, on the same shape of the task."""
    parameters = dict(program.parameters)
    known: dict[Pair, str] = {}
    found = []
    for kernel in program.kernels:
        for node in ir.nodes(kernel.body):
            for a, b in _meeting(node):
                if a == b or equal(a, b):
                    continue
                if (a, b) not in known:
                    known[a, b] = _differ(a, b, task, parameters)
                if known[a, b]:
                    pos = node.source.pos if node.source is not None else Pos(1, 1)
                    text = f"{show(a)} meets {show(b)}, and they differ with {known[a, b]}"
                    fix = "give both tiles the same size, by its name"
                    found.append(finding("TL206", pos, text, fix, Severity.ERROR))
                    break
    return found


def _meeting(node: ir.Node) -> Iterator[Pair]:
    """The sizes that must be equal for a statement to mean anything."""
    match node:
        case ir.Gemm(a=a, b=b, result=result):
            (rows, inner), (other, columns) = _operand(a), _operand(b)
            yield inner, other
            yield rows, result.shape[0]
            yield columns, result.shape[1]
        case ir.Map(result=result, expr=expr):
            for tile in ir.refs(expr):
                yield from _broadcast(tile.shape, result.shape)
        case ir.Reduce(expr=expr, shape=shape, result=result, start=start):
            for tile in ir.refs(expr):
                yield from _broadcast(tile.shape, shape)
            yield shape[0], result.shape[0]
            for tile in ir.refs(start) if start is not None else ():
                yield from _broadcast(tile.shape, result.shape)
        case ir.Mask(tile=tile, result=result):
            yield from zip(tile.shape, result.shape, strict=True)
        case ir.Move(tile=tile, target=target):
            yield from zip(tile.shape, target.shape, strict=True)
        case ir.Softmax(tile=tile, result=result):
            yield from zip(tile.shape, result.shape, strict=True)
            for other in (node.m, node.l, *node.rescale, *((node.alpha,) if node.alpha else ())):
                yield tile.shape[0], other.shape[0]


def _operand(operand: ir.Operand) -> Shape:
    rows, columns = operand.tile.shape
    if operand.columns is not None:
        start, stop = operand.columns
        columns = stop if start == ir.Const(0) else ir.Op("sub", (stop, start))
    return (columns, rows) if operand.transposed else (rows, columns)


def _broadcast(shape: Shape, into: Shape) -> Iterator[Pair]:
    return ((a, b) for a, b in zip(shape, into, strict=True) if a != _ONE)


def _differ(a: ir.Expr, b: ir.Expr, task: TaskLike, parameters: Mapping[str, tuple[int, ...]]) -> str:
    """A choice of the tiles that makes them different where another makes them equal; empty if there is none.

    A choice that is the only one may be meant for one shape of the task: that is a warning, of `resolve`.
    """
    symbols = symbols_of(a, b)
    named = sorted(symbols & parameters.keys())
    by_shape: dict[tuple[object, ...], list[tuple[bool, str]]] = {}
    try:
        for env in environments(task, parameters, symbols):
            same = evaluate(a, env) == evaluate(b, env)
            words = ", ".join(f"{n} = {env[n]}" for n in sorted(symbols))
            by_shape.setdefault(tuple(env[n] for n in sorted(symbols) if n not in named), []).append(
                (bool(same), words)
            )
    except (KeyError, ValueError, TypeError, ArithmeticError):
        return ""
    for tried in by_shape.values():
        wrong = [words for same, words in tried if not same]
        if wrong and len(wrong) < len(tried):
            return wrong[0]
    return ""
