"""Owns the space that a tuner searches: tile parameters times warps and stages, without what cannot fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from harness.targets import Target
from harness.tl import ir
from harness.tl.checks.capacity import Demand, Load, choices
from harness.tl.diagnostics import Finding, finding
from harness.tl.problem import TaskLike, all_workloads, scalars
from harness.tl.syntax import Pos


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
    """The space for one pair of head dims (dim, dim_v), by what fits on the target."""
    demand = Demand(program, dtype)
    workloads = all_workloads(task)
    first = next((w for w in workloads if (w.sizes["dim"], w.sizes["dim_v"]) == dims), workloads[0])
    sizes = {**scalars(first), "dim": dims[0], "dim_v": dims[1]}
    kept, dropped = [], []
    for choice in space(program):
        reason = _reason(demand.of({**sizes, **choice}), target)
        if reason is None:
            kept.append(choice)
        else:
            dropped.append((choice, reason))
    return Pruned(tuple(kept), tuple(dropped))


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
