"""Owns the search of a TL program's tile space by measuring on this GPU: the best per cell, all times kept.

A search ranks choices with short timings of its own (graph replay, one process); what is published is
timed again by the protocol. Compilation runs in many processes, timing in one.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path

import torch

from harness.targets import Target
from harness.tl import ir
from harness.tl.lower import cute_choices, gluon_choices
from harness.tl.lower.carried import Carried, Searched
from harness.tl.lower.choices import Row, accumulator_registers, candidates, shared_bytes
from harness.tl.lower.cute import lower_cute
from harness.tl.lower.gluon import lower_gluon
from harness.tl.lower.lowered import Lowered
from harness.tl.lower.triton import lower_triton
from harness.tuning_clock import tensors_of as _tensors
from harness.tuning_clock import time_choice as _time
from harness.tuning_clock import try_once as _try
from harness.tuning_search import hopper_choices, search_choices
from tasks import Task, Workload

_REGISTERS = 200  # of f32 tiles a thread; past that every choice seen spilled
_COMPILERS = {
    "triton": lower_triton,
    "cuda": lower_cute,
    "gluon": lower_gluon,
}  # whose candidates take a table of choices
TUNABLE = tuple(_COMPILERS)
_Broken = dict[tuple[int, int, str], str]  # head dimensions and a choice -> why it does not compile
_RETRIED = 3  # choices timed once more, longer, before one is taken


@dataclass(frozen=True)
class Timing:
    """One choice on one cell; `time_ms` is None where it did not run, and `error` says why."""

    cell: str
    dim: int
    seq: int
    choice: Mapping[str, int]
    time_ms: float | None
    error: str = ""


@dataclass(frozen=True)
class Budget:
    """What one cell took: timings of `size` choices, failed ones and repeats counted."""

    size: int
    evaluations: int
    seconds: float


@dataclass
class Tuned:
    """What a search found: the table of the best choices, and every timing."""

    task: str
    device: str
    rows: tuple[Row, ...]
    timings: list[Timing] = field(default_factory=list)
    wall_s: float = 0.0
    searches: dict[str, Budget] = field(default_factory=dict)  # by cell

    def write(self, path: Path) -> None:
        """As JSON."""
        record = {
            "task": self.task,
            "device": self.device,
            "wall_s": round(self.wall_s, 1),
            "rows": [asdict(r) for r in self.rows],
            "searches": {cell: asdict(budget) for cell, budget in self.searches.items()},
            "timings": [asdict(t) for t in self.timings],
        }
        path.write_text(json.dumps(record, indent=1), encoding="utf-8")


def choices(
    program: ir.Program, target: Target, dim: int, dim_v: int, element: int, backend: str = "triton"
) -> list[dict[str, int]]:
    """The tile and launch choices worth compiling: those whose tiles fit in shared memory and registers."""
    if backend == "cuda":
        return cute_choices.fitting(program, target, dim, dim_v)
    if backend == "gluon":
        return gluon_choices.fitting(program, target, dim, dim_v)
    limit = (target.smem_per_block or 99 * 1024) - 2048
    return [
        c
        for c in candidates(program)
        if shared_bytes(program, c, dim, dim_v, element) <= limit
        and accumulator_registers(program, c, dim, dim_v) <= _REGISTERS
    ]


def tune(
    program: ir.Program,
    task: Task,
    target: Target,
    workloads: Sequence[Workload],
    scratch: Path,
    workers: int | None = None,
    backend: str = "triton",
    moved: Callable[[int, int], None] = lambda done, total: None,
    searched: bool = False,
) -> tuple[Tuned, Lowered]:
    """The best choice for each workload by measuring, and the candidate with that table.

    `searched`: of what fits, a sixth or less is timed; else all of it is. `moved` is told how
    many of all compilations and timings are done.
    """
    began = time.monotonic()
    spaces = {
        (w.dim, w.dim_v): hopper_choices(program, task, target, (w.dim, w.dim_v))
        if backend == "gluon"
        else choices(program, target, w.dim, w.dim_v, w.torch_dtype.itemsize, backend)
        for w in workloads
    }
    smallest = {
        dims: min((w for w in workloads if (w.dim, w.dim_v) == dims), key=lambda w: w.seq_q * w.batch)
        for dims in spaces
    }
    source = _searchable(program, task, spaces, backend)
    folder = source.write(scratch / source.name)
    jobs = [
        (str(folder), smallest[dims], task.name, choice)
        for dims, space in spaces.items()
        for choice in (_kernels(space) if backend == "gluon" else space)
    ]
    total = len(jobs) + sum(len(spaces[w.dim, w.dim_v]) for w in workloads)
    count = workers or max(1, (os.cpu_count() or 2) - 2)
    with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:  # CUDA does not survive a fork
        broken: _Broken = {}
        for n, (job, error) in enumerate(zip(jobs, pool.map(_try, jobs, chunksize=2), strict=True), 1):
            if error:
                dims = (job[1].dim, job[1].dim_v)
                alike = (
                    [c for c in spaces[dims] if _kernels([c]) == _kernels([job[3]])]
                    if backend == "gluon"
                    else [job[3]]
                )
                broken |= {(*dims, _key(c)): error for c in alike}
            moved(n, total)
    tuned = Tuned(task.name, torch.cuda.get_device_name(), ())
    rows: dict[tuple[int, int, int], Row] = {}
    where = str(folder)
    found = _searched(where, workloads, task, spaces, broken, tuned) if searched else {}
    for w in workloads:
        leading = (
            found.get(w.key, [])
            if searched
            else _timed(where, w, task, spaces[w.dim, w.dim_v], broken, tuned)
        )
        best = _best(where, w, task, leading)
        if best is not None:
            row = Row.of(w.torch_dtype.itemsize, max(w.dim, w.dim_v), max(w.seq_q, w.seq_k), best)
            rows.setdefault((row.bytes, row.dim, row.seq), row)
        moved(len(jobs) + len(tuned.timings), total)
    tuned.rows = tuple(rows[k] for k in sorted(rows))
    tuned.wall_s = time.monotonic() - began
    lowered = _COMPILERS[backend](program, task, target, tuned.rows or None, None)
    return tuned, lowered.with_carried(_told(lowered, tuned, workloads, spaces)) if tuned.rows else lowered


def _told(
    lowered: Lowered,
    tuned: Tuned,
    workloads: Sequence[Workload],
    spaces: Mapping[tuple[int, int], Sequence[Mapping[str, int]]],
) -> Carried:
    """What the candidate says of its table: keys that the search varied, and what each cell took."""

    def varied(row: Row) -> set[str]:
        alike = [c for (dim, dim_v), space in spaces.items() if max(dim, dim_v) == row.dim for c in space]
        return {key for c in alike for key, value in c.items() if value != alike[0].get(key)}

    searches = [
        Searched(
            cell=w.key,
            dim=max(w.dim, w.dim_v),
            seq=max(w.seq_q, w.seq_k),
            size=budget.size,
            timings=budget.evaluations,
            seconds=budget.seconds,
            device=tuned.device,
        )
        for w in workloads
        if (budget := tuned.searches.get(w.key)) is not None
    ]
    return lowered.carried.after(searches, varied)


def _kernels(space: Iterable[Mapping[str, int]]) -> list[dict[str, int]]:
    """Choices of a schedule whose kernels differ: groups of heads are passed to the same one."""
    return list({_key({**c, "heads": 0}): {**c, "heads": 0} for c in space}.values())


def _searchable(
    program: ir.Program,
    task: Task,
    spaces: Mapping[tuple[int, int], Iterable[Mapping[str, int]]],
    backend: str,
) -> Lowered:
    everything = [Row.of(2, 1 << 20, n, c) for n, c in enumerate(x for s in spaces.values() for x in s)]
    return _COMPILERS[backend](program, task, None, everything, None)


def _measured(
    folder: str,
    w: Workload,
    task: Task,
    tensors: Mapping[str, torch.Tensor],
    choice: Mapping[str, int],
    broken: str,
) -> Timing:
    """A short timing of a choice; `broken` says why it did not compile."""
    time_ms, error = None, broken
    if not error:
        try:
            time_ms = _time(folder, task, w, tensors, choice, 12)
        except Exception as problem:  # a choice that fails is one not to take; the reason is kept
            error = f"{type(problem).__name__}: {problem}"[:300]
    return Timing(w.key, max(w.dim, w.dim_v), w.seq_q, dict(choice), time_ms, error)


def _timed(
    folder: str,
    w: Workload,
    task: Task,
    space: Sequence[Mapping[str, int]],
    broken: _Broken,
    tuned: Tuned,
) -> list[Mapping[str, int]]:
    """The fastest few of all choices; `tuned` gets every timing."""
    began = time.monotonic()
    tensors = _tensors(task, w)
    mine = [_measured(folder, w, task, tensors, c, broken.get((w.dim, w.dim_v, _key(c)), "")) for c in space]
    tuned.timings += mine
    ran = sorted((t for t in mine if t.time_ms is not None), key=lambda t: t.time_ms or 0.0)
    leading = [t.choice for t in ran[:_RETRIED]]
    seconds = round(time.monotonic() - began, 2)
    tuned.searches[w.key] = Budget(len(space), len(mine) + len(leading), seconds)
    return leading


def _searched(
    folder: str,
    workloads: Sequence[Workload],
    task: Task,
    spaces: Mapping[tuple[int, int], Sequence[dict[str, int]]],
    broken: _Broken,
    tuned: Tuned,
) -> dict[str, list[Mapping[str, int]]]:
    """The fastest few choices of each workload that a search finds; `tuned` gets every timing."""
    tensors: dict[str, dict[str, torch.Tensor]] = {}

    def time_ms(w: Workload, choice: Mapping[str, int]) -> float | None:
        if w.key not in tensors:
            tensors.clear()  # those of one workload at a time
            tensors[w.key] = _tensors(task, w)
        timing = _measured(
            folder, w, task, tensors[w.key], choice, broken.get((w.dim, w.dim_v, _key(choice)), "")
        )
        tuned.timings.append(timing)
        return timing.time_ms

    found = search_choices(workloads, spaces, time_ms)
    leading: dict[str, list[Mapping[str, int]]] = {key: [*s.leading(_RETRIED)] for key, s in found.items()}
    tuned.searches = {
        key: Budget(s.size, s.evaluations + len(leading[key]), round(s.seconds, 2))
        for key, s in found.items()
    }
    return leading


def _best(
    folder: str, w: Workload, task: Task, leading: Sequence[Mapping[str, int]]
) -> dict[str, int] | None:
    """The fastest of a few choices, timed once more and longer; None where there is none."""
    if not leading:
        return None
    tensors = _tensors(task, w)
    again = [(_time(folder, task, w, tensors, choice, 60), n) for n, choice in enumerate(leading)]
    return dict(leading[min(again)[1]])


def _key(choice: Mapping[str, int]) -> str:
    return json.dumps(dict(choice), sort_keys=True)
