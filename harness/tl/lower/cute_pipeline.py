"""Owns when a loop's tiles are fetched: which round ahead, at which barrier, how many may be pending.

A round has a barrier where a tile that it loads is first used: there the tile must have arrived for every
thread, and every thread is past what stands before. So a tile's place in shared memory is free at the first
barrier after its last use, in this round or at the first of the next, and there the fetch of the round that
takes its place begins. What is begun at one barrier is one group of copies.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.tl import ir
from harness.tl.syntax import Level


@dataclass(frozen=True, slots=True)
class Fetch:
    """One Load of a loop. `ahead`: rounds, beyond STAGES, from the barrier's to the one it fetches for."""

    load: ir.Load
    first_use: int  # barrier at which it must have arrived
    begun: int  # barrier at which it is begun
    ahead: int  # 0 or -1
    extra_slots: int  # 0 or 1: places beyond STAGES

    @property
    def slots(self) -> str:
        """How many places of shared memory the tile has, in C++ and in Python."""
        return f"STAGES + {self.extra_slots}" if self.extra_slots else "STAGES"

    def pending(self, barriers: int) -> tuple[int, int]:
        """(a, b): when it must have arrived, a * STAGES + b younger groups may be on their way."""
        return barriers, barriers * self.ahead + self.first_use - 1 - self.begun


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A loop whose tiles are fetched ahead. `barriers`: index of the statement before which each stands."""

    barriers: tuple[int, ...]
    fetches: tuple[Fetch, ...]

    def begun_at(self, barrier: int) -> tuple[Fetch, ...]:
        return tuple(f for f in self.fetches if f.begun == barrier)

    def pending_at(self, barrier: int) -> str:
        """C++ of how many groups may be on their way once this barrier is passed."""
        bounds = [f.pending(len(self.barriers)) for f in self.fetches if f.first_use == barrier]
        (times,) = {a for a, _ in bounds}
        rest = min(b for _, b in bounds)
        factor = "STAGES" if times == 1 else f"{times} * STAGES"
        return factor if rest == 0 else f"{factor} {'+' if rest > 0 else '-'} {abs(rest)}"


def pipeline(loop: ir.For) -> Pipeline | None:
    """None where the loop's loads cannot run ahead: it steps, loads in a branch, or has nothing to load."""
    loads = [n for n in loop.body if isinstance(n, ir.Load) and n.tile.level is Level.SHARED]
    nested = [n for n in loop.body if isinstance(n, ir.For | ir.If)]
    if not loads or loop.step != ir.Const(1) or len({n.tile for n in loads}) != len(loads):
        return None
    if any(isinstance(n, ir.Load) and n.tile.level is Level.SHARED for n in ir.nodes(tuple(nested))):
        return None
    tiles = {n.tile for n in loads}
    if any(tiles & set(ir.writes(n)) for n in ir.nodes(loop.body) if not isinstance(n, ir.Load)):
        return None
    uses = {t: [at for at, n in enumerate(loop.body) if _reads(n, t)] for t in tiles}
    if any(not u or u[0] < loop.body.index(n) for n in loads for u in (uses[n.tile],)):
        return None
    barriers = tuple(sorted({u[0] for u in uses.values()}))
    return Pipeline(barriers, tuple(_fetch(n, uses[n.tile], barriers) for n in loads))


def _fetch(load: ir.Load, uses: list[int], barriers: tuple[int, ...]) -> Fetch:
    first = barriers.index(uses[0])
    after = [n for n, at in enumerate(barriers) if at > uses[-1]]
    if after:  # free before the round ends: its place is for STAGES rounds later
        return Fetch(load, first, after[0], 0, 0)
    if first > 0:  # free at the first barrier of the next round, and not needed before a later one
        return Fetch(load, first, 0, -1, 0)
    return Fetch(load, first, 0, 0, 1)  # needed there at once: one more place


def _reads(node: ir.Node, tile: ir.Tile) -> bool:
    return any(tile in ir.reads(n) for n in ir.nodes((node,)))
