"""Owns which tile choice a compiled candidate takes for which call: a table, and its default."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from harness.targets import Target
from harness.tl import ir
from harness.tl.evaluate import evaluate
from harness.tl.syntax import Level

_LAUNCH = {"warps": (4, 8), "stages": (2, 3)}  # what is tried where the schedule says nothing
_PREFERRED = {"warps": 8, "stages": 2}


ANY_DIM = 1 << 10  # of a row that serves every head dimension


@dataclass(frozen=True, slots=True)
class Row:
    """A choice and the calls it serves: elements of that many bytes, head dimensions up to `dim`,
    the longer of its sequences at least `seq`."""

    bytes: int
    dim: int
    seq: int
    choice: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, bytes: int, dim: int, seq: int, choice: Mapping[str, int]) -> Row:
        return cls(bytes, dim, seq, tuple(choice.items()))


def candidates(program: ir.Program) -> Iterator[dict[str, int]]:
    """Every tile choice with every launch that the schedule leaves open."""
    space = {name: list(choices) for name, choices in program.parameters}
    schedule = dict(program.schedule)
    for key, usual in _LAUNCH.items():
        given = [c for c in schedule.get(key, ()) if isinstance(c, int)]
        space[key] = given or list(usual)
    if "overlap" in schedule:
        space["overlap"] = [int(c not in ("off", "false", 0)) for c in schedule["overlap"]]
    for values in itertools.product(*space.values()):
        yield dict(zip(space, values, strict=True))


# By identity, since hashing a whole kernel costs more than the answer; the last kernel asked about.
_LAST: list[tuple[ir.Kernel, frozenset[ir.Tile]]] = []


def _written_in_loops(kernel: ir.Kernel) -> frozenset[ir.Tile]:
    if not _LAST or _LAST[0][0] is not kernel:
        loops = [n for n in ir.nodes(kernel.body) if isinstance(n, ir.For)]
        found = frozenset(t for loop in loops for x in ir.nodes(loop.body) for t in ir.writes(x))
        _LAST[:] = [(kernel, found)]
    return _LAST[0][1]


def shared_bytes(program: ir.Program, choice: Mapping[str, int], dim: int, dim_v: int, element: int) -> int:
    """Bytes of shared memory a block needs: tiles loaded in a loop once for each stage."""
    env = {**choice, "dim": dim, "dim_v": dim_v}
    total = 0
    for kernel in program.kernels:
        inside = _written_in_loops(kernel)
        here = 0
        for tile in kernel.tiles:
            if tile.level is Level.SHARED:
                try:
                    size = int(evaluate(tile.shape[0], env) * evaluate(tile.shape[1], env)) * element
                except KeyError:
                    continue
                here += size * (choice.get("stages", 2) if tile in inside else 1)
        total = max(total, here)
    return total


def accumulator_registers(program: ir.Program, choice: Mapping[str, int], dim: int, dim_v: int) -> float:
    """32-bit registers a thread needs for the register tiles, if all live at once."""
    env = {**choice, "dim": dim, "dim_v": dim_v}
    most = 0
    for kernel in program.kernels:
        here = 0
        for tile in kernel.tiles:
            if tile.level is Level.REGISTER:
                try:
                    here += int(evaluate(tile.shape[0], env) * evaluate(tile.shape[1], env))
                except KeyError:
                    continue
        most = max(most, here)
    return most / (32 * choice.get("warps", 4))


def default_table(program: ir.Program, target: Target | None) -> tuple[Row, ...]:
    """For each element size and head dimension the largest tiles that fit; measured tables are better."""
    limit = (target.smem_per_block if target is not None and target.smem_per_block else 99 * 1024) - 4096
    rows = []
    for element, dim in itertools.product((2, 4), (64, 128, 256)):
        registers = 160 if element == 2 else 96
        fits = [
            c
            for c in candidates(program)
            if shared_bytes(program, c, dim, dim, element) <= limit
            and accumulator_registers(program, c, dim, dim) <= registers
        ]
        pool = fits or [min(candidates(program), key=lambda c: shared_bytes(program, c, dim, dim, element))]
        rows.append(Row.of(element, dim, 0, max(pool, key=lambda c: _merit(program, c))))
    return tuple(rows)


def _merit(program: ir.Program, choice: Mapping[str, int]) -> tuple[int, ...]:
    """Large tiles first, up to 128 rows and 64 columns; then the usual launch."""
    sizes = [choice[name] for name, _ in program.parameters]
    near = [-abs(choice[key] - usual) for key, usual in _PREFERRED.items() if key in choice]
    return (*(min(size, 128 if n == 0 else 64) for n, size in enumerate(sizes)), *near)
