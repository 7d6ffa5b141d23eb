"""Owns which tile choices a CuTe candidate can have, and which it takes where nothing was measured."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import suppress

from harness.targets import Target
from harness.tl import ir
from harness.tl.evaluate import evaluate
from harness.tl.lower.choices import Row, candidates
from harness.tl.lower.cute_pipeline import pipeline
from harness.tl.syntax import Level

DIMS = (64, 128, 192, 256)  # head dimensions that a default table has rows for
LEVELS = (1, 3)  # of ptxas that a search tries
USUAL = 1  # on an H100 as fast as 2 and 3 or faster in most cells, and nothing of the core tasks spills
_REGISTERS = 192  # 32-bit registers of a thread that accumulators may take; of 255, the rest is addresses
_OLD_REGISTERS = 160  # before sm_80, where a tile passes through registers on its way to shared memory


def complete(program: ir.Program, choice: Mapping[str, int]) -> dict[str, int]:
    """The choice with defaults for what it leaves open, and no more warps than its rows have work for."""
    launch = {"warps": 4, "stages": 2}
    for key, (first, *_) in program.schedule:
        if key in launch and isinstance(first, int):
            launch[key] = first
    full = {**program.defaults, **launch, **choice}
    full.pop("overlap", None)
    full.setdefault("optimize", USUAL)
    if "warps" not in choice:
        full["warps"] = min(full["warps"], max(1, min(_row_counts(program, full), default=64) // 16))
    return full


def space(program: ir.Program) -> Iterator[dict[str, int]]:
    """Every choice that the program and its schedule leave open and that CuTe code can have."""
    seen: set[tuple[tuple[str, int], ...]] = set()
    for choice, level in itertools.product(candidates(program), LEVELS):
        full = {key: value for key, value in choice.items() if key != "overlap"} | {"optimize": level}
        key = tuple(full.items())
        if key not in seen and unfit(program, full) is None:
            seen.add(key)
            yield full


def unfit(program: ir.Program, choice: Mapping[str, int]) -> str | None:
    """Why CuTe code cannot have the choice; None where it can."""
    for name, _ in program.parameters:
        if choice[name] < 16 or choice[name] % 16:
            return f"tile {name} = {choice[name]}: tensor cores work on multiples of 16"
    warps = choice["warps"]
    if not 1 <= warps <= 16 or warps & (warps - 1):
        return f"warps = {warps}: choose 1, 2, 4, 8 or 16"
    if choice["stages"] < 2:
        return f"stages = {choice['stages']}: one tile in use and one on its way are the least"
    if not 1 <= choice["optimize"] <= 3:
        return f"optimize = {choice['optimize']}: ptxas has the levels 1 to 3 for this"
    for rows in _row_counts(program, choice):
        if rows % (16 * warps):
            return f"{rows} rows cannot be shared by {warps} warps of 16 rows each"
    return None


def _row_counts(program: ir.Program, choice: Mapping[str, int]) -> set[int]:
    """Rows of register tiles, of those that the choice settles."""
    found: set[int] = set()
    for kernel in program.kernels:
        for tile in kernel.tiles:
            if tile.level is Level.REGISTER:
                with suppress(KeyError):
                    found.add(int(evaluate(tile.shape[0], dict(choice))))
    return found - {1}


def _size(tile: ir.Tile, env: Mapping[str, int]) -> tuple[int, int] | None:
    """Rows and columns; None for a tile as long as a sequence, which has no code anyway."""
    try:
        rows, cols = (int(evaluate(n, dict(env))) for n in tile.shape)
    except KeyError:
        return None
    return rows, cols


def shared_bytes(program: ir.Program, choice: Mapping[str, int], dim: int, dim_v: int) -> int:
    """Bytes of shared memory a block needs: whole panels of 64 columns, as many places as a tile has."""
    env = {**choice, "dim": dim, "dim_v": dim_v}
    most = 0
    for kernel in program.kernels:
        places: dict[ir.Tile, int] = {}
        for loop in ir.nodes(kernel.body):
            found = pipeline(loop) if isinstance(loop, ir.For) else None
            for fetch in found.fetches if found else ():
                count = choice["stages"] - 1 + fetch.extra_slots
                places[fetch.load.tile] = max(count, places.get(fetch.load.tile, 0))
        used = {t for n in ir.nodes(kernel.body) for t in (*ir.reads(n), *ir.writes(n))}
        here = 0
        for tile in used:
            size = _size(tile, env) if tile.level is Level.SHARED else None
            if size is not None:
                here += 2 * places.get(tile, 1) * size[0] * -(-size[1] // 64) * 64
        most = max(most, here)
    return most


def accumulator_registers(program: ir.Program, choice: Mapping[str, int], dim: int, dim_v: int) -> int:
    """32-bit registers that the two largest register tiles take of a thread: others live in their place."""
    env = {**choice, "dim": dim, "dim_v": dim_v}
    most = 0
    for kernel in program.kernels:
        known = (_size(t, env) for t in kernel.tiles if t.level is Level.REGISTER)
        sizes = sorted(size[0] * size[1] for size in known if size is not None)
        most = max(most, sum(sizes[-2:]) // (32 * choice["warps"]))
    return most


def fitting(program: ir.Program, target: Target | None, dim: int, dim_v: int) -> list[dict[str, int]]:
    """Choices whose tiles have room in shared memory and registers."""
    limit = target.smem_per_block if target is not None and target.smem_per_block else 99 << 10
    old = target is not None and target.capability is not None and target.capability < (8, 0)
    most = _OLD_REGISTERS if old else _REGISTERS
    return [
        choice for choice in space(program)
        if shared_bytes(program, choice, dim, dim_v) <= limit
        and accumulator_registers(program, choice, dim, dim_v) <= most
    ]  # fmt: skip


def default_table(program: ir.Program, target: Target | None) -> tuple[Row, ...]:
    """For each head dimension the choice that was fastest where it was measured; else what has room."""
    rows = []
    for dim in DIMS:
        dim_v = 128 if dim == 192 else dim
        pool = [c for c in fitting(program, target, dim, dim_v) if c["optimize"] == USUAL]
        if not pool:
            pool = [c for c in space(program) if c["optimize"] == USUAL]
            pool = [min(pool, key=lambda c: shared_bytes(program, c, dim, dim_v))] if pool else []
        if not pool:
            pool = [complete(program, {})]
        rows.append(Row.of(2, dim, 0, max(pool, key=lambda c: _merit(program, target, c, dim))))
    return tuple(rows)


def _merit(
    program: ir.Program, target: Target | None, choice: Mapping[str, int], dim: int
) -> tuple[int, ...]:
    """As measured on an H100 with sm_80's instructions: rows of a warp first, since they share what ldmatrix
    brings; then columns, up to what registers allow; then fewer warps and tiles in flight."""
    rows, *columns = [choice[name] for name, _ in program.parameters] or [64]
    cap = 128 if dim <= 64 else 64
    old = target is not None and target.capability is not None and target.capability < (8, 0)
    if old:  # nothing is copied behind the warps' back: more warps hide what each waits for
        return (min(choice["warps"], 8), *(min(c, 64) for c in columns), rows, -choice["stages"])
    per_warp = rows // choice["warps"]
    return (per_warp, *(min(c, cap) for c in columns), rows, -choice["stages"], -sum(columns))
