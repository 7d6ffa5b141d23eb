"""Owns what a resolved program means: runs it on CPU tensors; a compiler that disagrees is wrong.

All grid points that share control flow run together: a tile is one float32 tensor (points, rows,
columns), a scalar of the grid (points, 1, 1). Where a trip count or a condition differs between
grid points, each group of equals runs the body on its own and the tiles are put together after it.
What nothing has written is NaN, so that reliance on it shows in the output. Grid points of a kernel
must not depend on each other's stores.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.tl import ir
from harness.tl.batch import Batch, batches
from harness.tl.counts import Counts, Meter
from harness.tl.elementwise import Fault, evaluate, integer, rounded, subtract, torch_dtype, truth
from harness.tl.format import format_statement
from harness.tl.memory import Memory
from harness.tl.problem import TaskLike, WorkloadLike, scalars
from harness.tl.schedule import FIELDS
from harness.tl.syntax import NOWHERE, Level, Pos, Statement


class InterpretError(ValueError):
    """A program that cannot run on this workload; names the statement."""

    def __init__(self, message: str, source: Statement | None = None, where: str = "") -> None:
        self.pos: Pos = source.pos if source is not None else NOWHERE
        self.statement = format_statement(source) if source is not None else ""
        place = f"line {self.pos.line}: `{self.statement}`" if source is not None else where
        super().__init__(f"{place}: {message}" if place else message)


@dataclass(frozen=True)
class Outcome:
    """The task's output tensors by name, in their own dtype, and what computing them took."""

    outputs: dict[str, Tensor]
    counts: Counts


def interpret(
    program: ir.Program,
    task: TaskLike,
    workload: WorkloadLike,
    inputs: Mapping[str, Tensor],
    choice: Mapping[str, int] | None = None,
    deadline: float | None = None,
) -> Outcome:
    """The outputs of the program on these inputs.

    `choice` gives values of tile parameters (any positive integer), the first choice serves for
    the others; keys of the schedule and fields of `Schedule` are allowed in it and mean nothing here.
    Raises InterpretError.
    """
    given = dict(choice or {})
    parameters = {name: given.pop(name, first) for name, first in program.defaults.items()}
    unknown = sorted(given.keys() - {key for key, _ in program.schedule} - FIELDS)
    if unknown:
        known = ", ".join(parameters) or "none"
        raise InterpretError(f"no tile parameter {', '.join(unknown)}; there are: {known}")
    sizes = {**scalars(workload), **parameters}
    meter = Meter(deadline=math.inf if deadline is None else deadline)
    with torch.no_grad():
        try:
            memory = Memory(task, workload, inputs, meter)
            operand = torch_dtype(workload.dtype)
        except Fault as fault:
            raise InterpretError(str(fault)) from None
        for kernel in program.kernels:
            where = f"line {kernel.pos.line}: kernel {kernel.name}"
            try:
                for batch in batches(kernel, sizes, memory, operand, meter):
                    _run(kernel.body, batch)
            except Fault as fault:
                raise InterpretError(str(fault), where=where) from None
        return Outcome(memory.outputs(), meter.counts())


def _run(body: tuple[ir.Node, ...], batch: Batch) -> None:
    """All statements in order; the batch's tiles and the memory change."""
    for node in body:
        try:
            if time.thread_time() > batch.meter.deadline:
                raise Fault("interpreting takes too long; its loops run too often")
            _step(node, batch)
        except Fault as fault:
            raise InterpretError(str(fault), node.source, type(node).__name__) from None


def _step(node: ir.Node, batch: Batch) -> None:
    match node:
        case ir.Init():
            _init(node, batch)
        case ir.Load(tile=tile, matrix=matrix):
            itemsize = batch.memory.element_size(matrix)
            batch.write(tile, batch.memory.load(node, batch.shape(tile), batch), itemsize)
        case ir.Store(tile=tile):
            batch.memory.store(node, batch.read(tile), batch)
        case ir.Move(tile=tile, target=target):
            to_shared = target.level is Level.SHARED and target.dtype is None
            values = batch.read(tile)
            batch.write(target, rounded(values, batch.operand) if to_shared else values)
        case ir.Gemm():
            _gemm(node, batch)
        case ir.Map(result=result, expr=expr):
            batch.write(result, batch.compute(expr, batch.shape(result)))
        case ir.Reduce():
            _reduce(node, batch)
        case ir.Mask(tile=tile, cond=cond):
            seen = batch.holds(cond, batch.shape(tile))
            batch.write(node.result, torch.where(seen, batch.read(tile), -math.inf))
        case ir.Softmax():
            _softmax(node, batch)
        case ir.Reshape():
            pass
        case ir.For():
            _loop(node, batch)
        case ir.If(cond=cond):
            parts = []
            for holds, part, index in batch.groups(truth(evaluate(cond, batch))):
                _run(node.then if holds else node.otherwise, part)
                parts.append((part, index))
            batch.join(parts, node.then + node.otherwise)


def _init(node: ir.Init, batch: Batch) -> None:
    shape = batch.shape(node.tile)
    if node.value is None:
        batch.tiles[node.tile.key] = torch.full((batch.points, *shape), math.nan)
    else:
        batch.write(node.tile, batch.compute(node.value, shape))


def _loop(node: ir.For, batch: Batch) -> None:
    start, stop, step = _bounds(node, batch)
    if bool((torch.as_tensor(step) < 1).any()):
        raise Fault("the step of a loop must be at least 1")
    trips = -((start - stop) // step)
    trips = trips.clamp(min=0) if isinstance(trips, Tensor) else trips
    parts = []
    for count, part, index in batch.groups(trips):
        outer = dict(part.symbols)
        start, _, step = _bounds(node, part)
        for trip in range(count):
            part.symbols[node.var] = start + trip * step
            _run(node.body, part)
        part.symbols = outer
        parts.append((part, index))
    batch.join(parts, node.body)


def _bounds(node: ir.For, batch: Batch) -> tuple[int | Tensor, int | Tensor, int | Tensor]:
    start, stop, step = (
        integer(evaluate(bound, batch), f"a bound of {node.var}")
        for bound in (node.start, node.stop, node.step)
    )
    return start, stop, step


def _gemm(node: ir.Gemm, batch: Batch) -> None:
    a, b = _operand(node.a, batch), _operand(node.b, batch)
    (m, k), (k_b, n) = a.shape[1:], b.shape[1:]
    if k != k_b:
        raise Fault(f"({m}, {k}) @ ({k_b}, {n}): the inner sizes differ")
    dead = batch.dead(node.contracted, k)
    if dead is not None:
        a, b = a.masked_fill(dead[:, None, :], 0), b.masked_fill(dead[:, :, None], 0)
    batch.meter.gemm_flops += 2 * m * n * k * batch.points
    product = torch.bmm(a, b)
    if node.accumulate:
        before = batch.read(node.result)
        if before.shape != product.shape:
            raise Fault(
                f"a product ({m}, {n}) cannot be added to tile {node.result.name} {batch.shape(node.result)}"
            )
        product += before
    batch.write(node.result, product)


def _operand(operand: ir.Operand, batch: Batch) -> Tensor:
    values = batch.read(operand.tile)
    if operand.columns is not None:
        start, stop = (integer(evaluate(bound, batch), "a column") for bound in operand.columns)
        if isinstance(start, Tensor) or isinstance(stop, Tensor):
            raise Fault(f"the columns of {operand.tile.name} depend on the grid point")
        if not 0 <= start < stop <= values.shape[2]:
            raise Fault(f"{operand.tile.name} has {values.shape[2]} columns, not {start}:{stop}")
        values = values[:, :, start:stop]
    values = rounded(values, batch.operand)
    return values.transpose(1, 2) if operand.transposed else values


def _reduce(node: ir.Reduce, batch: Batch) -> None:
    rows, columns = (integer(evaluate(extent, batch), "a size") for extent in node.shape)
    if isinstance(rows, Tensor) or isinstance(columns, Tensor):
        raise Fault("the shape of what is reduced depends on the grid point")
    values = batch.compute(node.expr, (rows, columns))
    dead = batch.dead(node.across, columns)
    if dead is not None:
        values = values.masked_fill(dead[:, None, :], -math.inf if node.fn == "max" else 0)
    reduced = values.amax(2, keepdim=True) if node.fn == "max" else values.sum(2, keepdim=True)
    if node.start is not None:
        start = batch.compute(node.start, (rows, 1))
        reduced = torch.maximum(start, reduced) if node.fn == "max" else start + reduced
    batch.write(node.result, reduced)


def _softmax(node: ir.Softmax, batch: Batch) -> None:
    values, m, l = batch.read(node.tile), batch.read(node.m), batch.read(node.l)  # noqa: E741
    rows = values.shape[1]
    for tile in (node.m, node.l, *node.rescale):
        shape = batch.shape(tile)
        if shape[0] != rows or (shape[1] != 1 and tile not in node.rescale):
            raise Fault(f"{node.tile.name} has {rows} rows, which tile {tile.name} {shape} does not fit")
    dead = batch.dead(node.across, values.shape[2])
    if dead is not None:
        values = values.masked_fill(dead[:, None, :], -math.inf)
    new_m = torch.maximum(m, values.amax(2, keepdim=True))
    alpha = torch.exp(subtract(m, new_m))
    p = torch.exp(subtract(values, new_m))
    batch.meter.exponentials += p.numel() + alpha.numel()
    p = batch.write(node.result, p)
    batch.write(node.m, new_m)
    batch.write(node.l, alpha * l + p.sum(2, keepdim=True))
    for tile in node.rescale:
        batch.write(tile, batch.read(tile) * alpha)
    if node.alpha is not None:
        batch.write(node.alpha, alpha)
