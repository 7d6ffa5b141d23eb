"""Owns the space that a tuner searches: tile parameters and schedules, without what cannot fit."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from harness.targets import Target
from harness.tl import ir
from harness.tl.checks.capacity import Demand, KernelTiles, Load, choices
from harness.tl.checks.roles import points
from harness.tl.diagnostics import Finding, finding
from harness.tl.evaluate import evaluate
from harness.tl.lower.facts import ahead, grows, leaves_through, may_rescale_rarely
from harness.tl.lower.gluon_view import loops_of
from harness.tl.problem import TaskLike, all_workloads, scalars
from harness.tl.roles import RoleDemand, Taken, row_extent
from harness.tl.schedule import GRIDS, Schedule, asks_for_roles, spanned
from harness.tl.syntax import Pos

# What is tried on Hopper. Columns are powers of two: no compiler's tiles there have others.
CONSUMERS, COLUMNS, STAGES, HEADS = (1, 2, 3, 4), (64, 128, 256), (2, 3, 4), (0, 8, 32)
# Other kinds of grid, products of the next tile first and arrivals of threads were behind the best choice
# found in every cell: they are tried where the program's line names them.
TRIED = {
    "reuse": (0, 1),
    "persistent": (GRIDS.index("dynamic"),),
    "q_stages": (2, 1),
    "ahead": (0, 1),
    "carry": (0,),
    "arrivals": (0,),
    "rescale": (0, 1, 2),
}


@dataclass(frozen=True)
class Pruned:
    """The choices that fit, and those that do not, each with why."""

    kept: tuple[dict[str, int], ...]
    dropped: tuple[tuple[dict[str, int], Finding], ...]


def space(program: ir.Program) -> Iterator[dict[str, int]]:
    """Every choice: tile parameters, and warps and stages where the schedule gives them."""
    return choices(program)


def pruned(
    program: ir.Program, task: TaskLike, target: Target, *, dtype: str = "fp16", dims: tuple[int, int]
) -> Pruned:
    """The space for one pair of head dims (dim, dim_v), by what fits on the target.

    Where the program's line asks for roles and the target has them: tiles with the rows of their consumers,
    times the schedules that the line spans.
    """
    sizes = _sizes(task, dims)
    if asks_for_roles(program) and (target.capability or (0, 0)) >= (9, 0):
        found = points(program, sizes, dtype)
        return _parted(({**tiles, **s.choice}, _lack(taken, target)) for s, tiles, taken in found)
    demand = Demand(program, dtype)
    reasons = ((choice, _reason(demand.of({**sizes, **choice}), target)) for choice in space(program))
    return _parted(reasons)


def hopper_space(program: ir.Program) -> Iterator[dict[str, int]]:
    """Every schedule with roles, each with the rows of its consumers and the usual numbers of columns.

    Keys are the program's tile parameters and the fields of `Schedule`; what has no effect is not varied.
    Other tile parameters take the program's own values, and so do the keys of `TRIED` that its line names.
    """
    rows, columns = _parameters(program)
    overlaps = (1, 0) if any(ahead(loop) is not None for loop in loops_of(program)) else (0,)
    longest = int(any(grows(k, a.name) for k in program.kernels for a in k.grid if a.role == "rows"))
    own = {name: values for name, values in program.parameters if name not in (rows, columns)}
    told = dict(program.parameters)[columns] if columns else (0,)
    wide: Sequence[int] = COLUMNS if len(told) > 1 else told  # one value is the program's own decision
    line = spanned(program)
    tried = {key: line.get(key, values) for key, values in TRIED.items()}
    if not may_rescale_rarely(program):
        tried["rescale"] = tried["rescale"][:1]
    if all(leaves_through(k) is None for k in program.kernels):
        tried["reuse"] = tried["reuse"][:1]
    for consumers, column, *others in itertools.product(CONSUMERS, wide, *own.values()):
        if rows is None and not _has_rows(program, dict(zip(own, others, strict=True)), consumers):
            continue
        tiles = dict(zip(own, others, strict=True))
        tiles |= {columns: column} if columns else {}
        turns = (0, 1) if consumers > 1 else (0,)
        for stages, overlap, pingpong, heads, *pick in itertools.product(
            STAGES, overlaps, turns, HEADS if longest else (0,), *tried.values()
        ):
            picked = dict(zip(tried, pick, strict=True))
            if pingpong and not overlap:
                continue  # without a product of the next round in hand there is nothing to give a turn for
            if picked["rescale"] > 1 and not overlap and 0 in tried["rescale"]:
                continue  # no product runs beside the softmax
            if picked["ahead"] and picked["persistent"] != GRIDS.index("dynamic") and 0 in tried["ahead"]:
                continue  # there are no tickets to draw
            schedule = Schedule(
                consumers, stages, overlap, pingpong, longest_first=longest, heads=heads, **picked
            )
            yield {**({rows: schedule.rows} if rows else {}), **tiles, **schedule.choice}


def hopper_pruned(
    program: ir.Program, task: TaskLike, target: Target, *, dtype: str = "fp16", dims: tuple[int, int]
) -> Pruned:
    """The space of schedules with roles for one pair of head dims, by what fits on the target.

    Fewer places are tried only where more do not fit: one for query rows instead of two, then one for both
    query rows and result. Nor is one consumer tried where more fit. They were behind the best choice found in
    every cell.
    """
    reason = lacks(program, task, target, dtype=dtype, dims=dims)
    named = spanned(program)
    fits: dict[tuple[tuple[str, int], ...], set[tuple[int, int]]] = {}

    def parted() -> Iterator[tuple[dict[str, int], Finding | None]]:
        for choice in hopper_space(program):  # more places before fewer
            rest = tuple((k, v) for k, v in choice.items() if k not in ("q_stages", "reuse"))
            better, places, reuse = fits.setdefault(rest, set()), choice["q_stages"], choice["reuse"]
            if "q_stages" not in named and places == 1 and (2, reuse) in better:
                continue
            if "reuse" not in named and reuse and {(1, 0), (2, 0)} & better:
                continue
            why = reason(choice)
            better |= {(places, reuse)} if why is None else set()
            yield choice, why

    found = _parted(parted())
    most = max((choice["consumers"] for choice in found.kept), default=1)
    if most == 1 or "consumers" in spanned(program):
        return found
    return Pruned(tuple(c for c in found.kept if c["consumers"] > 1), found.dropped)


def lacks(
    program: ir.Program, task: TaskLike, target: Target, *, dtype: str = "fp16", dims: tuple[int, int]
) -> Callable[[Mapping[str, int]], Finding | None]:
    """Why a choice of tiles and a schedule with roles does not fit on the target; None where it does."""
    sizes = _sizes(task, dims)
    kernels = [k for k in program.kernels if row_extent(k) is not None]
    demands: dict[Schedule, list[RoleDemand]] = {}

    def reason(choice: Mapping[str, int]) -> Finding | None:
        schedule = Schedule.of(program, choice)
        if schedule not in demands:
            demands[schedule] = [RoleDemand(k, schedule, dtype) for k in kernels]
        taken = (demand.of({**sizes, **choice}) for demand in demands[schedule])
        return next((r for t in taken if (r := _lack(t, target)) is not None), None)

    return reason


def _parted(reasons: Iterator[tuple[dict[str, int], Finding | None]]) -> Pruned:
    kept, dropped = [], []
    for choice, reason in reasons:
        if reason is None:
            kept.append(choice)
        else:
            dropped.append((choice, reason))
    return Pruned(tuple(kept), tuple(dropped))


def _sizes(task: TaskLike, dims: tuple[int, int]) -> dict[str, int | float]:
    workloads = all_workloads(task)
    first = next((w for w in workloads if (w.sizes["dim"], w.sizes["dim_v"]) == dims), workloads[0])
    return {**scalars(first), "dim": dims[0], "dim_v": dims[1]}


def _parameters(program: ir.Program) -> tuple[str | None, str | None]:
    """The tile parameters that are the rows and the columns of the scores."""
    names = dict(program.parameters)
    for kernel in program.kernels:
        extent = row_extent(kernel)
        passing = [t.shape[1] for t in KernelTiles(kernel).others if t.shape[0] == extent]
        columns = next((e.name for e in passing if isinstance(e, ir.Sym) and e.name in names), None)
        if extent is not None:
            return (extent.name if isinstance(extent, ir.Sym) and extent.name in names else None), columns
    return None, None


def _has_rows(program: ir.Program, values: Mapping[str, int], consumers: int) -> bool:
    """Whether rows that no parameter gives are those of the consumers."""
    extents = [e for k in program.kernels if (e := row_extent(k)) is not None]
    try:
        return all(int(evaluate(e, values)) == Schedule(consumers).rows for e in extents)
    except KeyError:
        return False


def _reason(load: Load, target: Target) -> Finding | None:
    """Why a choice is left out, or None."""
    if not target.is_gpu or target.smem_per_block is None:
        return None
    if load.shared_bytes > target.smem_per_block:
        limit = f"{target.smem_per_block / 1024:g} KB that {target.name} has"
        return finding("TL701", Pos(1, 1), f"shared memory takes {load.words}, more than the {limit}")
    if load.registers > load.most_registers:
        text = f"accumulators take about {load.registers} registers a thread of {load.most_registers}"
        return finding("TL702", Pos(1, 1), text)
    return None


def _lack(taken: Taken, target: Target) -> Finding | None:
    """Why a choice with roles is left out, or None."""
    limit = target.smem_per_block or 0
    if taken.shared_bytes > limit:
        words = (
            f"channels take {taken.shared_words}, more than the {limit / 1024:g} KB that {target.name} has"
        )
        return finding("TL705", Pos(1, 1), words)
    if taken.spills:
        return finding("TL706", Pos(1, 1), f"a consumer's thread takes {taken.register_words}")
    return None
