"""Owns the schedule of a Hopper kernel: who copies, who computes, how far ahead, in which order.

A schedule is part of a tile choice, so that tables, tuning and records hold it as they hold tiles: every
field is a whole number there. It never changes what is computed beyond rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

from harness.tl import ir

Grid = Literal["blocks", "static", "dynamic"]
GRIDS: tuple[Grid, ...] = ("blocks", "static", "dynamic")
ROWS = 64  # of a tile that one warpgroup computes: the M of its instruction

_OFF = ("false", "off", 0)


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

    @classmethod
    def of(cls, program: ir.Program, choice: Mapping[str, int] | None = None) -> Schedule:
        """The choice, then the program's own line (its first values), then the defaults."""
        given = {key: values[0] for key, values in program.schedule if values}
        known = {field.name for field in fields(cls)}
        told = {key: _number(key, value) for key, value in given.items() if key in known}
        if given.get("order") is not None:
            told["longest_first"] = int(given["order"] == "longest_first")
        return cls(**{**told, **{k: v for k, v in (choice or {}).items() if k in known}})

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


def _number(key: str, value: int | str) -> int:
    if key == "persistent":
        return GRIDS.index(value) if value in GRIDS else 0 if value in _OFF else 2
    if isinstance(value, int):
        return value
    return int(value not in _OFF)
