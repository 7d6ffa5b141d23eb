"""Owns TL604 of the grid: whether its blocks are one for each batch entry and head of the output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from harness.tl import ir
from harness.tl.diagnostics import Finding, finding
from harness.tl.evaluate import evaluate
from harness.tl.expressions import show
from harness.tl.problem import TaskLike
from harness.tl.shapes import environments, symbols_of
from harness.tl.syntax import Pos

_MOST_POINTS = 1 << 14


def check_extents(program: ir.Program, task: TaskLike) -> list[Finding]:
    """What of an output no block stores, or two do, or lies outside of it, on the task's workloads."""
    axes = {t.name: t.axes for t in task.tensors if t.role == "output"}
    parameters = dict(program.parameters)
    found = []
    for kernel in program.kernels:
        stores = [n for n in _plain(kernel.body) if n.matrix.tensor in axes and not n.matrix.workspace]
        for tensor in dict.fromkeys(n.matrix.tensor for n in stores):
            every = [
                n for n in ir.nodes(kernel.body) if isinstance(n, ir.Store) and n.matrix.tensor == tensor
            ]
            nodes = [n for n in stores if n.matrix.tensor == tensor]
            if len(nodes) != len(every) or len({n.matrix.axes for n in nodes}) != 1:
                continue  # several stores share the output, or a condition decides
            text = _wrong(kernel, nodes[0].matrix, axes[tensor], task, parameters)
            if text:
                pos = nodes[0].source.pos if nodes[0].source is not None else Pos(1, 1)
                found.append(finding("TL604", pos, *text))
    return found


def _plain(body: tuple[ir.Node, ...]) -> Iterator[ir.Store]:
    """The stores under no condition."""
    for node in body:
        if isinstance(node, ir.For):
            yield from _plain(node.body)
        elif isinstance(node, ir.Store):
            yield node


def _wrong(
    kernel: ir.Kernel,
    matrix: ir.Matrix,
    axes: tuple[str, ...],
    task: TaskLike,
    parameters: Mapping[str, tuple[int, ...]],
) -> tuple[str, str] | None:
    """What is wrong and what to do, where the blocks do not index each entry of the output once."""
    grid = {axis.name: axis.extent for axis in kernel.grid}
    fixed = [(a, i) for a, i in zip(axes, matrix.axes, strict=True) if not isinstance(i, str)]
    names = [i.name for _, i in fixed if isinstance(i, ir.Sym) and i.name in grid]
    if len(names) == len(fixed) == len(set(names)):  # an axis of the grid for each
        for size, name in zip((a for a, _ in fixed), names, strict=True):
            extent = grid[name]
            if extent == ir.Sym(size):
                continue
            for env in _environments(task, parameters, extent, ir.Sym(size)):
                blocks = _value(extent, env)
                if blocks is not None and blocks != env[size]:
                    few = "some are never stored" if blocks < env[size] else "the rest lies outside"
                    return (
                        f"`{name}` counts to {show(extent)} = {blocks} and indexes the {env[size]} "
                        f"{size} of `{matrix.name}`: {few}",
                        f"Grid {name} = {size}",
                    )
        return None
    used = sorted({s for _, i in fixed for s in symbols_of(i)} & grid.keys())
    exprs = [e for _, e in fixed] + [grid[n] for n in used] + [ir.Sym(a) for a, _ in fixed]
    for env in _environments(task, parameters, *exprs):
        text = _points([(a, e) for a, e in fixed], {n: grid[n] for n in used}, env)
        if text:
            words = ", ".join(a for a, _ in fixed)
            return f"the blocks of the grid {text} ({words}) of `{matrix.name}`", "one block for each of them"
    return None


def _environments(
    task: TaskLike, parameters: Mapping[str, tuple[int, ...]], *exprs: ir.Expr
) -> list[Mapping[str, Any]]:
    return list(environments(task, parameters, symbols_of(*exprs)))


def _points(
    fixed: list[tuple[str, ir.Expr]], grid: Mapping[str, ir.Expr], env: Mapping[str, Any]
) -> str | None:
    """What is wrong with the indices of all grid points together; None where that cannot be told."""
    extents = [_value(e, env) for e in grid.values()]
    sizes = [env.get(a) for a, _ in fixed]
    if any(not isinstance(n, int) or n < 1 for n in (*extents, *sizes)):
        return None
    whole = [int(n) for n in extents if n is not None]
    if np.prod(whole) > _MOST_POINTS or np.prod([int(n) for n in sizes if n]) > _MOST_POINTS:
        return None
    points = np.indices(whole).reshape(len(whole), -1)
    values = {**env, **dict(zip(grid, points, strict=True))}
    flat = np.zeros(points.shape[1], dtype=np.int64)
    for (_, expr), size in zip(fixed, sizes, strict=True):
        index = _value(expr, values)
        if index is None or size is None:
            return None
        if np.min(index) < 0 or np.max(index) >= size:
            return "lie outside of"
        flat = flat * size + index
    met = np.bincount(flat, minlength=int(np.prod([int(n) for n in sizes if n])))
    return "leave out some of" if (met == 0).any() else "meet twice some of" if (met > 1).any() else None


def _value(expr: ir.Expr, env: Mapping[str, Any]) -> Any:
    """The value, None where it is not known: a loop's index, or a number only a run gives."""
    try:
        return evaluate(expr, env)
    except (KeyError, ValueError, TypeError, ArithmeticError):
        return None
