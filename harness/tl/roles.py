"""Owns what a block with roles takes of a multiprocessor: shared memory by channel, registers by role.

One kernel under one schedule. Sizes are those of the resolved tiles, for any tile choice and head dims.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from harness.tl import ir
from harness.tl.channels import BARRIER_BYTES, BYTES, channels
from harness.tl.checks.capacity import KernelTiles
from harness.tl.evaluate import evaluate
from harness.tl.lower.copies import without_copies
from harness.tl.lower.facts import ahead
from harness.tl.schedule import WARPGROUP, Schedule
from harness.tl.syntax import Level

# Addresses, counters, barriers, factors of a step. Measured: three consumers of 160 registers with 132 for
# tiles and state do not spill (head dimension 64), so it is 28 at most.
_REST = 24
_COPYING = 24  # registers of a thread that only copies
_LANES = 32  # rows of a tile are held by 32 threads of a warpgroup twice: two rows a thread


@dataclass(frozen=True, slots=True)
class Taken:
    """`shared`: (channel, bytes of a place, places); `registers`: (what, how many of a consumer's thread)."""

    shared: tuple[tuple[str, int, int], ...]
    barriers: int
    registers: tuple[tuple[str, int], ...]
    given: int  # registers that a consumer's thread has
    producer: int  # registers that the producer's thread has

    @property
    def shared_bytes(self) -> int:
        return sum(size * places for _, size, places in self.shared) + self.barriers * BARRIER_BYTES

    @property
    def consumer(self) -> int:
        """Registers that a consumer's thread needs, about."""
        return sum(count for _, count in self.registers)

    @property
    def startable(self) -> bool:
        """Whether the producer keeps the registers that `setmaxnreg` takes at least."""
        return self.producer >= _COPYING

    @property
    def spills(self) -> bool:
        return self.consumer > self.given

    @property
    def shared_words(self) -> str:
        """The sum, by channel and place."""
        parts = [
            f"{name} {_size(size)}" + (f" x {places} stages" if places > 1 else "")
            for name, size, places in self.shared
        ]
        parts.append(f"{self.barriers} barriers {_size(self.barriers * BARRIER_BYTES)}")
        return f"{' + '.join(parts)} = {self.shared_bytes / 1024:.1f} KB"

    @property
    def register_words(self) -> str:
        """The sum of a consumer's thread."""
        parts = " + ".join(f"{name} {count}" for name, count in self.registers)
        return f"{parts} = {self.consumer} of {self.given}"


class RoleDemand:
    """What a kernel takes under a schedule, for any sizes."""

    def __init__(self, kernel: ir.Kernel, schedule: Schedule, dtype: str) -> None:
        self.schedule = schedule
        self.width = BYTES.get(dtype, 2)
        self.channels = channels(kernel, schedule)
        self.barriers = sum(c.barriers(schedule.consumers) for c in self.channels)
        self.tiles = KernelTiles(kernel)
        nodes = list(ir.nodes(without_copies(kernel).body))
        rotates = any(ahead(n) is not None for n in nodes if isinstance(n, ir.For))
        operands = {n.a.tile: None for n in nodes if isinstance(n, ir.Gemm)}
        early = schedule.overlap and rotates  # then an operand of this round lives beside the next scores
        self.operands = [t for t in operands if t.level is Level.REGISTER] if early else []
        self.state = dict.fromkeys(
            n.tile
            for n in nodes
            if isinstance(n, ir.Init) and n.value is not None and n.tile.shape[1] == ir.Const(1)
        )

    def of(self, values: Mapping[str, object]) -> Taken:
        """`values`: of tile parameters and sizes. Raises KeyError for a missing one."""
        own = [c for c in self.channels if not c.fits(values)]
        shared = tuple((c.name, c.place_bytes(values, self.width), c.places) for c in own)
        threads = WARPGROUP * self.schedule.consumers
        passing = max((_elements(t, values) for t in self.tiles.others), default=0)
        vectors = sum(_elements(t, values) for t in self.state)
        parts = [
            ("scores", -(-passing // threads)),
            *(
                (f"{t.name} as operand", _elements(t, values) * self.width // 4 // threads)
                for t in self.operands
            ),
            *((t.name, -(-_elements(t, values) // threads)) for t in self.tiles.accumulators),
            ("state of rows", -(-vectors // (_LANES * self.schedule.consumers))),
            ("addresses and the rest", _REST),
        ]
        given, producer = self.schedule.consumer_registers, self.schedule.producer_registers
        return Taken(shared, self.barriers, tuple(p for p in parts if p[1]), given, producer)


def row_extent(kernel: ir.Kernel) -> ir.Expr | None:
    """The rows of a block's tile: those of the accumulators; None for a kernel without products."""
    tiles = KernelTiles(kernel).accumulators
    if tiles:
        return tiles[0].shape[0]
    return next((n.result.shape[0] for n in ir.nodes(kernel.body) if isinstance(n, ir.Gemm)), None)


def _elements(tile: ir.Tile, values: Mapping[str, object]) -> int:
    rows, columns = (int(evaluate(extent, values)) for extent in tile.shape)
    return rows * columns


def _size(count: int) -> str:
    return f"{count / 1024:g} KB" if count >= 1024 else f"{count} B"
