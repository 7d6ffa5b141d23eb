"""Owns which channels a kernel has under a schedule: what the roles of a block hand each other, and where.

A tile that the producer copies is a channel from it to the consumers: a ring of `stages` places where a
loop fills it, else one place. What is divided by rows has places of its own for each consumer. A result
leaves through one place of each consumer, which can be that of its query rows. With a grid that counts, the
producer hands on the next tile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from harness.tl import ir
from harness.tl.evaluate import evaluate
from harness.tl.lower.copies import without_copies
from harness.tl.lower.facts import leaves_through
from harness.tl.schedule import Schedule
from harness.tl.syntax import Level

BARRIER_BYTES = 8
SLOT_BYTES = 4
SLOT = "next tile"
BYTES = {"fp8": 1, "fp16": 2, "bf16": 2, "tf32": 4, "fp32": 4, "int32": 4, "fp64": 8}


class Kind(StrEnum):
    RING = "ring"  # filled in a loop, by the producer
    BUFFER = "buffer"  # filled outside of loops, by the producer
    OWN = "own"  # written by the consumers
    OUTPUT = "output"  # written by a consumer, read by the copy to global memory
    SLOT = "slot"  # the number of the next tile


@dataclass(frozen=True, slots=True)
class Channel:
    """Places of one kind of content. `split`: by rows, so that each consumer has places of its own.

    `through`: of a result, the tile whose place it leaves through, once nobody reads that any more.
    """

    name: str
    kind: Kind
    places: int
    tile: ir.Tile | None = None
    split: bool = False
    dtype: str | None = None  # None: that of the operands
    through: ir.Tile | None = None

    def place_bytes(self, values: Mapping[str, object], width: int) -> int:
        """Bytes of one place, those of all consumers together; `width`: of an operand's element."""
        if self.tile is None:
            return SLOT_BYTES
        rows, columns = (int(evaluate(extent, values)) for extent in self.tile.shape)
        return rows * columns * (BYTES.get(self.dtype, width) if self.dtype else width)

    def fits(self, values: Mapping[str, object]) -> bool:
        """Whether a result needs no place of its own for these sizes."""
        if self.tile is None or self.through is None:
            return False
        return holds(int(evaluate(self.through.shape[1], values)), int(evaluate(self.tile.shape[1], values)))

    def barriers(self, consumers: int) -> int:
        """A full and an empty one for each place that one role fills and another reads."""
        if self.kind in (Kind.OWN, Kind.OUTPUT):
            return 0
        return 2 * self.places * (consumers if self.split else 1)


def holds(columns: int, result: int) -> bool:
    """Whether a place of so many columns takes a result of so many: all of it, or the larger of the two
    powers of two that its columns come in."""
    return result in (columns, 1 << (columns.bit_length() - 1))


def channels(kernel: ir.Kernel, schedule: Schedule) -> tuple[Channel, ...]:
    """The channels, in the order of the text; those of results and of the next tile last."""
    kernel = without_copies(kernel)
    nodes = list(ir.nodes(kernel.body))
    looped = {id(n) for f in nodes if isinstance(f, ir.For) for n in ir.nodes(f.body)}
    whole = _whole(nodes)
    found: dict[ir.Tile, Channel] = {}
    for node in nodes:
        for tile in ir.writes(node):
            load = isinstance(node, ir.Load)
            fast = tile.level is Level.SHARED or (load and tile in _operands(nodes))
            if not fast or isinstance(node, ir.Init) or (tile in found and not load):
                continue
            if not load:
                kind = Kind.OWN
            elif id(node) in looped or (tile in found and found[tile].kind is Kind.RING):
                kind = Kind.RING
            else:
                kind = Kind.BUFFER
            places = {Kind.RING: schedule.stages, Kind.BUFFER: schedule.q_stages}.get(kind, 1)
            found[tile] = Channel(tile.name, kind, places, tile, tile not in whole, tile.dtype)
    outputs: dict[str, Channel] = {}
    reused = leaves_through(kernel) if schedule.reuse else None
    for node in nodes:
        if isinstance(node, ir.Store) and node.tile.shape[1] != ir.Const(1):
            dtype = node.matrix.dtype or ("fp32" if node.matrix.workspace else None)
            name = f"{node.matrix.name} out"
            through = reused if reused is not None and found[reused].split and dtype is None else None
            outputs[name] = Channel(name, Kind.OUTPUT, 1, node.tile, True, dtype, through)
    slot = (Channel(SLOT, Kind.SLOT, 1),) if schedule.grid == "dynamic" else ()
    return (*found.values(), *outputs.values(), *slot)


def _operands(nodes: list[ir.Node]) -> set[ir.Tile]:
    """Tiles that enter products: an instruction reads its second operand from shared memory."""
    return {operand.tile for n in nodes if isinstance(n, ir.Gemm) for operand in (n.a, n.b)}


def _whole(nodes: list[ir.Node]) -> set[ir.Tile]:
    """Tiles of which every consumer needs all rows: second operands, rows of one, and what makes them."""
    found = {t for n in nodes for t in (*ir.reads(n), *ir.writes(n)) if t.shape[0] == ir.Const(1)}
    for node in nodes:
        if isinstance(node, ir.Gemm):
            found.add(node.b.tile)
            if node.a.transposed:
                found.add(node.a.tile)
    before = -1
    while before != len(found):
        before = len(found)
        for node in nodes:
            if isinstance(node, ir.Map | ir.Move) and set(ir.writes(node)) & found:
                found.update(t for t in ir.reads(node) if t.shape[0] != ir.Const(1))
    return found
