"""Owns the search of a Hopper program's tiles and schedules: the space, and the few of it that are timed.

The checker prunes the space before anything is compiled. All that is left is compiled, in many processes at
once; of that 15 % or less is timed, shapes nearby beginning with each other's best. Where they have kernels
of their own, only those around that best are compiled ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from harness.targets import Target
from harness.tl import ir
from harness.tl.lower import gluon_choices
from harness.tl.lower.gluon_reach import length
from harness.tl.lower.lowered import LowerError
from harness.tl.schedule import decided
from harness.tl.search import Cell, Search, search_cells
from harness.tl.space import hopper_pruned
from tasks import Task, Workload

Dims = tuple[int, int]


def hopper_choices(program: ir.Program, task: Task, target: Target, dims: Dims) -> list[dict[str, int]]:
    """What a search may take: all that the checker finds room for and the compiler can have."""
    fixed = decided(program)
    found: list[dict[str, int]] = []
    for choice in hopper_pruned(program, task, target, dims=dims).kept:
        try:
            full = gluon_choices.complete(program, {**choice, **fixed})
        except LowerError:
            continue
        fits = gluon_choices.shared_bytes(program, full, *dims) <= gluon_choices.LIMIT
        if fits and gluon_choices.unfit(program, full) is None and full not in found:
            found.append(full)
    return found


def search_choices(
    workloads: Sequence[Workload],
    spaces: Mapping[Dims, Sequence[dict[str, int]]],
    time_ms: Callable[[Workload, Mapping[str, int]], float | None],
    together_ms: Callable[[Workload, list[dict[str, int]]], Sequence[float | None]],
    soon: Callable[[Workload, list[dict[str, int]]], None],
    lengths: Mapping[str, int],
    defaults: Mapping[str, dict[str, int]],
) -> dict[str, Search]:
    """The search of each workload, by its key. `time_ms` measures one choice; None where it does not run.

    `together_ms` measures a few side by side, `soon` is told what is likely to be measured. Every search
    starts from the compiler's own choice for the workload, of `defaults`. What has like `lengths` is nearby.
    """
    by_key = {w.key: w for w in workloads}
    cells = [
        Cell(w.key, max(w.dim, w.dim_v), lengths[w.key], tuple(spaces[w.dim, w.dim_v]))
        for w in workloads
        if spaces[w.dim, w.dim_v]
    ]
    return search_cells(
        cells,
        lambda cell, choice: time_ms(by_key[cell.name], choice),
        lambda cell, choices: together_ms(by_key[cell.name], choices),
        lambda cell, choices: soon(by_key[cell.name], choices),
        lambda cell: (defaults[cell.name],),
    )


def default_choices(program: ir.Program, workloads: Iterable[Workload]) -> dict[str, dict[str, int]]:
    """What the compiler takes where nothing was measured, by a workload's key."""
    asked = {w.key: (max(w.dim, w.dim_v), length(program, w)) for w in workloads}
    return {key: gluon_choices.default_choice(program, *sizes) for key, sizes in asked.items()}
