"""Owns the search of a TL program's tile space by measuring on this GPU: the best per cell, all times kept.

A search ranks choices with short timings of its own (graph replay, one process); what is published is
timed again by the protocol. Compilation runs in many processes, timing in one.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType

import torch

from harness.targets import Target
from harness.tl import ir
from harness.tl.lower import cute_choices, gluon_choices
from harness.tl.lower.choices import Row, accumulator_registers, candidates, shared_bytes
from harness.tl.lower.cute import lower_cute
from harness.tl.lower.gluon import lower_gluon
from harness.tl.lower.lowered import Lowered
from harness.tl.lower.triton import lower_triton
from tasks import Task, Workload

_REGISTERS = 200  # of f32 tiles a thread; past that every choice seen spilled
_COMPILERS = {
    "triton": lower_triton,
    "cuda": lower_cute,
    "gluon": lower_gluon,
}  # whose candidates take a table of choices
TUNABLE = tuple(_COMPILERS)
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


@dataclass
class Tuned:
    """What a search found: the table of the best choices, and every timing."""

    task: str
    device: str
    rows: tuple[Row, ...]
    timings: list[Timing] = field(default_factory=list)
    wall_s: float = 0.0

    def write(self, path: Path) -> None:
        """As JSON."""
        record = {
            "task": self.task,
            "device": self.device,
            "wall_s": round(self.wall_s, 1),
            "rows": [asdict(r) for r in self.rows],
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
) -> tuple[Tuned, Lowered]:
    """The best choice for each workload by measuring, and the candidate with that table.

    `moved` is told how many of all compilations and timings are done.
    """
    began = time.monotonic()
    spaces = {
        (w.dim, w.dim_v): choices(program, target, w.dim, w.dim_v, w.torch_dtype.itemsize, backend)
        for w in workloads
    }
    smallest = {
        dims: min((w for w in workloads if (w.dim, w.dim_v) == dims), key=lambda w: w.seq_q * w.batch)
        for dims in spaces
    }
    source = _searchable(program, task, spaces, backend)
    folder = source.write(scratch / source.name)
    jobs = [
        (str(folder), smallest[dims], task.name, choice) for dims, space in spaces.items() for choice in space
    ]
    total = len(jobs) + sum(len(spaces[w.dim, w.dim_v]) for w in workloads)
    count = workers or max(1, (os.cpu_count() or 2) - 2)
    with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:  # CUDA does not survive a fork
        broken: dict[tuple[int, int, str], str] = {}
        for n, (job, error) in enumerate(zip(jobs, pool.map(_try, jobs, chunksize=2), strict=True), 1):
            if error:
                broken[job[1].dim, job[1].dim_v, _key(job[3])] = error
            moved(n, total)
    tuned = Tuned(task.name, torch.cuda.get_device_name(), ())
    rows: dict[tuple[int, int, int], Row] = {}
    for w in workloads:
        best = _best(str(folder), w, task, spaces[w.dim, w.dim_v], broken, tuned.timings)
        if best is not None:
            row = Row.of(w.torch_dtype.itemsize, max(w.dim, w.dim_v), max(w.seq_q, w.seq_k), best)
            rows.setdefault((row.bytes, row.dim, row.seq), row)
        moved(len(jobs) + len(tuned.timings), total)
    tuned.rows = tuple(rows[k] for k in sorted(rows))
    tuned.wall_s = time.monotonic() - began
    return tuned, _COMPILERS[backend](program, task, target, tuned.rows or None, None)


def _searchable(
    program: ir.Program,
    task: Task,
    spaces: Mapping[tuple[int, int], Iterable[Mapping[str, int]]],
    backend: str,
) -> Lowered:
    everything = [Row.of(2, 1 << 20, n, c) for n, c in enumerate(x for s in spaces.values() for x in s)]
    return _COMPILERS[backend](program, task, None, everything, None)


def _best(
    folder: str,
    w: Workload,
    task: Task,
    space: Sequence[Mapping[str, int]],
    broken: Mapping[tuple[int, int, str], str],
    timings: list[Timing],
) -> dict[str, int] | None:
    """The fastest choice for the workload, None where none ran; `timings` gets them all."""
    found: list[tuple[float, Mapping[str, int]]] = []
    tensors = _tensors(task, w)
    for choice in space:
        error = broken.get((w.dim, w.dim_v, _key(choice)), "")
        time_ms = None
        if not error:
            try:
                time_ms = _time(folder, task, w, tensors, choice, 12)
            except Exception as problem:  # a choice that fails is one not to take; the reason is kept
                error = f"{type(problem).__name__}: {problem}"[:300]
        timings.append(Timing(w.key, max(w.dim, w.dim_v), w.seq_q, dict(choice), time_ms, error))
        if time_ms is not None:
            found.append((time_ms, choice))
    if not found:
        return None
    finalists = [choice for _, choice in sorted(found, key=lambda f: f[0])[:_RETRIED]]
    again = [(_time(folder, task, w, tensors, choice, 60), choice) for choice in finalists]
    return dict(min(again, key=lambda f: f[0])[1])


def _key(choice: Mapping[str, int]) -> str:
    return json.dumps(dict(choice), sort_keys=True)


def _tensors(task: Task, w: Workload) -> dict[str, torch.Tensor]:
    generator = torch.Generator("cuda").manual_seed(0)
    drawn = {
        t.name: torch.randn(t.shape(w), generator=generator, device="cuda", dtype=torch.float32)
        for t in task.tensors
    }
    return {name: t.to(w.torch_dtype) for name, t in drawn.items()}


_MODULES: dict[str, ModuleType] = {}  # candidates imported in this process, by folder


def _attention(folder: str, choice: Mapping[str, int]) -> Callable[..., None]:
    """The candidate's `attention`, with that choice for every call until the next."""
    if folder not in _MODULES:
        spec = importlib.util.spec_from_file_location(f"tuned_{len(_MODULES)}", f"{folder}/attention.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.path.insert(0, folder)  # for what it imports from beside it
        sys.modules.pop("fallback", None)
        try:
            spec.loader.exec_module(module)
        finally:
            sys.path.remove(folder)
        _MODULES[folder] = module
    chosen = _MODULES[folder]
    chosen._choose = lambda *_: chosen.Choice(**choice)  # type: ignore[attr-defined]
    attention: Callable[..., None] = chosen.attention
    return attention


def _call(
    folder: str, task: Task, w: Workload, tensors: Mapping[str, torch.Tensor], choice: Mapping[str, int]
) -> None:
    _attention(folder, choice)(**tensors, **task.scalars(w))


def _try(job: tuple[str, Workload, str, Mapping[str, int]]) -> str:
    """Compile and run once; what went wrong, or nothing."""
    from tasks import find

    folder, w, name, choice = job
    try:
        task = find(name)
        _call(folder, task, w, _tensors(task, w), choice)
        torch.cuda.synchronize()
    except Exception as problem:  # the compiler's and the driver's errors are many; the text is kept
        return f"{type(problem).__name__}: {problem}"[:300]
    return ""


def _time(
    folder: str,
    task: Task,
    w: Workload,
    tensors: Mapping[str, torch.Tensor],
    choice: Mapping[str, int],
    ms: int,
) -> float:
    """Milliseconds of one call, the median of graph replays that take about that long together."""
    _call(folder, task, w, tensors, choice)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _call(folder, task, w, tensors, choice)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    graph.replay()
    graph.replay()
    end.record()
    end.synchronize()
    once = max(begin.elapsed_time(end) / 2, 1e-3)
    samples: list[float] = []
    for _ in range(max(3, min(200, round(ms / once)))):
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        samples.append(begin.elapsed_time(end))
    return sorted(samples)[len(samples) // 2]
