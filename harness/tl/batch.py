"""Owns a set of grid points that run together: their scalars, their tiles, and taking such a set apart.

A tile is one float32 tensor (points, rows, columns); a scalar that differs between grid points is an
int64 tensor (points, 1, 1). Tensors are never changed in place once a tile holds them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor

from harness.tl import ir
from harness.tl.counts import Meter
from harness.tl.elementwise import Fault, Value, evaluate, integer, rounded, torch_dtype
from harness.tl.evaluate import evaluate as evaluate_index
from harness.tl.memory import Memory
from harness.tl.syntax import Level

CHUNK_BYTES = 256 << 20  # the tiles of the grid points that run together stay below this


def tile_shape(tile: ir.Tile, sizes: Mapping[str, int | float]) -> tuple[int, int]:
    """Rows and columns of the tile, which depend on nothing but sizes, task and tile parameters."""
    try:
        rows, columns = (evaluate_index(extent, sizes) for extent in tile.shape)
    except KeyError as missing:
        raise Fault(f"the shape of tile {tile.name} depends on {missing}, which is no size") from None
    except ArithmeticError as error:
        raise Fault(f"the shape of tile {tile.name} cannot be computed: {error}") from None
    if not (isinstance(rows, int) and isinstance(columns, int) and rows > 0 and columns > 0):
        raise Fault(f"tile {tile.name} has the shape ({rows}, {columns})")
    return rows, columns


@dataclass
class Batch:
    """Grid points that run together: their scalars and the tiles that hold something (a Scope)."""

    points: int
    symbols: dict[str, Value]
    sizes: Mapping[str, int | float]  # what the shapes of tiles may depend on
    memory: Memory
    operand: torch.dtype
    meter: Meter
    tiles: dict[str, Tensor] = field(default_factory=dict)

    def shape(self, tile: ir.Tile) -> tuple[int, int]:
        """Rows and columns of the tile."""
        return tile_shape(tile, self.sizes)

    def read(self, tile: ir.Tile) -> Tensor:
        """The values (points, rows, columns); NaN where nothing has been written."""
        shape = self.shape(tile)
        values = self.tiles.get(tile.key)
        if values is None:
            return torch.full((self.points, *shape), math.nan)
        if values.shape[1:] != shape:
            raise Fault(f"tile {tile.name} is {shape} here, but what it holds is {tuple(values.shape[1:])}")
        return values

    def write(self, tile: ir.Tile, values: Tensor, itemsize: int | None = None) -> Tensor:
        """Gives the tile these values of its shape, rounded where it has a dtype; returns what it holds."""
        shape = self.shape(tile)
        if values.shape != (self.points, *shape):
            raise Fault(f"tile {tile.name} is {shape}, but what it should take is {tuple(values.shape[1:])}")
        dtype = torch_dtype(tile.dtype) if tile.dtype is not None else None
        if dtype is not None:
            values = rounded(values, dtype)
            itemsize = dtype.itemsize
        if tile.level is Level.SHARED:
            self.meter.shared_bytes += values.numel() * (itemsize or self.operand.itemsize)
        self.tiles[tile.key] = values
        return values

    def compute(self, expr: ir.Expr, shape: tuple[int, int]) -> Tensor:
        """The value of an element-wise expression, float32, broadcast to (points, *shape)."""
        return self._broadcast(evaluate(expr, self, shape), shape).to(torch.float32)

    def holds(self, cond: ir.Expr, shape: tuple[int, int]) -> Tensor:
        """Where a condition holds, (points, *shape)."""
        return self._broadcast(evaluate(cond, self, shape), shape).to(torch.bool)

    def _broadcast(self, value: Value, shape: tuple[int, int]) -> Tensor:
        if not isinstance(value, Tensor):
            return torch.full((self.points, *shape), value)
        if any(have not in (1, want) for have, want in zip(value.shape[1:], shape, strict=True)):
            raise Fault(f"a value of shape {tuple(value.shape[1:])} does not fit into {shape}")
        return value.expand(self.points, *shape)

    def element(self, tensor: str, indices: tuple[Value, ...]) -> Value:
        return self.memory.element(tensor, indices)

    def dead(self, axis: ir.Axis | None, length: int) -> Tensor | None:
        """Which of so many positions, (points or 1, length), lie at or past the end; None if none does."""
        if axis is None:
            return None
        end = integer(evaluate(ir.Sym(axis.role), self), axis.role)
        base = integer(evaluate(axis.base, self), f"the first position along {axis.role}")
        dead = (torch.arange(length).view(1, 1, -1) + base >= end)[:, 0]
        return dead if bool(dead.any()) else None

    def groups(self, value: Value) -> Iterator[tuple[int, Batch, Tensor]]:
        """The batch taken apart by a whole number (or truth value) of each point: number, part, indices."""
        if not isinstance(value, Tensor):
            value = torch.tensor(value)
        elif value.shape[1:] != (1, 1):
            raise Fault("control flow depends on the elements of a tile")
        values = value.flatten().expand(self.points)
        distinct = sorted(set(values.tolist()))
        for one in distinct:
            if len(distinct) == 1:
                yield int(one), self, torch.arange(self.points)
                return
            index = (values == one).nonzero().flatten()
            yield int(one), self._part(index), index

    def _part(self, index: Tensor) -> Batch:
        symbols = {
            name: value[index] if isinstance(value, Tensor) and len(value) > 1 else value
            for name, value in self.symbols.items()
        }
        tiles = {key: values[index] for key, values in self.tiles.items()}
        rest = (self.sizes, self.memory, self.operand, self.meter)
        return Batch(len(index), symbols, *rest, tiles)

    def join(self, parts: list[tuple[Batch, Tensor]], body: tuple[ir.Node, ...]) -> None:
        """Takes from the parts the tiles that their statements may have written."""
        if len(parts) == 1:
            return
        for key in {tile.key for node in ir.nodes(body) for tile in ir.writes(node)}:
            held = [(part.tiles[key], index) for part, index in parts if key in part.tiles]
            if held:
                whole = torch.full((self.points, *held[0][0].shape[1:]), math.nan)
                for values, index in held:
                    whole[index] = values
                self.tiles[key] = whole


def batches(
    kernel: ir.Kernel, sizes: Mapping[str, int | float], memory: Memory, operand: torch.dtype, meter: Meter
) -> Iterator[Batch]:
    """All grid points of the kernel in order, as many together as memory allows."""
    whole = Batch(1, dict(sizes), sizes, memory, operand, meter)
    for matrix in kernel.matrices:
        if matrix.workspace:
            memory.add_workspace(matrix, whole)
    extents = [_extent(axis, whole) for axis in kernel.grid]
    tiles = {tile.key: tile for node in ir.nodes(kernel.body) for tile in ir.writes(node)}
    each = 0
    for tile in tiles.values():
        with suppress(Fault):  # the statement that uses the tile says so, with its line
            each += 4 * math.prod(tile_shape(tile, sizes))
    total, chunk = math.prod(extents), max(1, CHUNK_BYTES // max(1, each))
    for first in range(0, total, chunk):
        points = torch.arange(first, min(first + chunk, total))
        indices = torch.unravel_index(points, extents) if extents else ()
        grid = {axis.name: index.view(-1, 1, 1) for axis, index in zip(kernel.grid, indices, strict=True)}
        yield Batch(len(points), {**sizes, **grid}, sizes, memory, operand, meter)


def _extent(axis: ir.GridAxis, scope: Batch) -> int:
    extent = integer(evaluate(axis.extent, scope), f"the extent of grid axis {axis.name}")
    if isinstance(extent, Tensor) or extent < 0:
        raise Fault(f"the extent of grid axis {axis.name} is {extent}")
    return extent
