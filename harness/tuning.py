"""Owns the search of a TL program's tile space by measuring on this GPU: the best per cell, all times kept.

A search ranks choices with short timings of its own (graph replay, cold L2, one process); what is published
is timed again by the protocol. Compilation runs in many processes, timing in one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from harness import tuning_clock
from harness.crew import Crew, LostDevice
from harness.targets import Target
from harness.tl import ir
from harness.tl.lower import cute_choices
from harness.tl.lower.carried import Carried, Searched
from harness.tl.lower.choices import Row, accumulator_registers, candidates, shared_bytes
from harness.tl.lower.cute import lower_cute
from harness.tl.lower.gluon import lower_gluon
from harness.tl.lower.gluon_reach import length
from harness.tl.lower.lowered import Lowered
from harness.tl.lower.triton import lower_triton
from harness.tuning_compile import Kernels
from harness.tuning_search import default_choices, hopper_choices, search_choices
from tasks import Task, Workload

_REGISTERS = 200  # of f32 tiles a thread; past that every choice seen spilled
_COMPILERS = {
    "triton": lower_triton,
    "cuda": lower_cute,
    "gluon": lower_gluon,
}  # whose candidates take a table of choices
TUNABLE = tuple(_COMPILERS)
SEARCHED = ("gluon",)  # whose spaces are hundreds: a search times 15 % or less
_RETRIED = 3  # choices timed once more, longer, before one is taken
_SHORT_MS, _LONG_MS = 12.0, 60.0  # of a choice's replays: to rank, to decide


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
    """What one cell took: timings of `size` choices, failed ones and repeats counted; compiling is not."""

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
    kernels: int = 0  # that were compiled
    compile_s: float = 0.0
    stopped: str = ""  # why it ended early
    searches: dict[str, Budget] = field(default_factory=dict)  # by cell

    def write(self, path: Path) -> None:
        """As JSON."""
        record = {
            "task": self.task,
            "device": self.device,
            "wall_s": round(self.wall_s, 1),
            "kernels": self.kernels,
            "compile_s": round(self.compile_s, 1),
            "stopped": self.stopped,
            "rows": [asdict(r) for r in self.rows],
            "searches": {cell: asdict(budget) for cell, budget in self.searches.items()},
            "timings": [asdict(t) for t in self.timings],
        }
        path.write_text(json.dumps(record, indent=1), encoding="utf-8")


def choices(
    program: ir.Program, task: Task, target: Target, w: Workload, backend: str = "triton"
) -> list[dict[str, int]]:
    """The tile and launch choices worth compiling: those whose tiles fit in shared memory and registers."""
    dim, dim_v, element = w.dim, w.dim_v, w.torch_dtype.itemsize
    if backend == "cuda":
        return cute_choices.fitting(program, target, dim, dim_v)
    if backend == "gluon":
        return hopper_choices(program, task, target, (dim, dim_v))
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
    everything: bool = False,
) -> tuple[Tuned, Lowered]:
    """The best choice for each workload by measuring, and the candidate with that table.

    Of Hopper's schedules a search times 15 % or less, unless `everything`; of other choices all are timed.
    `moved` is told how many of all compilations and timings are done. Where a choice costs the device,
    what was timed until then decides.
    """
    began = time.monotonic()
    by_dims = {(w.dim, w.dim_v): w for w in workloads}
    spaces = {dims: choices(program, task, target, w, backend) for dims, w in by_dims.items()}
    searched = backend in SEARCHED and not everything
    source = searchable(program, task, spaces, backend)
    folder = str(source.write(scratch / source.name))
    lengths = {w.key: looked_up_by(program, w, backend) for w in workloads}
    by_size = sorted(workloads, key=lambda w: w.seq_q * w.batch)
    calls = [(w, choice) for w in by_size for choice in spaces[w.dim, w.dim_v]]
    tuned = Tuned(task.name, torch.cuda.get_device_name(), ())
    best: dict[str, Mapping[str, int] | None] = {}
    with Crew(tuning_clock.try_once, workers) as crew:
        kernels = Kernels(crew, folder, task, launched=backend == "gluon")
        total = len(kernels.missing(calls)) + len(calls)
        kernels.done = lambda count: moved(count + len(tuned.timings), total)
        clock = Clock(kernels, folder, task, tuned.timings)
        try:
            if searched:
                defaults = default_choices(program, workloads)
                best = _searched(clock, workloads, spaces, tuned, lengths, defaults)
            else:
                kernels.ready(calls)
                tuning_clock.warm()
                for w in workloads:
                    best[w.key] = _timed(clock, w, spaces[w.dim, w.dim_v], tuned)
                    moved(len(kernels) + len(tuned.timings), total)
        except LostDevice as lost:
            tuned.stopped = f"the device was lost: {lost}"
        tuned.kernels, tuned.compile_s = len(kernels), kernels.seconds
    tuned.rows = _rows(workloads, lengths, best, tuned.timings)
    tuned.wall_s = time.monotonic() - began
    lowered = _COMPILERS[backend](program, task, target, tuned.rows or None, None)
    if not tuned.rows:
        return tuned, lowered
    return tuned, lowered.with_carried(_told(lowered, tuned, workloads, lengths, spaces))


def looked_up_by(program: ir.Program, w: Workload, backend: str) -> int:
    """The length by which a candidate of that back end looks the workload up in its table."""
    return length(program, w) if backend == "gluon" else max(w.seq_q, w.seq_k)


def _told(
    lowered: Lowered,
    tuned: Tuned,
    workloads: Sequence[Workload],
    lengths: Mapping[str, int],
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
            seq=lengths[w.key],
            size=budget.size,
            timings=budget.evaluations,
            seconds=budget.seconds,
            device=tuned.device,
        )
        for w in workloads
        if (budget := tuned.searches.get(w.key)) is not None
    ]
    return lowered.carried.after(searches, varied)


def _rows(
    workloads: Sequence[Workload],
    lengths: Mapping[str, int],
    best: Mapping[str, Mapping[str, int] | None],
    timings: Sequence[Timing],
) -> tuple[Row, ...]:
    """The table: of each length the choice that was decided, or where nothing was, the fastest timed."""
    rows: dict[tuple[int, int, int], Row] = {}
    for w in workloads:
        choice = best[w.key] if w.key in best else _fastest(timings, w)
        if choice is not None:
            row = Row.of(w.torch_dtype.itemsize, max(w.dim, w.dim_v), lengths[w.key], choice)
            rows.setdefault((row.bytes, row.dim, row.seq), row)
    return tuple(rows[k] for k in sorted(rows))


def searchable(
    program: ir.Program,
    task: Task,
    spaces: Mapping[tuple[int, int], Iterable[Mapping[str, int]]],
    backend: str,
) -> Lowered:
    """A candidate that any of the choices can be asked of; its text depends on nothing else."""
    everything = [Row.of(2, 1 << 20, n, c) for n, c in enumerate(x for s in spaces.values() for x in s)]
    return _COMPILERS[backend](program, task, None, everything, None)


@dataclass
class Clock:
    """Times choices of one candidate, and keeps every timing."""

    kernels: Kernels
    folder: str
    task: Task
    timings: list[Timing]
    _of: str = ""
    _tensors: dict[str, torch.Tensor] = field(default_factory=dict)  # of one workload at a time
    _reference: tuple[Mapping[str, int], float] | None = (
        None  # of that workload: the first that ran, and its time
    )

    def time_ms(self, w: Workload, choice: Mapping[str, int]) -> float | None:
        """A short timing; None where it does not run. Raises LostDevice.

        The workload's first choice runs beside every other one, in turns: the time is that of the first,
        times the ratio of the two. The GPU's clock drifts by more than 10 % within one search.
        """
        time_ms, error = None, self.kernels.wrong(w, choice)
        if not error:
            try:
                tensors = self.tensors_of(w)
                time_ms = self._beside(w, tensors, choice)
            except Exception as problem:  # a choice that fails is one not to take; the reason is kept
                error = tuning_clock.failure(problem)
        self.timings.append(Timing(w.key, max(w.dim, w.dim_v), w.seq_q, dict(choice), time_ms, error))
        return time_ms

    def _beside(self, w: Workload, tensors: Mapping[str, torch.Tensor], choice: Mapping[str, int]) -> float:
        given = self.folder, self.task, w, tensors
        if self._reference is None:
            [alone] = tuning_clock.time_choices(*given, [choice], _SHORT_MS)
            self._reference = choice, alone
            return alone
        first, its = self._reference
        mine, beside = tuning_clock.time_choices(*given, [choice, first], _SHORT_MS)
        return its * mine / beside

    def together_ms(self, w: Workload, choices: Sequence[Mapping[str, int]]) -> list[float | None]:
        """Longer timings, taking turns; None for a choice whose result is wrong. Raises LostDevice."""
        tensors = self.tensors_of(w)
        return tuning_clock.time_together(self.folder, self.task, w, tensors, choices, _LONG_MS)

    def tensors_of(self, w: Workload) -> dict[str, torch.Tensor]:
        """Those of the workload; of one at a time."""
        if w.key != self._of:
            self._tensors.clear()
            self._tensors, self._of, self._reference = tuning_clock.tensors_of(self.task, w), w.key, None
        return self._tensors


def _timed(
    clock: Clock, w: Workload, space: Sequence[Mapping[str, int]], tuned: Tuned
) -> Mapping[str, int] | None:
    """The fastest of all choices; the fastest few are timed once more. None where none runs."""
    began = time.monotonic()
    ran = [(t, n) for n, choice in enumerate(space) if (t := clock.time_ms(w, choice)) is not None]
    leading = [space[n] for _, n in sorted(ran)[:_RETRIED]]
    again = [(t, n) for n, t in enumerate(clock.together_ms(w, leading)) if t is not None]
    seconds = round(time.monotonic() - began, 2)
    tuned.searches[w.key] = Budget(len(space), len(space) + len(leading), seconds)
    return leading[min(again)[1]] if again else None


def _searched(
    clock: Clock,
    workloads: Sequence[Workload],
    spaces: Mapping[tuple[int, int], Sequence[dict[str, int]]],
    tuned: Tuned,
    lengths: Mapping[str, int],
    defaults: Mapping[str, dict[str, int]],
) -> dict[str, Mapping[str, int] | None]:
    """The fastest choice of each workload that a search finds; `tuned` gets what each took."""

    def soon(w: Workload, likely: list[dict[str, int]]) -> None:
        clock.kernels.ready((w, choice) for choice in likely)
        tuning_clock.warm()

    found = search_choices(workloads, spaces, clock.time_ms, clock.together_ms, soon, lengths, defaults)
    tuned.searches = {key: Budget(s.size, s.evaluations, round(s.seconds, 2)) for key, s in found.items()}
    return {key: s.best for key, s in found.items()}


def _fastest(timings: Iterable[Timing], w: Workload) -> Mapping[str, int] | None:
    """By the short timings alone."""
    ran = [(t.time_ms, n, t.choice) for n, t in enumerate(timings) if t.cell == w.key and t.time_ms]
    return min(ran, key=lambda r: r[:2])[2] if ran else None
