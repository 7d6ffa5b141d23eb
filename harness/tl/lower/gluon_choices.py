"""Owns which choices a Gluon candidate can have, and which it takes where nothing was measured."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import fields, replace

from harness.tl import ir
from harness.tl.channels import holds
from harness.tl.evaluate import evaluate
from harness.tl.lower.choices import Row
from harness.tl.lower.facts import leaves_through, may_rescale_rarely
from harness.tl.lower.gluon_reach import reaches
from harness.tl.lower.gluon_view import view
from harness.tl.lower.lowered import LowerError
from harness.tl.schedule import GRIDS, RESCALES, ROWS, Schedule, decided
from harness.tl.syntax import Level

DIMS = (64, 128, 192, 256)  # head dimensions that a default table has rows for
CONSUMERS = (1, 2, 3, 4)
REGISTERS = {
    1: (240, 24),
    2: (240, 24),
    3: (160, 32),
    4: (112, 32),
}  # of a consumer's thread and of the producer's, by consumers
LIMIT = 227 << 10  # bytes of shared memory of a block on Hopper
# Places of a consumer's query rows, and whether its result leaves through one of them; the best that fits.
PLACES = ((2, 0), (1, 0), (1, 1))
# At a head dimension of 128, of loops over so many keys or more.
LONG_FROM, LONG_COLUMNS = 2048, 64
LONG = {"consumers": 3, "stages": 4, "pingpong": 0, "q_stages": 1, "reuse": 0}
# At a head dimension of 64, of loops over fewer keys that slide with the query rows: a window's.
SHORT_BELOW, SHORT_COLUMNS = 512, 64
SHORT = {
    "consumers": 2,
    "stages": 4,
    "pingpong": 0,
    "q_stages": 2,
    "ahead": 1,
    "longest_first": 0,
    "rescale": 0,
    "reuse": 0,
}
_KEYS = tuple(field.name for field in fields(Schedule))
_BARRIERS = 1 << 10  # room for barriers


def rows_of(program: ir.Program) -> ir.Expr:
    """The tile parameter, or the number, that counts a block's query rows; the same in all kernels."""
    found = {view(kernel).rows for kernel in program.kernels}
    if len(found) != 1:
        raise LowerError(
            "the program's kernels have tiles of different query rows", None, "give them one parameter"
        )
    return found.pop()


def complete(
    program: ir.Program, choice: Mapping[str, int], row: Mapping[str, int] | None = None
) -> dict[str, int]:
    """The choice, then `row`, then the program's schedule, then the defaults of its type."""
    rows = rows_of(program)
    given = {key: value for key, value in choice.items() if key in _KEYS}
    schedule = replace(Schedule.of(program, row), **given)
    tiles = {n: choice.get(n, (row or {}).get(n, first)) for n, first in program.defaults.items()}
    size = rows.value if isinstance(rows, ir.Const) else None
    if isinstance(rows, ir.Sym) and "consumers" not in given:
        fixed = dict(program.parameters)[rows.name]
        size = choice.get(rows.name, fixed[0] if len(fixed) == 1 else None)
    if size is not None:
        if size % ROWS or not size:
            raise LowerError(f"tiles of {size} query rows: warpgroups compute {ROWS} rows each")
        if "consumers" in given and given["consumers"] * ROWS != size:
            raise LowerError(
                f"{given['consumers']} consumers compute {given['consumers'] * ROWS} rows, not {size}"
            )
        schedule = replace(schedule, consumers=int(size) // ROWS)
    if isinstance(rows, ir.Sym):
        if choice.get(rows.name, schedule.rows) != schedule.rows:
            raise LowerError(
                f"{schedule.consumers} consumers compute {schedule.rows} rows, not {choice[rows.name]}"
            )
        tiles[rows.name] = schedule.rows
    if schedule.consumers == 1 or not schedule.overlap:
        schedule = replace(schedule, pingpong=0)
    if not schedule.overlap:
        schedule = replace(schedule, rescale=min(schedule.rescale, 1))  # no product runs beside the softmax
    if not schedule.overlap or not schedule.persistent or schedule.reuse:
        schedule = replace(schedule, carry=0)  # no product runs ahead, there is no next tile, or no place
    if schedule.persistent != GRIDS.index("dynamic"):
        schedule = replace(schedule, ahead=0)
    return {**tiles, **schedule.choice}


def settled_rows(program: ir.Program) -> dict[str, int]:
    """Rows and consumers that the program settles by naming the other one."""
    rows, told = rows_of(program), decided(program)
    if isinstance(rows, ir.Const):
        return {"consumers": int(rows.value) // ROWS}
    if not isinstance(rows, ir.Sym):
        return {}
    choices = dict(program.parameters)[rows.name]
    if len(choices) == 1:
        return {"consumers": choices[0] // ROWS}
    return {rows.name: told["consumers"] * ROWS} if "consumers" in told else {}


def unfit(program: ir.Program, choice: Mapping[str, int]) -> str | None:
    """Why Gluon code cannot have the choice; None where it can."""
    rows = rows_of(program)
    for name, _ in program.parameters:
        value = choice[name]
        if ir.Sym(name) != rows and (value < 16 or value > 256 or value & (value - 1)):
            return f"tile {name} = {value}: Gluon wants powers of two from 16 to 256"
    if choice["consumers"] not in CONSUMERS:
        return f"consumers = {choice['consumers']}: registers suffice for one to four"
    if choice["stages"] < 1:
        return f"stages = {choice['stages']}: a tile needs a place"
    if choice["q_stages"] not in (1, 2):
        return f"q_stages = {choice['q_stages']}: query rows have one place or two"
    if choice["rescale"] not in RESCALES:
        return f"rescale = {choice['rescale']}: a whole number from {RESCALES[0]} to {RESCALES[-1]}"
    if choice["persistent"] not in range(len(GRIDS)):
        return f"persistent = {choice['persistent']}: there are {len(GRIDS)} kinds of grid"
    if choice["registers"] % 8 or not 0 <= choice["registers"] <= 255:
        return f"registers = {choice['registers']}: a multiple of 8 below 256"
    return None


def shared_bytes(program: ir.Program, choice: Mapping[str, int], dim: int, dim_v: int) -> int:
    """Bytes of shared memory that a block needs: every place of every tile, and one for each output."""
    env = {**choice, "dim": dim, "dim_v": dim_v}
    most = 0
    for kernel in program.kernels:
        loops = [n for n in kernel.body if isinstance(n, ir.For)]
        looped = {t for n in loops for m in ir.nodes(n.body) if isinstance(m, ir.Load) for t in ir.writes(m)}
        loaded = {n.tile for n in ir.nodes(kernel.body) if isinstance(n, ir.Load)}
        stored = {n.tile for n in ir.nodes(kernel.body) if isinstance(n, ir.Store)}
        here = _BARRIERS
        through = leaves_through(kernel) if choice["reuse"] else None
        result = next((t for t in stored if t.shape[1] != ir.Const(1)), None)
        if through is not None and result is not None:
            widths = (int(evaluate(t.shape[1], env)) for t in (through, result))
            stored -= {result} if holds(*widths) else set()
        for tile in loaded | stored:
            size = 2 * int(evaluate(tile.shape[0], env)) * _held(int(evaluate(tile.shape[1], env)))
            places = choice["stages"] if tile in looped else choice["q_stages"]
            here += size * (places if tile in loaded and tile.level is Level.SHARED else 1)
        most = max(most, here)
    return most


def _held(columns: int) -> int:
    """Columns that powers of two hold."""
    padded = max(16, 1 << (columns - 1).bit_length())
    return columns if columns * 4 == padded * 3 else padded


def default_table(program: ir.Program) -> tuple[Row, ...]:
    """For each head dimension what was fastest on an H100, or the largest that has room."""
    table = [Row.of(2, dim, 0, _default(program, dim)) for dim in DIMS]
    longer = _with(program, LONG_COLUMNS, LONG)
    if all(longer[key] == value for key, value in LONG.items()) and _fits(program, longer, 128):
        table.append(Row.of(2, 128, LONG_FROM, longer))
    shorter = _with(program, SHORT_COLUMNS, SHORT)
    taken = all(shorter[key] == value for key, value in SHORT.items())
    if reaches(program) and taken and _fits(program, shorter, 64):
        table = [replace(row, seq=SHORT_BELOW) if row.dim == 64 else row for row in table]
        table.append(Row.of(2, 64, 0, shorter))
    return tuple(sorted(table, key=lambda row: (row.dim, row.seq)))


def default_choice(program: ir.Program, dim: int, seq: int) -> dict[str, int]:
    """Of the default table, for a head dimension and what the table is looked up by."""
    table = default_table(program)
    held = min((row.dim for row in table if row.dim >= dim), default=max(DIMS))
    return dict([row for row in table if row.dim == held and row.seq <= seq][-1].choice)


def _default(program: ir.Program, dim: int) -> dict[str, int]:
    """A softmax that goes from loop to loop rescales every round up to 64: up to 6 % faster on an H200."""
    wanted = (3, 2, 1) if dim <= 64 else (2, 1)
    always = {"rescale": 0} if dim <= 64 and _goes_on(program) else {}
    choice: dict[str, int] = {}
    for stages, consumers, columns, (places, reuse) in itertools.product(
        (2, 1), wanted, (128, 64, 32, 16), PLACES
    ):
        given = {"consumers": consumers, "stages": stages, "pingpong": int(consumers == 3)}
        choice = _with(program, columns, {**given, **always, "q_stages": places, "reuse": reuse})
        if _fits(program, choice, dim):
            return choice
    return choice


def _goes_on(program: ir.Program) -> bool:
    """Whether a loop's softmax continues another loop's."""
    softmaxes = (
        [n for n in ir.nodes(view(k).whole.body) if isinstance(n, ir.Softmax)] for k in program.kernels
    )
    return any(len({n.m for n in found}) < len(found) for found in softmaxes)


def _with(program: ir.Program, columns: int, schedule: Mapping[str, int]) -> dict[str, int]:
    """A choice with tiles of so many columns, and that schedule where the program has none of its own."""
    rows = rows_of(program)
    tiles = {n: columns for n, choices in program.parameters if ir.Sym(n) != rows and len(choices) > 1}
    rescale = 2 if may_rescale_rarely(program) else 0
    return complete(program, {}, {**tiles, "overlap": 1, "rescale": rescale, **schedule, **decided(program)})


def _fits(program: ir.Program, choice: Mapping[str, int], dim: int) -> bool:
    return shared_bytes(program, choice, dim, 128 if dim == 192 else dim) <= LIMIT
