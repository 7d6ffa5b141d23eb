"""Owns how inputs change between timed calls: rows trade places, so that no call sees what another saw.

A kernel that keeps results, by pointer, by shape or by what the inputs hold, gives an output that is wrong
in whole rows. The judge draws the moves and makes them on its own copy too; the worker makes them outside
of what is timed.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from torch import Tensor

from harness.worker.protocol import ImageLayout

# Few enough to miss what a kernel samples of its inputs, and even one is a 64th of a tile of the tolerance:
# exchanged, it is off by 0.18 of the tile's RMS, some ten times what is allowed.
MOST_ROWS, SHARE = 16, 64


@dataclass(frozen=True)
class Move:
    """Rows `first`... and `second`... of a tensor seen as (batch * seqlen, heads * dim) trade places."""

    tensor: str
    first: int
    second: int
    rows: int


def draw(layout: ImageLayout, lot: random.Random) -> tuple[Move, ...]:
    """One move for each input of four axes that has two rows or more."""
    found = []
    for t in layout.tensors:
        total = prod(t.shape[:2])
        if t.role == "input" and len(t.shape) == 4 and total >= 2:
            rows = max(1, min(MOST_ROWS, total // SHARE))
            first = lot.randrange(total - 2 * rows + 1)
            second = lot.randrange(first + rows, total - rows + 1)
            found.append(Move(t.name, first, second, rows))
    return tuple(found)


def make(tensors: Mapping[str, Tensor], moves: Iterable[Move]) -> None:
    """In place, in order; on a GPU as plain copies of memory, three for each move."""
    for move in moves:
        tensor = tensors[move.tensor]
        flat = tensor.view(-1, prod(tensor.shape[2:]))
        first = flat[move.first : move.first + move.rows]
        second = flat[move.second : move.second + move.rows]
        kept = first.clone()
        first.copy_(second)
        second.copy_(kept)


def to_json(moves: Sequence[Move]) -> list[tuple[str, int, int, int]]:
    return [(m.tensor, m.first, m.second, m.rows) for m in moves]


def from_json(told: Iterable[tuple[str, int, int, int]]) -> tuple[Move, ...]:
    return tuple(Move(*move) for move in told)
