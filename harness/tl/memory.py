"""Owns device memory while a program is interpreted: task tensors, workspaces, and what lies outside them.

Everything is kept as float32, rounded to the tensor's own dtype when written; what nobody has
written yet is NaN. Out-of-range reads give `pad`, out-of-range writes are dropped; an index that a
matrix fixes (batch, head) must be in range.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.tl import ir
from harness.tl.counts import Meter
from harness.tl.elementwise import Fault, Scope, Value, evaluate, integer, rounded, torch_dtype
from harness.tl.problem import TaskLike, WorkloadLike


@dataclass(frozen=True, slots=True)
class Storage:
    """One tensor: its values as float32, its dtype in memory, and exact integers where it holds some."""

    values: Tensor
    dtype: torch.dtype
    integers: Tensor | None = None
    writable: bool = False


@dataclass(frozen=True, slots=True)
class Region:
    """A tile's part of a matrix: broadcastable indices per axis of the tensor, and which lie inside."""

    storage: Storage
    indices: tuple[Tensor, ...]
    inside_rows: Tensor  # (points or 1, rows, 1)
    inside_columns: Tensor  # (points or 1, 1, columns)

    def count(self, points: int) -> int:
        """Elements inside, over all grid points."""
        each = self.inside_rows.sum(1) * self.inside_columns.sum(2)
        return int(each.expand(points, 1).sum())


class Memory:
    """The tensors of one task on one workload, with a program's workspaces, by name."""

    def __init__(self, task: TaskLike, workload: WorkloadLike, inputs: Mapping[str, Tensor], meter: Meter):
        self._meter = meter
        self._storages: dict[str, Storage] = {}
        self._outputs = [t.name for t in task.tensors if t.role == "output"]
        for spec in task.tensors:
            sizes = [workload.sizes.get(axis) for axis in spec.axes]
            if spec.role == "output":
                dtype = torch_dtype(spec.dtype or workload.dtype)
                missing = [axis for axis, size in zip(spec.axes, sizes, strict=True) if size is None]
                if missing:
                    raise Fault(f"output {spec.name} has axes of unknown size: {', '.join(missing)}")
                self._storages[spec.name] = _blank([s for s in sizes if s is not None], dtype)
                continue
            if spec.name not in inputs:
                raise Fault(f"no value for the task's input {spec.name}")
            given = inputs[spec.name].detach().cpu()
            if len(given.shape) != len(sizes) or any(
                want not in (None, got) for want, got in zip(sizes, given.shape, strict=True)
            ):
                raise Fault(
                    f"input {spec.name} has shape {tuple(given.shape)}, the workload says {tuple(sizes)}"
                )
            whole = None if given.is_floating_point() else given.to(torch.int64)
            self._storages[spec.name] = Storage(given.to(torch.float32), given.dtype, whole)

    def outputs(self) -> dict[str, Tensor]:
        """The task's output tensors, in the dtype they have in memory."""
        return {name: self._storages[name].values.to(self._storages[name].dtype) for name in self._outputs}

    def add_workspace(self, matrix: ir.Matrix, scope: Scope) -> None:
        """Makes the workspace that the matrix views, unless an earlier kernel has."""
        shape = []
        for extent in matrix.workspace:
            size = integer(evaluate(extent, scope), f"the size of workspace {matrix.tensor}")
            if isinstance(size, Tensor):
                raise Fault(f"the size of workspace {matrix.tensor} depends on the grid point")
            shape.append(size)
        known = self._storages.get(matrix.tensor)
        if known is None:
            self._storages[matrix.tensor] = _blank(shape, torch_dtype(matrix.dtype or "fp32"))
        elif list(known.values.shape) != shape:
            raise Fault(
                f"workspace {matrix.tensor} is {tuple(known.values.shape)} elsewhere, {tuple(shape)} here"
            )

    def element(self, tensor: str, indices: tuple[Value, ...]) -> Value:
        """One element at each index."""
        storage = self._find(tensor)
        source = storage.values if storage.integers is None else storage.integers
        if len(indices) != source.dim():
            raise Fault(f"{tensor} has {source.dim()} axes, not {len(indices)}")
        at = []
        for axis, (index, size) in enumerate(zip(indices, source.shape, strict=True)):
            at.append(_check_index(index, size, f"index {axis} of {tensor}"))
        found = source[tuple(at)]
        if any(isinstance(index, Tensor) for index in at):
            return found
        value: int | float = found.item()
        return value

    def element_size(self, matrix: ir.Matrix) -> int:
        """Bytes of an element in memory."""
        return self._find(matrix.tensor).dtype.itemsize

    def load(self, node: ir.Load, shape: tuple[int, int], scope: Scope) -> Tensor:
        """The loaded tile (points, rows, columns), `pad` where it lies outside the matrix."""
        rows, columns = _positions(node.row, shape[0], 0, scope), _positions(node.col, shape[1], 1, scope)
        allowed = None
        if node.via is not None:
            rows, allowed = self._through(node.via, rows, scope)
        region = self._region(node.matrix, rows, columns, shape, scope, allowed)
        inside = region.inside_rows & region.inside_columns
        self._meter.global_bytes_read += region.count(scope.points) * region.storage.dtype.itemsize
        values = region.storage.values[region.indices]
        if not bool(inside.all()):
            pad = evaluate(node.pad, scope)
            values = torch.where(inside, values, pad)
        return values.expand(scope.points, *shape)

    def store(self, node: ir.Store, tile: Tensor, scope: Scope) -> None:
        """Writes what lies inside the matrix, rounded to its dtype."""
        shape = (tile.shape[1], tile.shape[2])
        rows, columns = _positions(node.row, shape[0], 0, scope), _positions(node.col, shape[1], 1, scope)
        region = self._region(node.matrix, rows, columns, shape, scope)
        if not region.storage.writable:
            raise Fault(f"{node.matrix.tensor} is an input of the task, which a kernel must not write")
        inside = (region.inside_rows & region.inside_columns).expand(tile.shape)
        self._meter.global_bytes_written += region.count(scope.points) * region.storage.dtype.itemsize
        indices = tuple(index.expand(tile.shape)[inside] for index in region.indices)
        region.storage.values[indices] = rounded(tile[inside], region.storage.dtype)

    def _through(self, via: ir.Matrix, rows: Tensor, scope: Scope) -> tuple[Tensor, Tensor]:
        """The rows that an index vector names, and where it names any."""
        region = self._region(via, rows, torch.zeros(1, 1, 1, dtype=torch.int64), (rows.shape[1], 1), scope)
        if region.storage.integers is None:
            raise Fault(f"{via.tensor} does not hold integers, so no rows can be gathered through it")
        self._meter.global_bytes_read += region.count(scope.points) * region.storage.dtype.itemsize
        return region.storage.integers[region.indices], region.inside_rows

    def _region(
        self,
        matrix: ir.Matrix,
        rows: Tensor,
        columns: Tensor,
        shape: tuple[int, int],
        scope: Scope,
        allowed: Tensor | None = None,
    ) -> Region:
        storage = self._find(matrix.tensor)
        if len(matrix.axes) != storage.values.dim():
            raise Fault(
                f"{matrix.name} indexes {len(matrix.axes)} axes of {matrix.tensor}, which has "
                f"{storage.values.dim()}"
            )
        indices: list[Tensor] = []
        for axis, size in zip(matrix.axes, storage.values.shape, strict=True):
            if axis == "row":
                indices.append(rows.clamp(0, size - 1))
            elif axis == "col":
                indices.append(columns.clamp(0, size - 1))
            elif not isinstance(axis, str):
                what = f"the index of {matrix.name} along axis {len(indices)}"
                fixed = _check_index(evaluate(axis, scope), size, what)
                indices.append(fixed if isinstance(fixed, Tensor) else torch.full((1, 1, 1), fixed))
        inside_rows = self._inside(matrix, "row", matrix.rows, rows, shape[0], scope)
        inside_columns = self._inside(matrix, "col", matrix.cols, columns, shape[1], scope)
        if allowed is not None:
            inside_rows = inside_rows & allowed
        return Region(storage, tuple(indices), inside_rows, inside_columns)

    def _inside(
        self, matrix: ir.Matrix, axis: str, extent: ir.Expr, positions: Tensor, length: int, scope: Scope
    ) -> Tensor:
        """Which positions lie inside the matrix along its rows or columns."""
        size = integer(evaluate(extent, scope), f"the number of {axis}s of {matrix.name}")
        if axis not in matrix.axes:
            if length != 1:
                raise Fault(f"{matrix.name} is a vector without a {axis} axis, the tile has {length} {axis}s")
            return positions == 0
        there = self._find(matrix.tensor).values.shape[matrix.axes.index(axis)]
        largest = int(size.max()) if isinstance(size, Tensor) else size
        if largest > there:
            raise Fault(f"{matrix.name} has {largest} {axis}s, but {matrix.tensor} has {there} there")
        return (positions >= 0) & (positions < size)

    def _find(self, tensor: str) -> Storage:
        try:
            return self._storages[tensor]
        except KeyError:
            raise Fault(f"there is no tensor {tensor}; there are {', '.join(self._storages)}") from None


def _blank(shape: list[int], dtype: torch.dtype) -> Storage:
    return Storage(torch.full(shape, math.nan), dtype, writable=True)


def _positions(base: ir.Expr, length: int, axis: int, scope: Scope) -> Tensor:
    along = torch.arange(length).view((1, -1, 1) if axis == 0 else (1, 1, -1))
    return along + integer(evaluate(base, scope), "a coordinate")


def _check_index(index: Value, size: int, what: str) -> int | Tensor:
    whole = integer(index, what)
    low, high = (int(whole.min()), int(whole.max())) if isinstance(whole, Tensor) else (whole, whole)
    if low < 0 or high >= size:
        raise Fault(f"{what} is {low if low < 0 else high}, outside 0 to {size - 1}")
    return whole
