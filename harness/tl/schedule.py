"""Owns the schedule of a Hopper kernel: who copies, who computes, how far ahead, in which order.

A schedule is part of a tile choice, so that tables, tuning and records hold it as they hold tiles: every
field is a whole number there. It never changes what is computed beyond rounding.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Literal

from harness.tl import ir

Grid = Literal["blocks", "static", "dynamic"]
GRIDS: tuple[Grid, ...] = ("blocks", "static", "dynamic")
ROWS = 64  # of a tile that one warpgroup computes: the M of its instruction
WARPGROUP = 128  # threads
ROLE_KEYS = (
    "producer",
    "consumers",
    "pingpong",
    "registers",
)  # need sm_90: warps with registers of their own

_OFF = ("false", "off", 0)
_FILE = 65_536  # 32-bit registers of a multiprocessor
_STEP, _LEAST, _MOST = 8, 24, 240  # what `setmaxnreg` takes
_PRODUCER_MOST = 32  # registers that a warp which only copies can use


@dataclass(frozen=True, slots=True)
class Schedule:
    """What the text of a Hopper kernel depends on, besides the program and its tiles."""

    consumers: int = 2  # warpgroups that compute, 64 rows of the tile each
    stages: int = 2  # places of each channel that a loop fills
    overlap: int = 1  # 1: products that need nothing of this round are issued a round ahead
    pingpong: int = 0  # 1: consumers take turns in issuing their products
    persistent: int = 2  # index into GRIDS: one block a tile; a fixed stride; a counter
    longest_first: int = 1  # 1: tiles with the longest loops first, within a group of heads
    heads: int = 0  # heads of a group, whose keys and values should fit the L2; 0: as many as fit
    registers: int = 0  # of a consumer's thread; 0: what the file leaves
    q_stages: int = 1  # places of each channel that no loop fills, as a rule that of the query rows
    ahead: int = 0  # 1: the next tile's ticket is drawn as a tile begins, and its indices are handed over
    carry: int = 0  # 1: the next tile's first products are issued before this tile's result leaves
    arrivals: int = 0  # 1: every thread of a consumer gives a place back by itself
    rescale: int = 0  # of RESCALES
    reuse: int = 0  # 1: a consumer's result leaves through the place that its query rows came to

    @classmethod
    def of(cls, program: ir.Program, choice: Mapping[str, int] | None = None) -> Schedule:
        """The choice, then the program's own line (its first values), then the defaults."""
        told = {field: values[0] for field, values in spanned(program).items()}
        return cls(**{**told, **{k: v for k, v in (choice or {}).items() if k in FIELDS}})

    @classmethod
    def every(cls, program: ir.Program) -> Iterator[Schedule]:
        """Each schedule that the sets of the program's own line span, the first values first."""
        told = spanned(program)
        for pick in itertools.product(*told.values()):
            yield cls(**dict(zip(told, pick, strict=True)))

    @property
    def grid(self) -> Grid:
        return GRIDS[self.persistent]

    @property
    def rows(self) -> int:
        """Rows of a block's tile."""
        return ROWS * self.consumers

    @property
    def choice(self) -> dict[str, int]:
        """As part of a tile choice."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def pool(self) -> int:
        """Registers that the warpgroups of a block share out: what it is launched with.

        The producer's warps are padded to a warpgroup; all threads start with the same multiple of 8.
        """
        threads = WARPGROUP * (self.consumers + 1)
        return min(_FILE // threads, 255) // _STEP * _STEP * threads

    @property
    def consumer_registers(self) -> int:
        """Registers of a consumer's thread: as asked, or what the others leave (240, 240, 160, 112)."""
        left = (self.pool - _LEAST * WARPGROUP) // (WARPGROUP * self.consumers)
        return self.registers or min(_MOST, left // _STEP * _STEP)

    @property
    def producer_registers(self) -> int:
        """Registers of the producer's thread; less than 24 where the consumers ask for too many."""
        left = self.pool // WARPGROUP - self.consumers * self.consumer_registers
        return max(0, min(_PRODUCER_MOST, left // _STEP * _STEP))


FIELDS = frozenset(field.name for field in fields(Schedule))
OPTIONAL = ("q_stages", "ahead", "carry", "arrivals", "rescale", "reuse")  # off, they leave no trace in code
# Where a softmax rescales what it has summed up. 0: every round; 1: only rows whose maximum has grown by a
# factor that counts, and only in warps that have such rows; 2: and the left operand of the last product is
# rounded while the product before it may still run.
RESCALES = range(3)


def asks_for_roles(program: ir.Program) -> bool:
    """Whether the program's own line asks for warps that copy and warps that compute."""
    given = dict(program.schedule)
    return any(value not in _OFF for key in ROLE_KEYS for value in given.get(key, ())[:1])


def decided(program: ir.Program) -> dict[str, int]:
    """What the program's own schedule leaves no choice about: its keys of one value."""
    told = Schedule.of(program).choice
    names = [("longest_first" if key == "order" else key, values) for key, values in program.schedule]
    return {name: told[name] for name, values in names if len(values) == 1 and name in told}


def spanned(program: ir.Program) -> dict[str, tuple[int, ...]]:
    """Fields of a schedule with the values that the program's own line gives them."""
    given = {key: values for key, values in program.schedule if values}
    told = {
        key: tuple(dict.fromkeys(_number(key, value) for value in values))
        for key, values in given.items()
        if key in FIELDS and key != "longest_first"
    }
    if "order" in given:
        told["longest_first"] = tuple(dict.fromkeys(int(v == "longest_first") for v in given["order"]))
    return told


def _number(key: str, value: int | str) -> int:
    if key == "persistent":
        return GRIDS.index(value) if value in GRIDS else 0 if value in _OFF else 2
    if isinstance(value, int):
        return value
    return int(value not in _OFF)
